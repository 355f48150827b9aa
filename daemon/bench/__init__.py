"""``petalbus bench``: what PetalBus costs, as ratios to other ways of doing the same, measured side by side."""

from petalbus.daemon.bench.entry import bench as main

__all__ = ["main"]
