"""Requests that wait for replies, and the lane on which replies and cancellations arrive.

One blocking XREAD over the app's reply stream and its control stream is armed all the time. Replies
are found by ``reply_to``. After every reconnect each waiting request is looked up once, so that no
reply is missed, whoever restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown, ReplyError, RequestCancelled, RequestTimeout
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.lane import Lane
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.url import Address
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind

log = logging.getLogger("petalbus.bus")

EXPIRY = 0.05
"""Seconds between two looks at requests whose time may be up."""

OnProgress = Callable[[Record], None]
OnReply = Callable[[Record], object]


class Waiting:
    """One request that waits: its future, who hears of progress, and the monotonic time at which it gives up."""

    __slots__ = ("end", "future", "on_progress")

    def __init__(self, future: asyncio.Future[Record], on_progress: OnProgress | None, end: float) -> None:
        self.future = future
        self.on_progress = on_progress
        self.end = end


class ReplyLane:
    """Receives the replies of one app.

    ``on_cancel`` is called with the id of a message that shall be cancelled, ``on_other`` with each final reply that
    nobody waits for.
    """

    def __init__(
        self, app: str, *, address: Address, keys: Keys, outbox: Outbox, options: BusOptions,
        on_cancel: Callable[[str], object], on_other: OnReply,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._outbox = outbox
        self._on_cancel = on_cancel
        self._on_other = on_other
        self._streams = {keys.replies(app).encode(): b"", keys.control(app).encode(): b""}
        self._replies = keys.replies(app)
        self._name = self._replies.encode()
        self._block = int(options.block * 1000)
        self._loop = asyncio.get_running_loop()
        self._armed = False
        self._reconciling: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.always = False
        self.waiting: dict[str, Waiting] = {}
        self.lane = Lane(
            f"{app}-replies",
            address,
            prepare=self._prepare,
            on_live=self._on_live,
            connect_timeout=options.connect_timeout,
            patience=options.block + options.patience,
        )

    def expect(self, message_id: str, on_progress: OnProgress | None, timeout: float) -> Waiting:
        """Wait for the replies to a message that is about to be sent. Raises ValueError when it is waited for already.

        After ``timeout`` seconds, give or take EXPIRY, the future raises RequestTimeout.
        """
        if message_id in self.waiting:
            raise ValueError(f"request {message_id!r} is waiting for its reply already")
        end = time.monotonic() + timeout
        waiting = self.waiting[message_id] = Waiting(self._loop.create_future(), on_progress, end)
        if self._expiry is None:
            self._expiry = self._loop.call_later(min(timeout, EXPIRY), self._expire)
        return waiting

    def _expire(self) -> None:
        # one timer for all: a timer of its own would cost every request more than its deadline is worth
        now = time.monotonic()
        left = EXPIRY
        for message_id, waiting in self.waiting.items():
            if waiting.future.done():
                continue
            if waiting.end <= now:
                waiting.future.set_exception(RequestTimeout("no reply in time", message_id=message_id))
            else:
                left = min(left, waiting.end - now)
        self._expiry = self._loop.call_later(left, self._expire) if self.waiting else None

    @property
    def free_connection(self) -> Connection | None:
        """The connection, while no read is under way on it."""
        return None if self._armed else self.lane.connection

    def arm(self) -> None:
        """Read the next replies. Without a consumer in this process nobody reads while nobody waits."""
        connection = self.lane.connection
        if connection is None or self._armed or not (self.waiting or self.always):
            return
        self._armed = True
        # only a consumer can be asked to cancel something
        streams = self._streams if self.always else {self._name: self._streams[self._name]}
        request = ("XREAD", "COUNT", 256, "BLOCK", self._block, "STREAMS", *streams.keys(), *streams.values())
        connection.send(pack(request), self._on_reply, more=True)
        connection.flush()

    def forget(self, message_id: str) -> None:
        """Stop waiting."""
        self.waiting.pop(message_id, None)

    async def find(self, message_id: str) -> Record | None:
        """The final reply to a message that was settled earlier, if it is still kept."""
        known = await self._outbox.ask("HGET", self._keys.ids, message_id)
        known = known or await self._outbox.ask("HGET", self._keys.ids_before, message_id)
        reply_id = known.rsplit(b"|", 1)[1] if known and known.count(b"|") == 4 else b""
        if not reply_id:
            return None
        rows = await self._outbox.ask("XRANGE", self._replies, reply_id, reply_id)
        if not rows:
            return None
        record = Record.from_fields(rows[0][1], stream_id=reply_id.decode())
        is_its_end = record.reply_to == message_id and record.kind is not None and record.kind.final
        return record if is_its_end else None

    def take(self, record: Record) -> None:
        """Give a reply to whoever waits for it."""
        waiting = self.waiting.get(record.reply_to or "")
        if waiting is None or waiting.future.done():
            if record.kind is not None and record.kind.final:
                self._loop.call_soon(self._on_other, record)
            return
        if record.kind in (ReplyKind.ACCEPTED, ReplyKind.PROGRESS):
            if waiting.on_progress is not None:
                self._loop.call_soon(waiting.on_progress, record)
        elif record.kind is ReplyKind.ERROR:
            waiting.future.set_exception(ReplyError(record))
        elif record.kind is ReplyKind.CANCELLED:
            waiting.future.set_exception(RequestCancelled(record))
        else:
            waiting.future.set_result(record)

    async def _prepare(self, connection: Connection) -> None:
        for stream, seen in self._streams.items():
            if not seen and stream != self._name:
                self._streams[stream] = b"0-0"  # a cancellation from before our start may concern what we will read
            elif not seen:
                rows = await connection.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
                self._streams[stream] = rows[0][0] if rows else b"0-0"

    def _on_live(self, _connection: Connection) -> None:
        self._armed = False
        self.arm()
        if self.waiting:
            self._reconciling = asyncio.create_task(self._reconcile(), name="petalbus-reconcile")

    def _on_reply(self, reply: Any) -> None:
        self._armed = False
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            self.lane.restart(reply)
            return
        for stream, entries in reply or ():
            control = stream != self._name
            for entry, fields in entries:
                if control:
                    self._on_cancel(fields[1].decode("ascii", "replace"))
                else:
                    self._take_entry(entry, fields)
            self._streams[stream] = entries[-1][0]
        if self.always or self.waiting:
            self._loop.call_soon(self.arm)

    def _take_entry(self, entry: bytes, fields: list[bytes]) -> None:
        try:
            self.take(Record.from_fields(fields, stream_id=entry.decode()))
        except RecordInvalid as error:
            log.warning("reply %s in %s is not a record: %s", entry.decode(), self._replies, error)

    async def _reconcile(self) -> None:
        for message_id in list(self.waiting):
            try:
                reply = await self.find(message_id)
            except (OutcomeUnknown, ServerError, RecordInvalid) as error:
                log.debug("reply to %s cannot be looked up: %s", message_id, error)
                continue
            if reply is not None:
                self.take(reply)
