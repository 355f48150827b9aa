"""Replay: recorded history of a bus written into a fresh one, ids and order kept, at the pace asked for."""

from petalbus.daemon.replay.errors import NoHistory, ReplayError, ReplayRefused
from petalbus.daemon.replay.points import Point, parse_point
from petalbus.daemon.replay.run import ReplayProgress, ReplayReport, replay

__all__ = [
    "replay",
    "ReplayReport",
    "ReplayProgress",
    "ReplayError",
    "ReplayRefused",
    "NoHistory",
    "Point",
    "parse_point",
]
