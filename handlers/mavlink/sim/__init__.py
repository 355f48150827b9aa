"""A simulated vehicle: a program of its own that speaks MAVLink 2 over UDP and knows nothing of the bus.

python -m petalbus.handlers.mavlink.sim --endpoint udpout:127.0.0.1:14551

airframe     how it moves and what the battery does (pure)
autopilot    what differs between PX4 and ArduPilot: modes, refusals, home
commands     COMMAND_LONG and COMMAND_INT, answered
params       parameters in both encodings
streams      the telemetry messages and their rates
failures     loss, delay, duplication on the wire, seeded
node         all of it on one link and one timer
"""
