"""Recorded history in one order: entries of all streams merged by the boot clock, a page of each in memory at a time.

Within a stream the order is the stream's. Between streams it is the boot's number and the time in it: the record's own
``mono`` where it was stamped on the machine that ran the bus, else an estimate from the stream id beside such records.
Where the recording says nothing of boots (no janitor ran), stream ids decide.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from petalbus.daemon.replay.errors import NoHistory
from petalbus.daemon.replay.points import Point
from petalbus.daemon.replay.source import Source
from petalbus.daemon.services.janitor import boot_keys
from petalbus.daemon.services.streams import Kind, Stream
from petalbus.schemas.compact import Boots as Declared
from petalbus.schemas.compact import boot_at, is_compact, read_boots
from petalbus.schemas.errors import RecordInvalid

FIRST_PAGE: Final = 16
"""Entries of a stream's first page: they may have 1 MiB each."""

MOST_PAGE: Final = 1000
PAGE_BYTES: Final = 256 * 1024
"""Bytes that a page aims at, judged by the one before."""

StreamId = tuple[int, int]


class Recorded(NamedTuple):
    """One entry, where it was, and when: the boot's number and nanoseconds of its clock."""

    stream: Stream
    entry: str
    fields: list[bytes]
    boot: int
    at: int


@dataclass(slots=True)
class Boots:
    """The boots of a recording, and where each stream stood when they began."""

    numbers: dict[str, int] = field(default_factory=dict)
    """Boot id -> number."""

    marks: dict[str, list[tuple[StreamId, int]]] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    """Boot number -> stream id (as ns) minus boot clock: from the mark, then from records that have both."""

    @classmethod
    async def read(cls, source: Source) -> Boots:
        """Read what the janitor noted."""
        boots_key, marks_key = boot_keys(source.keys)
        flat = await source.call("HGETALL", boots_key)
        boots = cls({name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)})
        flat = await source.call("HGETALL", marks_key)
        for name, last in zip(flat[::2], flat[1::2], strict=True):
            number, _, stream = name.decode().partition("|")
            if stream:
                boots.marks.setdefault(stream, []).append((parse_id(last.decode()), int(number)))
            else:
                appended, mono = parse_id(last.decode())
                boots.offsets[int(number)] = appended * 1_000_000 - mono
        return boots

    def of(self, stream: str, entry: StreamId) -> int:
        """The boot in which an entry was appended: the last one that began when the stream ended before it."""
        marks = self.marks.get(stream, [])
        marked = {number for _, number in marks}
        # a stream that a boot has no mark of was made in it, or later: all of its entries may be that boot's
        begun = [number for last, number in marks if last < entry]
        begun += [number for number in self.numbers.values() if number not in marked]
        return max(begun, default=0)

    def time(self, boot: int, mono: int | None, entry: StreamId) -> int:
        """When an entry was made, in ns of its boot's clock; ``mono``: what it says itself, if that counts."""
        appended = entry[0] * 1_000_000
        if not self.numbers:
            return appended
        if mono is None:
            return appended - self.offsets.setdefault(boot, appended)
        self.offsets[boot] = appended - mono
        return mono


class Cursor:
    """One stream, read page by page."""

    def __init__(
        self, source: Source, stream: Stream, boots: Boots, *, declared: Declared, first: StreamId, last: StreamId
    ) -> None:
        self.stream = stream
        self.declared = declared
        """Of a compact topic: which entries are of which boot."""
        self._source = source
        self._boots = boots
        self._next = show_id(first)
        self._last = show_id(last)
        self._page: list[tuple[bytes, list[bytes]]] = []
        self._at = 0
        self._count = FIRST_PAGE
        self._finished = False
        self._floor = (0, 0)

    async def first_boot(self) -> str | None:
        """The boot id of the first entry, where it says one."""
        if not self._page:
            await self._turn()
        return self._stamps(*self._page[0])[0] if self._page else None

    async def next(self) -> Recorded | None:
        """The next entry, or None at the end."""
        if self._at >= len(self._page):
            await self._turn()
            if not self._page:
                return None
        entry, fields = self._page[self._at]
        self._page[self._at] = (b"", [])  # a page is let go of entry by entry
        self._at += 1
        name = entry.decode()
        place = parse_id(name)
        boot = self._boots.of(self.stream.key, place)
        boot_id, mono, compact = self._stamps(entry, fields)
        if compact:
            # a compact topic of a program on another machine counts time by that machine's clock
            ours = not self.declared or boot_id in self._boots.numbers
        else:
            ours = boot_id is not None and self._boots.numbers.get(boot_id) == boot
        when = self._boots.time(boot, mono if ours else None, place)
        # a stream keeps its own order, whatever its producers stamped
        self._floor = max(self._floor, (boot, when))
        return Recorded(self.stream, name, fields, *self._floor)

    def _stamps(self, entry: bytes, fields: list[bytes]) -> tuple[str | None, int | None, bool]:
        """Boot id and boot-clock time of an entry as far as they are known, and whether it is in the compact form."""
        boot_id, mono, compact = _stamps(fields)
        return boot_at(self.declared, entry.decode()) if compact else boot_id, mono, compact

    async def _turn(self) -> None:
        self._page, self._at = [], 0
        if self._finished:
            return
        page = await self._source.call("XRANGE", self.stream.key, self._next, self._last, "COUNT", self._count)
        self._finished = len(page) < self._count
        if page:
            self._next = f"({page[-1][0].decode()}"
            size = sum(len(part) for _, fields in page for part in fields) // len(page) + 1
            self._count = max(1, min(MOST_PAGE, PAGE_BYTES // size))
            self._page = page


class History:
    """The chosen streams of a recording, merged."""

    def __init__(self, cursors: list[Cursor], boots: Boots) -> None:
        self._cursors = cursors
        self._boots = boots

    async def records(self) -> AsyncIterator[Recorded]:
        """Every entry, oldest first. Raises OutcomeUnknown or ServerError."""
        # what was stamped here goes first: it tells how stream ids and the boot clock lie
        firsts = {cursor: await cursor.first_boot() in self._boots.numbers for cursor in self._cursors}
        heads = [(cursor, await cursor.next()) for cursor in sorted(firsts, key=lambda one: not firsts[one])]
        heap = [
            (head.boot, head.at, number, head, cursor)
            for number, (cursor, head) in enumerate(heads)
            if head is not None
        ]
        heapq.heapify(heap)
        while heap:
            _, _, number, head, cursor = heap[0]
            yield head
            following = await cursor.next()
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following.boot, following.at, number, following, cursor))


