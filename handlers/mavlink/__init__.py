"""MAVLink: the vehicle on the bus.

wire       bytes <-> frames <-> messages, transports, signing, conversations over one link
flight     what the vehicle is told to do, and what came of it
params     parameters, many at once
missions   missions, fences, rally points
files      MAVLink FTP, flight logs, the shell, .tlog
requests   what other programs may ask for: records in, replies out
ingest     frames -> records; the latest of each kind
fleet      the vehicles that are heard, each with all of the above
handler    all of it on one link and one bus; runs in the daemon
sim        a simulated vehicle, a program of its own
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from petalbus.handlers.mavlink.decode import decode, frame_of

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.handler import MavlinkHandler

__all__ = ["MavlinkHandler", "decode", "frame_of"]


def __getattr__(name: str) -> Any:
    # The handler brings the bus with it; who only decodes, and the simulated vehicle, need none.
    if name == "MavlinkHandler":
        return import_module("petalbus.handlers.mavlink.handler").MavlinkHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
