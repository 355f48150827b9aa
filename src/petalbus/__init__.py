"""PetalBus: an event-sourced message bus for drone companion computers, on Redis Streams."""

from petalbus._version import __version__

__all__ = ["__version__"]
