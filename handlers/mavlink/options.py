"""What may be set of the MAVLink handler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.orders import MAX_ALTITUDE_M

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.wire.signing import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class MavlinkOptions:
    """The defaults suit a vehicle on its own."""

    source_system: int = 2
    source_component: int = 140
    """Who we are."""

    target_system: int | None = None
    """Which vehicle is meant where an order names none; None: the first one heard."""

    dialect: str = "all"
    heartbeat_hz: float = 5.0
    """Heartbeats that we send, a second."""

    max_altitude: float = MAX_ALTITUDE_M
    """What a takeoff or goto may ask for at most, metres above the take-off place."""

    operators: frozenset[str] = frozenset()
    """Apps that may turn single motors."""

    rates: Mapping[str, float] = field(default_factory=dict)
    """Message -> records a second at most; see Ingest."""

    streams: Mapping[str, float] = field(default_factory=dict)
    """Message -> how many a second a vehicle is asked for that does not send it; see Streams."""

    transfers: Path | None = None
    """The folder through which files pass; None: they cannot."""

    signing: Signer | None = None
    """Signs what leaves and checks what comes."""

    times: CommandTimes = field(default_factory=CommandTimes)
