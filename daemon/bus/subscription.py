"""Fan-out: every subscriber reads a topic through a group of its own, so nothing is lost while it is away.

A record is acknowledged when the subscriber asks for the next one; the acknowledgements of one event-loop tick leave as
one request. A subscription that ends leaves the record it was working on to its next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import BusUnavailable, OutcomeUnknown
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.lane import Lane, LaneState
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.url import Address
from petalbus.schemas.compact import CompactForm, Declared, is_compact
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record

log = logging.getLogger("petalbus.bus")

CONSUMER = "subscriber"
"""One name for good: a subscriber that comes back finds what it had not acknowledged."""


class Subscription:
    """The records of one topic, as an asynchronous iterator. Leave it with ``break`` or ``aclose()``.

    ``start`` counts only when the group is new: ``new`` (what comes from now on), ``oldest``, or a stream id
    to go on after.
    """

    def __init__(
        self,
        topic: str,
        *,
        group: str,
        start: str,
        address: Address,
        keys: Keys,
        outbox: Outbox,
        options: BusOptions,
        messages: frozenset[str] | None = None,
    ) -> None:
        self.topic = topic
        self.group = group
        self.lost = 0
        self.invalid = 0
        self._start = start
        self._stream = keys.topic(topic)
        self._form_key = keys.form(topic)
        self._declared = Declared()
        self._checkpoint: bytes | None = None
        self._outbox = outbox
        self._options = options
        self._messages = messages
        self._queue: deque[tuple[bytes, list[bytes]]] = deque()
        self._handled: list[bytes] = []
        self._held: set[bytes] = set()
        self._armed = False
        self._closed = False
        self._idle = asyncio.Event()
        self._arrived = asyncio.Event()
        self._lane = Lane(
            f"{group}-{topic}",
            address,
            prepare=self._prepare,
            on_live=lambda _connection: self._arm(),
            on_lost=self._lost_connection,
            connect_timeout=options.connect_timeout,
            patience=options.block + options.patience,
        )

    @property
    def closed(self) -> bool:
        """True once the subscription has ended."""
        return self._closed

    async def open(self) -> Subscription:
        """Connect and make sure that the group exists; from then on nothing is missed. Raises BusUnavailable."""
        if self._lane.state is LaneState.WAITING and not self._lane.started:
            self._lane.start()
        await self._lane.wait_live(self._options.connect_timeout)
        return self

    async def aclose(self) -> None:
        """End the subscription: what was handled is acknowledged, what was not comes again at the next start."""
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        self._acknowledge()
        if self._armed and self._lane.connection is not None:
            self._end_read()
            try:
                async with asyncio.timeout(2.0):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("the read of topic %s did not end; its entries come again at the next start", self.topic)
        await self._lane.close()

    def _end_read(self) -> None:
        """Release the blocking read. Two connections: the request may overtake the read, and is repeated then."""
        if not self._armed:
            return

        def answered(reply: Any) -> None:
            if reply == 0:
                asyncio.get_running_loop().call_later(0.001, self._end_read)

        self._outbox.submit(pack(("CLIENT", "UNBLOCK", self._lane.client_id)), answered)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Record]:
        return self._records()

    def statistics(self) -> dict[str, Any]:
        """What is read ahead, and what could not be read."""
        return {
            "topic": self.topic,
            "waiting": len(self._queue),
            "lost": self.lost,
            "invalid": self.invalid,
            **self._lane.statistics(),
        }

    async def _records(self) -> AsyncIterator[Record]:
        await self.open()
        try:
            while (taken := await self._next()) is not None:
                entry, record = taken
                yield record
                self._done(entry)
        finally:
            await self.aclose()

    async def batches(self, most: int = 64) -> AsyncIterator[list[Record]]:
        """The records in lists: what is there at one moment, ``most`` at the very most.

        All records of a list are acknowledged when the next list is asked for.
        """
        await self.open()
        try:
            while (taken := await self._next()) is not None:
                batch = [taken]
                while len(batch) < most and self._queue and (more := await self._next()) is not None:
                    batch.append(more)
                yield [record for _, record in batch]
                for entry, _ in batch:
                    self._done(entry)
        finally:
            await self.aclose()

    async def _next(self) -> tuple[bytes, Record] | None:
        while True:
            while self._queue and not self._closed:
                entry, fields = self._queue.popleft()
                if not self._armed and len(self._queue) < self._options.window // 2:
                    self._arm()
                try:
                    record = await self._decode(entry, fields)
                except RecordInvalid as error:
                    # it stays in the topic, is counted and shown, and is no obstacle to those behind it
                    self.invalid += 1
                    log.warning("entry %s of topic %s is not a record: %s", entry.decode(), self.topic, error)
                    self._done(entry)
                    continue
                if record is not None:
                    return entry, record
                self._done(entry)
            if self._closed:
                return None
            self._arm()
            self._arrived.clear()
            await self._arrived.wait()

    async def _decode(self, entry: bytes, fields: list[bytes]) -> Record | None:
        """The record of an entry; None when it is not of a type that is wanted."""
        if not is_compact(fields):
            record = Record.from_fields(fields, stream_id=entry.decode())
            return record if self._wants(record.type) else None
        declared = self._declared
        if declared.outdated(entry.decode(), fields) or declared.form is None:
            declared.form = await self._declaration()
        if self._messages is not None and not self._wants(declared.form.type_of(fields)):
            return None
        return declared.form.decode(entry.decode(), fields)

    def _wants(self, record_type: str) -> bool:
        wanted = self._messages
        return wanted is None or record_type in wanted or record_type.rpartition(".")[2] in wanted

    async def _declaration(self) -> CompactForm:
        while True:
            try:
                flat = await self._outbox.call("HGETALL", self._form_key)
            except BusUnavailable as error:
                if self._closed:
                    raise
                log.info("the form of topic %s cannot be read yet: %s", self.topic, error)
            else:
                return CompactForm.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))

    def _done(self, entry: bytes) -> None:
        if not self._handled:
            self._outbox.at_tick_end(self._acknowledge)
        self._handled.append(entry)
        self._held.discard(entry)

    def _acknowledge(self) -> None:
        handled, self._handled = self._handled, []
        if handled:
            self._outbox.submit(pack(("XACK", self._stream, self.group, *handled)), self._acknowledged)

    def _acknowledged(self, reply: Any) -> None:
        if isinstance(reply, BaseException):
            log.warning("acknowledgements on topic %s were not confirmed: %s", self.topic, reply)

    async def _prepare(self, connection: Connection) -> None:
        try:
            await self._drain(connection)
        except ServerError as error:
            if error.prefix != "NOGROUP":
                raise
            start = self._checkpoint or await self._first_id(connection)
            await connection.call("XGROUP", "CREATE", self._stream, self.group, start, "MKSTREAM")

    async def _drain(self, connection: Connection) -> None:
        after: bytes = b"0"
        while True:
            head = ("XREADGROUP", "GROUP", self.group, CONSUMER, "COUNT", 100, "STREAMS")
            reply = await connection.call(*head, self._stream, after)
            if not reply or not reply[0][1]:
                return
            self._take(reply[0][1])
            after = reply[0][1][-1][0]

    async def _first_id(self, connection: Connection) -> bytes:
        if self._start == "oldest":
            return b"0"
        if self._start != "new":
            return self._start.encode()
        rows = await connection.call("XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        return bytes(rows[0][0]) if rows else b"0"

    def _take(self, entries: list[tuple[bytes, list[bytes] | None]]) -> None:
        for entry, fields in entries:
            if entry in self._held:
                continue
            if fields is None:
                self.lost += 1
                self._done(entry)
                continue
            self._held.add(entry)
            self._queue.append((entry, fields))
        self._arrived.set()

    def _arm(self) -> None:
        connection = self._lane.connection
        window = self._options.window
        if connection is None or self._armed or self._closed or len(self._queue) >= window // 2:
            return
        self._armed = True
        self._idle.clear()
        head = ("XREADGROUP", "GROUP", self.group, CONSUMER, "COUNT", window, "BLOCK", int(self._options.block * 1000))
        connection.send(pack((*head, "STREAMS", self._stream, ">")), self._on_reply)

    def _on_reply(self, reply: Any) -> None:
        self._armed = False
        self._idle.set()
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            self._lane.restart(reply)
            return
        if reply:
            entries = reply[0][1]
            self._take(entries)
            self._checkpoint = entries[-1][0]
        self._arm()

    def _lost_connection(self) -> None:
        self._armed = False
        self._idle.set()
