"""What other programs on the bus may ask a vehicle for: records in, replies out."""
