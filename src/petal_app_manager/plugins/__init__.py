"""See `petalbus.petals`."""
