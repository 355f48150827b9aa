"""What waits in the inboxes and how fast things go: the numbers behind `petalbus inbox` and `petalbus top`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.keys import GROUP
from petalbus.daemon.cli.showing import Shown, read_entry
from petalbus.daemon.cli.streams import Stream, groups
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

_PAGE: Final = 200
_MOST_COUNTED: Final = 2_000
_MOST_PENDING: Final = 1_000

_Row = tuple[bytes, list[bytes]]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One unsettled record of an inbox. ``consumer`` has it (None: nobody yet); this is attempt number ``attempt``."""

    shown: Shown
    consumer: str | None
    attempt: int

    @property
    def age(self) -> float | None:
        """Seconds since it was sent; None when that was before the last boot."""
        return age_of(self.shown)


@dataclass(frozen=True, slots=True)
class Backlog:
    """One priority level of an inbox. ``waiting``: read by nobody yet; ``pending``: being worked on.

    ``waiting`` may be cut at ``counted_to``. ``again``: pending ones on a second or later attempt. ``oldest``: age of
    the oldest unsettled record in seconds. ``added`` and ``taken``: counters since the stream was made.
    """

    waiting: int
    pending: int
    again: int
    oldest: float | None
    added: int
    taken: int
    counted_to: int | None = None


async def backlog(bus: Bus, stream: Stream) -> Backlog:
    """The state of one inbox stream, which must exist."""
    flat, all_groups = await asyncio.gather(bus.call("XINFO", "STREAM", stream.key), groups(bus, stream))
    info = dict(zip([word.decode() for word in flat[::2]], flat[1::2], strict=True))
    added, length = int(info["entries-added"]), int(info["length"])
    group = all_groups.get(GROUP)
    if group is None:  # nobody has ever read here
        return Backlog(length, 0, 0, await _age_at(bus, stream, b"-"), added, 0)
    last: bytes = group["last-delivered-id"]
    pending = int(group["pending"])
    waiting, cut = await _count_after(bus, stream, last, group.get("lag"))
    again = 0
    ages = [await _age_at(bus, stream, b"(" + last)] if waiting else []
    if pending:
        rows = await bus.call("XPENDING", stream.key, GROUP, "-", "+", _MOST_PENDING)
        again = sum(1 for row in rows if row[3] > 1)
        if rows:
            ages.append(await _age_at(bus, stream, rows[0][0]))
    known = [age for age in ages if age is not None]
    taken = int(group.get("entries-read") or added - waiting)
    return Backlog(waiting, pending, again, max(known, default=None), added, taken, cut)


async def waiting_records(bus: Bus, stream: Stream, count: int) -> list[Waiting]:
    """The unsettled records of one inbox stream, oldest first, at most ``count``."""
    group = (await groups(bus, stream)).get(GROUP)
    found: list[Waiting] = []
    after = b"-"
    if group is not None:
        after = b"(" + group["last-delivered-id"]
        if group["pending"]:
            for entry, consumer, _idle, attempt in await bus.call("XPENDING", stream.key, GROUP, "-", "+", count):
                rows = await bus.call("XRANGE", stream.key, entry, entry)
                if rows:
                    found.append(Waiting(_read(stream, rows[0]), consumer.decode(), int(attempt)))
    rows = await bus.call("XRANGE", stream.key, after, "+", "COUNT", count)
    found += [Waiting(_read(stream, row), None, 0) for row in rows]
    return found[:count]


async def memory(bus: Bus) -> dict[str, int]:
    """Bytes that the server uses, and its ceiling (0: none)."""
    text: bytes = await bus.call("INFO", "memory")
    told = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return {"used": int(told.get("used_memory", 0)), "ceiling": int(told.get("maxmemory", 0))}


def age_of(shown: Shown) -> float | None:
    """Seconds since an entry was made; None when that was before the last boot."""
    return max(0.0, (boot_clock_ns() - shown.mono) / 1e9) if shown.boot_id == BOOT_ID else None


async def _count_after(bus: Bus, stream: Stream, last: bytes, lag: Any) -> tuple[int, int | None]:
    """How many entries follow ``last``. Once an entry was deleted the server does not know: then they are counted."""
    if lag is not None:
        return int(lag), None
    number, after = 0, last
    while number < _MOST_COUNTED:
        rows = await bus.call("XRANGE", stream.key, b"(" + after, "+", "COUNT", _PAGE)
        number += len(rows)
        if len(rows) < _PAGE:
            return number, None
        after = rows[-1][0]
    return number, number


async def _age_at(bus: Bus, stream: Stream, start: bytes) -> float | None:
    rows = await bus.call("XRANGE", stream.key, start, "+", "COUNT", 1)
    return age_of(_read(stream, rows[0])) if rows else None


def _read(stream: Stream, row: _Row) -> Shown:
    return read_entry(stream, row[0], row[1], None)
