"""A piece of work: one inbox entry that this consumer holds."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from petalbus.daemon.bus.envelope import claim_of
from petalbus.daemon.bus.handlers import Handler, held
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

_NO_LANE: Final = "\0"


class Work:
    """An entry and what became of it so far. Satisfies the scheduler's ``Schedulable``.

    ``owner`` is the consumer name that holds the lease. ``suspect``: this is not a first delivery; an earlier one may
    have begun. ``known`` is then what the id window said of the message, or None while nobody has asked. ``alone``: a
    consumer died while it ran this, so that it may be the reason; see the scheduler. ``waits``: its type has no handler
    yet (``Bus.hold``).
    """

    __slots__ = (
        "alone",
        "attempts",
        "cancelled",
        "claim",
        "entry",
        "fields",
        "invalid",
        "kind",
        "known",
        "lane",
        "level",
        "marked",
        "message_id",
        "owner",
        "record",
        "stream",
        "suspect",
        "task",
        "waits",
    )

    def __init__(self, app: str, level: Priority, stream: str, entry: bytes, fields: list[bytes], owner: str) -> None:
        self.level = level
        self.stream = stream
        self.entry = entry
        self.fields = fields
        self.owner = owner
        self.attempts = 1
        self.suspect = False
        self.alone = False
        self.known: bytes | None = None
        self.task: asyncio.Task[object] | None = None
        self.cancelled = False
        self.marked = False
        self.waits = False
        self.invalid: RecordInvalid | None = None
        self.record: Record | None = None
        try:
            record = Record.from_fields(fields, stream_id=entry.decode())
        except RecordInvalid as error:
            # a poison record: it still needs a place in the schedule, so that it is buried in its turn
            self.invalid = error
            self.message_id = _field(fields, b"id") or entry
            self.lane = self.kind = _NO_LANE
            self.claim = claim_of(level, app, "?")
        else:
            self.record = record
            self.message_id = record.id.encode()
            self.lane = record.key or record.source
            self.kind = record.type
            self.claim = _claim(level, app, record.source)

    @property
    def type(self) -> str:
        """The record's type; that of a poison record is nobody's."""
        return self.record.type if self.record is not None else _NO_LANE

    def schedule(self, handler: Handler | None) -> None:
        """Set the lane and the kind by which the scheduler orders and limits it."""
        record = self.record
        if record is None or handler is None:
            return
        self.kind = handler.type  # the limit is the handler's, which may take several types
        self.lane = record.key or record.source
        self.waits = handler.function is held
        if self.waits:
            self.lane = f"{self.lane}\0{self.kind}"  # it holds up nothing else of its sender
        if handler.overtakes is not None and (way := handler.overtakes(record)):
            self.lane = f"{self.lane}\0{way}" if isinstance(way, str) else f"\0{self.entry.decode()}"

    @property
    def order(self) -> tuple[int, int]:
        """The stream id as numbers."""
        ms, _, n = self.entry.partition(b"-")
        return int(ms), int(n)

    def outcome(self, state: bytes) -> bytes:
        """What the id window remembers of the message in this state."""
        return b"%b%b%b" % (state, self.entry, self.claim)


@lru_cache(maxsize=1024)
def _claim(level: Priority, app: str, source: str) -> bytes:
    return claim_of(level, app, source)


def _field(fields: list[bytes], name: bytes) -> bytes | None:
    for at in range(0, len(fields) - 1, 2):
        if fields[at] == name:
            return fields[at + 1]
    return None
