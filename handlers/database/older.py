"""Writes of a lower priority that were there before we were: senders of an earlier version stored them at NORMAL.

Those at HIGH start first, whichever was stored first. So a write at HIGH does the older ones of its item before itself;
when their own turn comes, the cloud has them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.keys import GROUP
from petalbus.handlers.database import words
from petalbus.handlers.database.errors import TableError
from petalbus.handlers.database.writes import Write
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

MOST_BYTES: Final = 64 << 20
_PAGE: Final = 100

Ask = Callable[..., Awaitable[Any]]
"""One command to the bus's server."""

log = logging.getLogger(__name__)


class Older:
    """By item, in the order in which they were stored."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Record]] = {}
        self._windows: tuple[str, str] = ("", "")

    async def look(self, bus: Bus) -> None:
        """Find them, 64 MiB at most. Raises BusError."""
        stream, size = bus.keys.inbox(words.APP, Priority.NORMAL), 0
        self._windows = (bus.keys.ids, bus.keys.ids_before)
        after = await first_unsettled(bus, stream)
        while after:
            rows = await bus.ask("XRANGE", stream, after, "+", "COUNT", _PAGE)
            found = [record for entry, fields in rows if (record := _record(entry, fields)) is not None]
            for record in await self._unsettled(bus.ask, found):
                size += len(record.raw)
                if (key := item_of(record)) is not None:
                    self._of.setdefault(key, {})[record.id] = record
            if len(rows) < _PAGE:
                return
            if size > MOST_BYTES:
                log.warning("older writes wait than can be looked at: later ones of the same items may overtake them")
                return
            after = f"({rows[-1][0].decode()}"

    async def before(self, record: Record, ask: Ask) -> AsyncIterator[Record]:
        """Those that must be done before this one: they are told once, and not when they have ended meanwhile.

        ``ask``: asks the bus's server, and waits for it.
        """
        if not self._of or record.priority != Priority.HIGH:
            return
        for older in list(self._of.pop(item_of(record) or "", {}).values()):
            if await self._unsettled(ask, [older]):  # somebody may have cancelled it
                yield older

    def started(self, record: Record) -> None:
        """This one has its turn."""
        key = item_of(record) if self._of and record.priority != Priority.HIGH else None
        if key in self._of:
            self._of[key].pop(record.id, None)
            if not self._of[key]:
                del self._of[key]

    async def _unsettled(self, ask: Ask, records: list[Record]) -> list[Record]:
        if not records:
            return []
        ids = [record.id for record in records]
        now, before = [await ask("HMGET", window, *ids) for window in self._windows]
        states = [(one or other or b"")[:1] for one, other in zip(now, before, strict=True)]
        return [record for record, state in zip(records, states, strict=True) if state in (b"q", b"p")]


def item_of(record: Record) -> str | None:
    """The item's ordering key; None for what is no write."""
    try:
        write = Write.of(record.data, machine="", seq=1)
        return words.order_key(write.table, write.key, write.value)
    except (TableError, ValueError, TypeError):
        return None


async def first_unsettled(bus: Bus, stream: str) -> str:
    """Where to begin to read: before that all have ended. Empty where nothing waits."""
    if not await bus.ask("EXISTS", stream):
        return ""
    for row in await bus.ask("XINFO", "GROUPS", stream):
        group = dict(zip(row[::2], row[1::2], strict=True))
        if group[b"name"].decode() != GROUP:
            continue
        if group[b"pending"]:
            return str((await bus.ask("XPENDING", stream, GROUP))[1].decode())  # handed out before all that was not
        return "" if group.get(b"lag") == 0 else f"({group[b'last-delivered-id'].decode()}"
    return "-"


def _record(entry: bytes, fields: list[bytes]) -> Record | None:
    try:
        record = Record.from_fields(fields, stream_id=entry.decode())
    except RecordInvalid:
        return None
    return record if record.type == words.WRITE else None
