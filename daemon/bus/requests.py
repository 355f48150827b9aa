"""Requests that wait for replies, and the lane on which replies and cancellations arrive.

One blocking XREAD over the app's reply stream and its control stream is armed all the time. Replies are found by
``reply_to``. After every reconnect each waiting request is looked up once, so that no reply is missed, whoever restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown, ReplyError, RequestCancelled
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.lane import Lane
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.url import Address
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind

log = logging.getLogger("petalbus.bus")

OnProgress = Callable[[Record], None]


class Waiting:
    """One request that waits: its future, who wants to hear of progress, and its timer."""

    __slots__ = ("future", "on_progress", "timer")

    def __init__(self, future: asyncio.Future[Record], on_progress: OnProgress | None) -> None:
        self.future = future
        self.on_progress = on_progress
        self.timer: asyncio.TimerHandle | None = None


class ReplyLane:
    """Receives the replies of one app. ``on_cancel`` is called with the id of a message that shall be cancelled."""

    def __init__(
        self, app: str, *, address: Address, keys: Keys, outbox: Outbox, options: BusOptions,
        on_cancel: Callable[[str], object],
    ) -> None:  # fmt: skip
        self._keys = keys
        self._outbox = outbox
        self._on_cancel = on_cancel
        self._streams = {keys.replies(app).encode(): b"", keys.control(app).encode(): b""}
        self._replies = keys.replies(app)
        self._block = int(options.block * 1000)
        self._loop = asyncio.get_running_loop()
        self.waiting: dict[str, Waiting] = {}
        self.lane = Lane(
            f"{app}-replies",
            address,
            prepare=self._prepare,
            on_live=self._on_live,
            connect_timeout=options.connect_timeout,
            patience=options.block + options.patience,
        )

    def expect(self, message_id: str, on_progress: OnProgress | None) -> Waiting:
        """Wait for the replies to a message that is about to be sent. Raises ValueError when it is waited for already."""
        if message_id in self.waiting:
            raise ValueError(f"request {message_id!r} is waiting for its reply already")
        waiting = self.waiting[message_id] = Waiting(self._loop.create_future(), on_progress)
        return waiting

    def forget(self, message_id: str) -> None:
        """Stop waiting."""
        waiting = self.waiting.pop(message_id, None)
        if waiting is not None and waiting.timer is not None:
            waiting.timer.cancel()

    async def find(self, message_id: str) -> Record | None:
        """The final reply to a message that was settled earlier, if it is still kept."""
        known = await self._outbox.call("HGET", self._keys.ids, message_id)
        known = known or await self._outbox.call("HGET", self._keys.ids_before, message_id)
        return await self.final_reply(known) if known else None

    async def final_reply(self, known: bytes) -> Record | None:
        """The final reply named by what the id window knows, if it is still kept."""
        reply_id = known.rsplit(b"|", 1)[1] if known.count(b"|") == 4 else b""
        if not reply_id:
            return None
        rows = await self._outbox.call("XRANGE", self._replies, reply_id, reply_id)
        return Record.from_fields(rows[0][1], stream_id=reply_id.decode()) if rows else None

    def take(self, record: Record) -> None:
        """Give a reply to whoever waits for it."""
        waiting = self.waiting.get(record.reply_to or "")
        if waiting is None or waiting.future.done():
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
            if not seen:
                rows = await connection.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
                self._streams[stream] = rows[0][0] if rows else b"0-0"

    def _on_live(self, connection: Connection) -> None:
        self._arm(connection)
        if self.waiting:
            asyncio.create_task(self._reconcile(), name="petalbus-reconcile")

    def _arm(self, connection: Connection) -> None:
        names = self._streams.keys()
        request = ("XREAD", "COUNT", 256, "BLOCK", self._block, "STREAMS", *names, *self._streams.values())
        connection.send(pack(request), self._on_reply)

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            self.lane.restart(reply)
            return
        for stream, entries in reply or ():
            control = stream != self._replies.encode()
            for entry, fields in entries:
                if control:
                    self._on_cancel(fields[1].decode("ascii", "replace"))
                else:
                    self._take_entry(entry, fields)
            self._streams[stream] = entries[-1][0]
        if self.lane.connection is not None:
            self._arm(self.lane.connection)

    def _take_entry(self, entry: bytes, fields: list[bytes]) -> None:
        try:
            self.take(Record.from_fields(fields, stream_id=entry.decode()))
        except RecordInvalid as error:
            log.error("reply %s in %s is not a record: %s", entry.decode(), self._replies, error)

    async def _reconcile(self) -> None:
        for message_id in list(self.waiting):
            try:
                reply = await self.find(message_id)
            except (OutcomeUnknown, ServerError, RecordInvalid) as error:
                log.debug("reply to %s cannot be looked up: %s", message_id, error)
                continue
            if reply is not None:
                self.take(reply)