async def open_history(source: Source, *, streams: Sequence[str], start: Point, end: Point) -> History:
    """The history between two points; ``streams``: topics, or names and patterns such as ``queue:vehicle:*``.

    Raises NoHistory, which lists what there is.
    """
    found = [stream for stream in await _all_streams(source) if stream.kind not in (Kind.CONTROL, Kind.OTHER)]
    chosen = [one for one in found if not streams or any(_matches(one, pattern, source) for pattern in streams)]
    for pattern in streams:
        if not any(_matches(one, pattern, source) for one in found):
            names = ", ".join(short_name(one, source) for one in found) or "nothing"
            raise NoHistory(f"no stream {pattern!r} is recorded there; there is: {names}")
    if not chosen:
        raise NoHistory(f"nothing is recorded of bus {source.keys.bus!r} in {source.shown}")
    first = start.id if start.kind == "id" else (0, 0)
    last = end.id if end.kind == "id" else (2**64 - 1, 2**64 - 1)
    boots = await Boots.read(source)
    cursors = []
    for stream in chosen:
        declared = await _declared(source, stream)
        cursors.append(Cursor(source, stream, boots, declared=declared, first=first, last=last))
    if not boots.numbers:
        # nobody noted boots; where all streams begin in one, there was no other
        begun = {await cursor.first_boot() for cursor in cursors} - {None}
        boots.numbers = {str(begun.pop()): 0} if len(begun) == 1 else {}
    return History(cursors, boots)


async def _declared(source: Source, stream: Stream) -> Declared:
    """Which entries of a compact topic are of which boot: empty where nothing says so."""
    listed, last = await source.call("HMGET", source.keys.form(stream.name), "boots", "boot_id")
    try:
        return read_boots(listed) or ((((0, 0), last.decode("ascii", "replace")),) if last else ())
    except RecordInvalid:
        return ()


def short_name(stream: Stream, source: Source) -> str:
    """A stream's name without the bus."""
    return stream.key.removeprefix(source.keys.prefix)


def parse_id(text: str) -> StreamId:
    """A stream id as two numbers."""
    ms, _, n = text.partition("-")
    return int(ms), int(n)


def show_id(place: StreamId) -> str:
    """Two numbers as a stream id."""
    return f"{place[0]}-{place[1]}"


async def _all_streams(source: Source) -> list[Stream]:
    cursor, found = b"0", set()
    while True:
        cursor, names = await source.call(
            "SCAN", cursor, "MATCH", f"{source.keys.prefix}*", "COUNT", 1000, "TYPE", "stream"
        )
        found |= {name.decode() for name in names}
        if cursor == b"0":
            return [Stream.of(key, source.keys) for key in sorted(found)]


def _matches(stream: Stream, pattern: str, source: Source) -> bool:
    name = short_name(stream, source)
    topic = stream.kind is Kind.TOPIC and fnmatchcase(stream.name, pattern)
    return topic or pattern == stream.key or fnmatchcase(name, pattern)


def _stamps(fields: list[bytes]) -> tuple[str | None, int | None, bool]:
    """Boot id and boot-clock time of an entry as far as it says them, and whether it is in the compact form."""
    compact = is_compact(fields)
    boot_id = mono = None
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"boot_id":
            boot_id = value.decode("ascii", "replace")
        elif name == (b"m" if compact else b"mono") and value.isdigit() and len(value) < 20:
            mono = int(value)
    return boot_id, mono, compact
