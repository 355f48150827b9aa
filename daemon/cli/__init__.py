"""The command line, `petalbus`."""
