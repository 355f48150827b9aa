"""Commands to a vehicle: what an order is, how each autopilot carries it out, and what came of it."""
