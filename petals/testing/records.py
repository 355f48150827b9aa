"""Everything that is appended to a test's bus, captured: inboxes, replies, topics, dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from petalbus.daemon.bus.connection import Connection, open_connection
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.url import parse
from petalbus.schemas.compact import CompactForm, is_compact
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind

MAX_RECORDS: Final = 10_000
"""Records that are kept; a test that makes more loses the oldest."""

_BLOCK_MS: Final = 30
_SHOWN: Final = 25
_SHOWN_CHARS: Final = 160

Where = Callable[[Record], object] | Mapping[str, Any]
"""A test of a record, or members that its payload must have with these values."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A record and where it was appended: ``inbox:camera:2``, ``replies:tester``, ``topic:alerts``, ``dead:camera``."""

    place: str
    record: Record

    def __str__(self) -> str:
        record = self.record
        reply = f" {record.kind} to {record.reply_to}" if record.kind is not None else ""
        text = record.raw.decode("utf-8", "replace")
        if record.content_type is not None:
            text = f"<{len(record.raw)} bytes of {record.content_type}>"
        shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
        return f"{self.place}: {record.type} from {record.source}{reply} {shown}"


class NotExpected(AssertionError):
    """What a test expected did not come (or came, where it must not). The message shows what was captured."""


class Recorder:
    """Reads every stream of a bus from the moment of ``start``. ``captured`` holds what came, oldest first."""

    def __init__(self, url: str, bus: str) -> None:
        self.captured: list[Captured] = []
        self.invalid: list[str] = []
        self._url = url
        self._keys = Keys(bus)
        self._after: dict[bytes, bytes] = {}
        self._forms: dict[str, CompactForm] = {}
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._came = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._taken: set[int] = set()

    async def start(self) -> None:
        """Begin capturing. Raises BusUnavailable."""
        self._connection = await open_connection(parse(self._url), timeout=5.0, patience=10.0)
        for stream in await self._streams():
            rows = await self._connection.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
            self._after[stream] = rows[0][0] if rows else b"0"
        self._task = asyncio.create_task(self._run(), name="petalbus-recorder")

    async def stop(self) -> None:
        """Capture what is there now, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def catch_up(self) -> None:
        """Return when everything that was appended before the call is captured."""
        async with self._turn:
            await self._look(block=0)

    async def wait_for(self, fits: Callable[[Captured], object], within: float, what: str) -> Record:
        """The first captured record that fits and was not returned before.

        Raises NotExpected after ``within`` seconds.
        """
        end = time.monotonic() + within
        async with self._came:
            while True:
                for one in self.captured:
                    if id(one) not in self._taken and fits(one):
                        self._taken.add(id(one))
                        return one.record
                left = end - time.monotonic()
                if left <= 0 or self._task is None or self._task.done():
                    raise NotExpected(f"{what} did not come within {within:g} s. {self.describe()}")
                try:
                    async with asyncio.timeout(left):
                        await self._came.wait()
                except TimeoutError:
                    continue

    def describe(self) -> str:
        """What was captured, a line a record, the last ones of many."""
        if not self.captured:
            return "Nothing was captured."
        shown = self.captured[-_SHOWN:]
        head = f"Captured ({len(self.captured)} records"
        head += f", the last {_SHOWN}):" if len(shown) < len(self.captured) else "):"
        return "\n  ".join([head, *map(str, shown), *self.invalid])

    async def _run(self) -> None:
        while True:
            async with self._turn:
                await self._look(block=_BLOCK_MS)
            await asyncio.sleep(0)

    async def _look(self, *, block: int) -> None:
        assert self._connection is not None
        for stream in await self._streams():
            self._after.setdefault(stream, b"0")
        if not self._after:
            if block:
                await asyncio.sleep(block / 1000)
            return
        more = True
        while more:
            blocking = ("BLOCK", block) if block else ()
            head = ("XREAD", "COUNT", 500, *blocking, "STREAMS")
            reply = await self._connection.call(*head, *self._after, *self._after.values())
            more = bool(reply) and not block
            if reply:
                await self._take(reply)

    async def _take(self, reply: Any) -> None:
        for stream, entries in reply:
            self._after[stream] = entries[-1][0]
            for entry, fields in entries:
                await self._capture(self._place(stream), entry.decode(), fields)
        if len(self.captured) > MAX_RECORDS:
            self._taken -= {id(one) for one in self.captured[:-MAX_RECORDS]}
            del self.captured[:-MAX_RECORDS]
        async with self._came:
            self._came.notify_all()

    async def _capture(self, place: str, entry: str, fields: list[bytes]) -> None:
        try:
            if is_compact(fields):
                record = (await self._form(place.partition(":")[2])).decode(entry, fields)
            else:
                record = Record.from_fields(fields, stream_id=entry)
        except RecordInvalid as error:
            self.invalid.append(f"{place}: {entry} is no record: {error}")
        else:
            self.captured.append(Captured(place, record))

    async def _form(self, topic: str) -> CompactForm:
        form = self._forms.get(topic)
        if form is None:
            assert self._connection is not None
            flat = await self._connection.call("HGETALL", self._keys.form(topic))
            form = self._forms[topic] = CompactForm.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))
        return form

    async def _streams(self) -> list[bytes]:
        assert self._connection is not None
        prefix = self._keys.prefix.encode()
        found: list[bytes] = []
        cursor: bytes = b"0"
        while True:
            cursor, keys = await self._connection.call("SCAN", cursor, "MATCH", prefix + b"*", "COUNT", 1000)
            found += [key for key in keys if _is_stream(key.removeprefix(prefix))]
            if int(cursor) == 0:
                return found

    def _place(self, stream: bytes) -> str:
        name = stream.decode().removeprefix(self._keys.prefix)
        if not name.startswith("queue:"):
            return name
        app, _, rest = name.removeprefix("queue:").rpartition(":")
        if rest == "replies":
            return f"replies:{app}"
        return f"inbox:{app.removesuffix(':inbox')}:{rest}"


def _is_stream(name: bytes) -> bool:
    if name.startswith(b"queue:"):
        return name.endswith(b":replies") or b":inbox:" in name
    return name.startswith((b"topic:", b"dead:"))


def fits(
    *, type: str | None, kind: ReplyKind | str | None, place: str | None, reply_to: str | None, where: Where | None
) -> Callable[[Captured], bool]:
    """A test of a captured record, of all the conditions that are given. ``place`` may be its beginning."""

    def test(one: Captured) -> bool:
        record = one.record
        if type is not None and record.type != type:
            return False
        if kind is not None and record.kind != kind:
            return False
        if place is not None and one.place != place and not one.place.startswith(f"{place}:"):
            return False
        if reply_to is not None and record.reply_to != reply_to:
            return False
        if where is None:
            return True
        if callable(where):
            return bool(where(record))
        data = record.data
        return isinstance(data, dict) and all(name in data and data[name] == value for name, value in where.items())

    return test


def conditions(**given: object) -> str:
    """The conditions of a test in words, for its error."""
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return f"a record with {', '.join(named)}" if named else "a record"
