"""What logs a vehicle has, asked with LOG_REQUEST_LIST.

PX4 looks through its whole card for each request, reads nothing meanwhile, and answers nothing where there is nothing
to list. So it is asked the time behind each request (TIMESYNC): the answer tells that it has read the request, and is
free again. What is not answered then was lost, or there is nothing. Some PX4 send all logs from the first one on that
is asked for, whichever the last one is.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.files.log_pieces import ALL, Entry, Listing, LogInfo, Pace
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox, Operation
from petalbus.handlers.mavlink.wire.framing import Frame

_ENTRY: Final = 118
_TIMESYNC: Final = 111
LISTENED: Final = frozenset((_ENTRY, _TIMESYNC))
"""What the inbox of a lister hears."""

_ENTRY_LAYOUT: Final = struct.Struct("<IIHHH")
_TIMESYNC_LAYOUT: Final = struct.Struct("<qq")
_PROBE_S: Final = 0.05, 0.25
_SETTLE_S: Final = 0.3
_LULL_S: Final = 0.3
_DEAF_S: Final = 4.0
_SILENT: Final = 5
_SILENT_ALONE: Final = 2
_DOUBT: Final = 0.03
_OTHERS: Final = 2


class LogTimeout(MavlinkError):
    """It went quiet. ``done`` of ``total`` came: bytes of a log or entries of the list (None: not known)."""

    code = "LOG_TIMEOUT"

    def __init__(self, what: str, done: int, total: int | None, timeout: float) -> None:
        self.done = done
        self.total = total
        super().__init__(
            f"{what}: {done} of {'?' if total is None else total} came, then nothing new for {timeout:g} s. Check "
            "the link, and that the vehicle is disarmed (ArduPilot serves no logs while armed)"
        )

    @property
    def detail(self) -> dict[str, Any]:
        """How far it came."""
        return {"done": self.done, "total": self.total}


class LogUnknown(MavlinkError):
    """The vehicle has no log with this id."""

    code = "LOG_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask: PX4, or another vehicle."""

    operation: Operation
    px4: bool

    @property
    def first(self) -> int:
        """The id at which it begins to count."""
        return 0 if self.px4 else 1


