"""Which logs and which pieces of one came, what to ask for next, and how long to wait. Pure.

A log travels in pieces of 90 bytes. A window of it is asked for as a whole; what is missing then is asked for
again, in ranges: where only few pieces lie between two gaps it is quicker to get them once more than to ask twice.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from petalbus.handlers.mavlink.params.round_trip import RoundTrip

PIECE: Final = 90
"""Bytes of a log that one message carries."""

_UNKNOWN_QUIET_S: Final = 0.5
ALL: Final = 0xFFFF
"""The last id to ask for, to get them all."""

_ENTRIES_AGAIN: Final = 20
_MOST_QUIET_S: Final = 4.0
_LEAST_QUIET_S: Final = 0.03
_LULL_FADES: Final = 0.998
_LULLS: Final = 2.5
_EAGER: Final = 4
_MOST_MERGED: Final = 256


class LogInfo(NamedTuple):
    """One log on the vehicle. ``size`` is bytes, ``time_utc`` seconds since 1970 (0: not known)."""

    id: int
    size: int
    time_utc: int


class Entry(NamedTuple):
    """What a LOG_ENTRY says: one log, how many there are, and the last id."""

    info: LogInfo
    number: int
    last: int


class Listing:
    """The entries that came, and which are missing."""

    def __init__(self, *, first: int) -> None:
        """``first``: the id at which this vehicle begins to count."""
        self.infos: dict[int, LogInfo] = {}
        """By id."""
        self.total: int | None = None
        """How many logs there are; None: not known."""
        self.silent = False
        """That there are none was concluded from silence; nobody said so."""
        self._first = first

    @property
    def logs(self) -> list[LogInfo]:
        """What came, by id."""
        return [self.infos[number] for number in sorted(self.infos)]

    def take(self, entry: Entry) -> None:
        """An entry. Where the number of logs changed, their ids may mean others now: begin again."""
        if self.total not in (None, entry.number):
            self.infos.clear()
        self.total = entry.number
        if entry.number:
            self.infos[entry.info.id] = entry.info

    def complete(self) -> bool:
        """All came, as many as the vehicle said."""
        return self.total is not None and len(self.infos) >= self.total

    def missing(self) -> tuple[int, int]:
        """The first and the last id to ask for: the first gaps, with the few between them, or everything."""
        if not self.infos or self.total is None:
            return 0, ALL
        first = min(self._first, *self.infos)
        top = max(first + self.total - 1, *self.infos)
        gaps = [number for number in range(top - self.total + 1, top + 1) if number not in self.infos]
        end = gaps[0]
        for number in gaps:
            end = number if number <= end + _ENTRIES_AGAIN else end
        return gaps[0], end


class Range(NamedTuple):
    """Bytes of a log."""

    offset: int
    size: int

    @property
    def last(self) -> int:
        """Offset of the last piece."""
        return self.offset + max(0, self.size - 1) // PIECE * PIECE


class Window:
    """A part of a log that is being fetched. ``data`` is whole once ``complete``."""

    def __init__(self, start: int, size: int) -> None:
        """``size`` bytes from ``start`` on; ``start`` is a multiple of 90."""
        self.start = start
        self.data = bytearray(size)
        self.come = 0
        """Pieces that came."""
        self.cut = False
        """The log ends before the place that was announced."""
        self._there = bytearray(-(-size // PIECE))
        self._doubt: tuple[int, int, int] | None = None

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return self.come == len(self._there)

    @property
    def received(self) -> int:
        """Bytes that came, of ``data``."""
        return min(len(self.data), self.come * PIECE)

    def put(self, offset: int, data: bytes, asked: int) -> bool:
        """Take a piece, an answer to the request number ``asked``; False when it is of no use.

        A piece that is shorter than it should be is the log's end. It must come as an answer to two requests.
        """
        place, odd = divmod(offset - self.start, PIECE)
        if odd or not 0 <= place < len(self._there) or self._there[place]:
            return False
        begin = place * PIECE
        expected = min(PIECE, len(self.data) - begin)
        if len(data) >= expected:
            self.data[begin : begin + expected] = data[:expected]
            self._there[place] = 1
            self.come += 1
            return True
        if self._doubt is not None and self._doubt[:2] == (offset, len(data)) and self._doubt[2] != asked:
            self._end_at(begin, data)
            return True
        if self._doubt is None or self._doubt[:2] != (offset, len(data)):
            self._doubt = offset, len(data), asked
        return False

    def gap(self, merge: int) -> Range:
        """What to ask for next: the first gap, and those behind it with at most ``merge`` pieces between two."""
        there = self._there
        first = there.find(0)
        end = first
        following = first
        while following >= 0 and following - end <= merge:
            end = there.find(1, following)
            if end < 0:
                end = len(there)
                break
            following = there.find(0, end)
        begin = first * PIECE
        return Range(self.start + begin, min(len(self.data), end * PIECE) - begin)

    def _end_at(self, begin: int, data: bytes) -> None:
        del self.data[begin:]
        del self._there[begin // PIECE :]
        if data:
            self.data += data
            self._there.append(1)
        self.come = self._there.count(1)
        self.cut = True


class Pace:
    """How quickly this vehicle answers and sends, from what was seen. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.trip = RoundTrip()
        self._lull = 0.0
        self._asked = 0.0
        self._first = 0.0
        self._latest = 0.0
        self._come = 0
        self._rate = 0.0
        self._silent = -1

    @property
    def silent(self) -> int:
        """How many requests before the latest one were not answered, one after the other."""
        return self._silent

    @property
    def come(self) -> int:
        """Pieces that came since the latest request."""
        return self._come

    @property
    def latest(self) -> float:
        """When the latest piece came."""
        return self._latest

    @property
    def asked_at(self) -> float:
        """When the latest request left."""
        return self._asked

    def asked(self, now: float) -> None:
        """A request left."""
        if self._come > 1 and self._latest > self._first:
            self._rate = (self._come - 1) / (self._latest - self._first)
        self._silent = 0 if self._come else self._silent + 1
        self._asked, self._come = now, 0

    def came(self, now: float, *, answers: bool) -> None:
        """A piece came; ``answers`` when it is the first one that the latest request asked for."""
        if self._come:
            self._lull = max(now - self._latest, self._lull * _LULL_FADES)
        else:
            self._first = now
            if answers and self._silent == 0:
                self.trip.sample(now - self._asked)
        self._latest = now
        self._come += 1

    def quiet_at(self) -> float:
        """When to ask again if nothing more comes until then. After long silence the patience grows."""
        if self._come:
            seconds = max(_LEAST_QUIET_S, _LULLS * self._lull, self.trip.patience(_UNKNOWN_QUIET_S) / 2)
            return self._latest + min(_MOST_QUIET_S, seconds)
        patience = _UNKNOWN_QUIET_S if self.trip.smooth is None else self.trip.patience(_MOST_QUIET_S)
        seconds = max(_LEAST_QUIET_S, _LULLS * self._lull, patience)
        return self._asked + min(_MOST_QUIET_S, seconds * max(1, self._silent - _EAGER))

    def merge(self) -> int:
        """How many pieces come in the time that one more request costs."""
        smooth = self.trip.smooth or 0.0
        return min(_MOST_MERGED, max(1, int(self._rate * smooth)))
