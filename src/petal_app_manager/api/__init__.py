"""See `petalbus.daemon.http`."""