class Lister:
    """Asks one vehicle. ``inbox`` hears ``LISTENED``."""

    def __init__(self, calls: Calls, inbox: Inbox, asked: Asked, pace: Pace) -> None:
        self._calls = calls
        self._inbox = inbox
        self._asked = asked
        self._pace = pace
        self._probes: set[int] = set()
        self._heard = 0
        self._trip: float | None = None
        self._heard_at = 0.0
        self._silent = 0

    async def list_all(self, listing: Listing, end: float) -> None:
        """Fill the list, until ``end`` (monotonic seconds) at most."""

        def take(entry: Entry) -> bool:
            listing.take(entry)
            return listing.complete()

        while not listing.complete() and time.monotonic() < end:
            if await self._round(*listing.missing(), take, end):
                return
            if listing.total is None and self._is_nothing():
                listing.total, listing.silent = 0, True

    async def find(self, log_id: int, end: float) -> tuple[LogInfo, int]:
        """What a log is, and how many there are. Raises LogUnknown; TimeoutError at ``end`` (monotonic seconds)."""
        found: list[Entry] = []
        others = 0

        def take(entry: Entry) -> bool:
            nonlocal others
            mine, number = entry.info.id == log_id, entry.number
            if mine and number and log_id <= max(number, entry.last):
                found.append(entry)
                return True
            if not self._asked.first <= log_id < self._asked.first + number:
                others += 1
                if mine or number == 0 or others > _OTHERS:
                    raise self._unknown(log_id, number)
            return False

        first = last = log_id
        while time.monotonic() < end:
            if await self._round(first, last, take, end):
                return found[0].info, found[0].number
            if first == 0 and self._is_nothing():
                raise self._unknown(log_id, 0)
            if self._silent >= _SILENT_ALONE:
                first, last, others = 0, ALL, _OTHERS  # any log tells now how many there are
        raise TimeoutError

    def _unknown(self, log_id: int, number: int) -> LogUnknown:
        system = self._asked.operation.system
        return LogUnknown(f"vehicle {system} has no log {log_id} (it has {number} of them)")

    # -- one request --------------------------------------------------------------------------------------------------

    async def _round(self, first: int, last: int, take: Callable[[Entry], bool], end: float) -> bool:
        """Ask once, and hand on what comes until ``take`` has enough (True) or the vehicle is quiet (False)."""
        pace, inbox = self._pace, self._inbox
        ask_list(self._calls, self._asked.operation, first, last)
        pace.asked(time.monotonic())
        self._heard_at = 0.0
        least, most = _PROBE_S
        patience = most if self._trip is None else min(most, max(least, 4 * self._trip))
        probe_at = time.monotonic() if self._asked.px4 else float("inf")
        while (now := time.monotonic()) < min(end, self._quiet_at()):
            if now >= probe_at and not self._heard_at:
                self._probe()
                probe_at = now + patience
                patience = min(most, 1.5 * patience)
            elif self._heard_at:
                probe_at = float("inf")
            frame = await inbox.get(min(end, self._quiet_at(), probe_at) - now)
            if frame is None:
                continue
            if frame.msgid == _TIMESYNC:
                self._hear(frame)
                continue
            pace.came(time.monotonic(), answers=True)
            if take(_read_entry(frame)):
                return True
        if not pace.come and self._heard_at:
            self._silent += 1
        return False

    def _quiet_at(self) -> float:
        pace = self._pace
        if not self._asked.px4:
            return pace.quiet_at()
        if pace.come:
            return max(pace.quiet_at(), pace.latest + _LULL_S)
        if self._heard_at:
            return self._heard_at + max(_SETTLE_S, 2 * (self._trip or 0.0))
        return pace.asked_at + _DEAF_S

    def _probe(self) -> None:
        stamp = time.monotonic_ns()
        self._probes.add(stamp)
        self._calls.send("TIMESYNC", self._asked.operation.system, part_of=self._asked.operation, tc1=0, ts1=stamp)

    def _hear(self, frame: Frame) -> None:
        tc1, ts1 = _TIMESYNC_LAYOUT.unpack(filled(frame, _TIMESYNC_LAYOUT.size))
        if tc1 != 0 and ts1 in self._probes:
            self._probes.discard(ts1)
            self._heard += 1
            if ts1 >= self._pace.asked_at * 1e9:  # an older one says nothing about the latest request
                self._heard_at = time.monotonic()
                self._trip = self._heard_at - ts1 / 1e9

    def _is_nothing(self) -> bool:
        """Whether PX4's silence means that there is nothing to list; the more is lost, the longer it has to last.

        One that does not answer what the time is may still look through its card, also while its heartbeats come.
        """
        if not self._asked.px4 or self._pace.come:
            return False
        lost = (len(self._probes) + 1) / (len(self._probes) + self._heard + 2)
        return self._silent >= _SILENT and lost**self._silent <= _DOUBT


def ask_list(calls: Calls, operation: Operation, first: int, last: int) -> None:
    """Ask for the logs of these ids. Raises NotConnected."""
    target = {"target_system": operation.system, "target_component": 1}
    calls.send("LOG_REQUEST_LIST", operation.system, part_of=operation, **target, start=first, end=last)


def filled(frame: Frame, size: int) -> bytes:
    """The payload with the zeros that MAVLink 2 cut off."""
    return frame.payload[:size].ljust(size, b"\0")


def _read_entry(frame: Frame) -> Entry:
    at, size, number, total, last = _ENTRY_LAYOUT.unpack(filled(frame, _ENTRY_LAYOUT.size))
    return Entry(LogInfo(number, size, at), total, last)
