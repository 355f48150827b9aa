"""What is known of a vehicle's file server from one conversation to the next, and how long to wait for it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.params.round_trip import RoundTrip

_NUMBERS: Final = 0xFFFF
"""PX4 never recognizes number 65535 as repeated: it is left out."""
_PX4_WINDOW: Final = 2, 16
_WINDOW_S: Final = 0.25
"""Worth of packets that may be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FtpTimes:
    """How long to wait, in seconds."""

    resend: float = 0.5
    """Between two sendings of one request at most; less once the round trip is known."""
    silence: float = 8.0
    """Without an answer, or without a new byte, for so long: give up."""
    compute: float = 60.0
    """The same for a checksum, which the vehicle makes of the whole file before it answers."""
    close: float = 2.0
    """For telling the vehicle that a file is not needed any more."""
    turn: float = 60.0
    """For the transfers of others before ours."""
    busy: float = 300.0
    """For a vehicle that sends a burst, of which nothing is needed, before it does what it was asked."""
    alive: float = 3.0
    """Between two requests in a burst from PX4, which closes a file 10 s after the last one."""


@dataclass(slots=True)
class FtpPeer:
    """What is known of one vehicle's server, from one conversation to the next."""

    system: int
    autopilot: int
    trip: RoundTrip = field(default_factory=RoundTrip)
    seq: int = field(default_factory=lambda: random.randrange(_NUMBERS))  # noqa: S311  # only to differ from last time
    unsure: bool = True
    """A session of ours may be open there: of a run that crashed, or one whose end was not acknowledged."""
    reordered: bool = False
    rate: float | None = None
    """Packets a second of the latest burst."""

    @property
    def is_ardupilot(self) -> bool:
        """It does one thing after the other."""
        return self.autopilot == Autopilot.ARDUPILOT

    @property
    def is_px4(self) -> bool:
        """It has one session, for everybody."""
        return self.autopilot == Autopilot.PX4

    @property
    def session(self) -> int:
        """The session to ask for. ArduPilot finds its answers to repetitions by it, and 0 would get a new one each."""
        return 1 if self.is_ardupilot else 0

    @property
    def window(self) -> int:
        """Requests in flight. ArduPilot drops what its queue of five cannot take; a slow line is not stuffed."""
        if self.is_ardupilot:
            return 4
        least, most = _PX4_WINDOW
        return most if self.rate is None else max(least, min(most, int(self.rate * _WINDOW_S)))

    def next_seq(self, *, skip: int = 0) -> int:
        """A number that was not used lately, ``skip`` numbers further."""
        self.seq = (self.seq + 1 + skip) % _NUMBERS
        return self.seq
