"""Dead letters: what could not be handled, with the reason, until a person decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from petalbus.daemon.bus.envelope import claim_of
from petalbus.daemon.bus.errors import NoSuchDeadLetter
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.outbox import Outbox
from petalbus.schemas.payloads import prepare
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import new_id

NOTES: Final = (b"dead_reason", b"dead_detail", b"dead_attempts", b"dead_stream", b"dead_entry")


REMEMBER_MS: Final = 60_000
"""How long a call's own result is kept for its repetition. A stepped clock costs a misleading error, nothing else."""

INGEST: Final = "ingest"
"""The owner of raw records that could not be adopted; put back, they are adopted anew."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. ``fields`` is the record's wire form as it came, also where it is not a valid record."""

    app: str
    entry: str
    reason: str
    detail: str
    attempts: int
    stream: str
    fields: tuple[bytes, ...]

    @property
    def record(self) -> Record:
        """The record; raises RecordInvalid when it is the reason for its death."""
        return Record.from_fields(self.fields)

    def field(self, name: bytes) -> bytes | None:
        """One field of the record as it came."""
        names = self.fields[::2]
        return self.fields[names.index(name) * 2 + 1] if name in names else None

    def summary(self) -> dict[str, Any]:
        """What a list shows."""
        shown = {
            name: (self.field(name.encode()) or b"").decode("utf-8", "replace") for name in ("id", "type", "source")
        }
        return {
            "entry": self.entry,
            "app": self.app,
            **shown,
            "reason": self.reason,
            "attempts": self.attempts,
            "stream": self.stream,
        }


class DeadLetters:
    """Reads and settles dead letters. ``entry`` is always the dead letter's own stream id."""

    def __init__(self, keys: Keys, outbox: Outbox) -> None:
        self._keys = keys
        self._outbox = outbox

    async def apps(self) -> list[str]:
        """The applications that have dead letters."""
        prefix = self._keys.dead("")
        pattern = prefix.replace("{", "\\{").replace("[", "\\[") + "*"
        cursor, found = b"0", set()
        while True:
            cursor, names = await self._outbox.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found |= {name.decode()[len(prefix) :] for name in names}
            if cursor == b"0":
                break
        return [app for app in sorted(found) if await self._outbox.ask("XLEN", self._keys.dead(app))]

    async def list(self, app: str, *, count: int = 100, after: str | None = None) -> list[DeadLetter]:
        """Up to ``count`` dead letters of an application, oldest first, after the entry given."""
        start = f"({after}" if after else "-"
        rows = await self._outbox.ask("XRANGE", self._keys.dead(app), start, "+", "COUNT", count)
        return [_letter(app, entry, fields) for entry, fields in rows]

    async def show(self, app: str, entry: str) -> DeadLetter:
        """One dead letter. Raises NoSuchDeadLetter."""
        rows = await self._outbox.ask("XRANGE", self._keys.dead(app), _checked(app, entry), entry)
        if not rows:
            raise NoSuchDeadLetter(f"app {app!r} has no dead letter {entry!r}")
        return _letter(app, rows[0][0], rows[0][1])

    async def requeue(self, app: str, entry: str, *, data: Any = None, type: str | None = None) -> str:
        """Put a record back into the inbox it came from, edited if ``data`` or ``type`` is given; its new stream id.

        Raises NoSuchDeadLetter, and RecordInvalid when the record (as edited) is still not valid.
        """
        letter = await self.show(app, entry)
        record = edited(letter, data=data, type=type)
        if app == INGEST and letter.stream == self._keys.ingest:
            return await self._move(app, entry, self._keys.ingest, record, claim=b"")
        recipient = record.recipient or app
        stream = self._keys.inbox(recipient, record.priority)
        return await self._move(app, entry, stream, record, claim=claim_of(record.priority, recipient, record.source))

    async def _move(self, app: str, entry: str, stream: str, record: Record, *, claim: bytes) -> str:
        keys = [self._keys.dead(app), stream, self._keys.ids, self._once()]
        answer = await self._outbox.run("requeue", keys, [entry, record.id, claim, REMEMBER_MS, *record.to_fields()])
        if not answer:
            raise NoSuchDeadLetter(f"dead letter {entry!r} of {app!r} was settled meanwhile")
        return str(answer.decode())

    async def edit(self, app: str, entry: str, *, data: Any = None, type: str | None = None) -> str:
        """Change a dead letter's payload or type and leave it dead; its new entry id. Raises as ``requeue``."""
        letter = await self.show(app, entry)
        record = edited(letter, data=data, type=type)
        notes = {
            b"dead_reason": letter.reason.encode(),
            b"dead_detail": letter.detail.encode(),
            b"dead_attempts": b"%d" % letter.attempts,
            b"dead_stream": letter.stream.encode(),
        }
        fields = [*record.to_fields(), *(part for note in notes.items() for part in note)]
        answer = await self._outbox.run("redead", [self._keys.dead(app), self._once()], [entry, REMEMBER_MS, *fields])
        if not answer:
            raise NoSuchDeadLetter(f"dead letter {entry!r} of {app!r} was settled meanwhile")
        return str(answer.decode())

    def _once(self) -> str:
        """A key that only one call uses: repeated because its answer was lost, it finds there what it did."""
        return f"{self._keys.prefix}once:{new_id()}"

    async def drop(self, app: str, entry: str) -> None:
        """Delete a dead letter for good. Raises NoSuchDeadLetter."""
        if not await self._outbox.call("XDEL", self._keys.dead(app), _checked(app, entry)):
            raise NoSuchDeadLetter(f"app {app!r} has no dead letter {entry!r}")


def edited(letter: DeadLetter, *, data: Any, type: str | None) -> Record:
    """The letter's record with another payload or type; raises RecordInvalid when that is no valid record."""
    values = dict(zip(letter.fields[::2], letter.fields[1::2], strict=False))
    if type is not None:
        values[b"type"] = type.encode()
    if data is not None:
        values[b"data"] = prepare(values.get(b"type", b"").decode("ascii", "replace"), data)
        values.pop(b"content_type", None)
        values.pop(b"encoding", None)
    values.pop(b"deadline", None)  # it has passed; who sends the record again decides anew
    return Record.from_fields([part for item in values.items() for part in item])


def _letter(app: str, entry: bytes, flat: list[bytes]) -> DeadLetter:
    notes = {name: value for name, value in zip(flat[::2], flat[1::2], strict=False) if name in NOTES}
    fields = tuple(
        part for name, value in zip(flat[::2], flat[1::2], strict=False) if name not in NOTES for part in (name, value)
    )
    return DeadLetter(
        app,
        entry.decode(),
        notes.get(b"dead_reason", b"").decode("utf-8", "replace"),
        notes.get(b"dead_detail", b"").decode("utf-8", "replace"),
        int(notes.get(b"dead_attempts", b"0")),
        notes.get(b"dead_stream", b"").decode("utf-8", "replace"),
        fields,
    )


def _checked(app: str, entry: str) -> str:
    ms, _, n = entry.partition("-")
    if not (ms.isdigit() and (n or "0").isdigit()):
        raise NoSuchDeadLetter(
            f"{entry!r} is not a dead letter's id; ids look like 1700000000000-0: list those of {app!r}"
        )
    return entry
