"""From the bus to one application that lives on plain keys: its inbox is consumed on its behalf.

    inbox by priority, and replies  ->  one script: into queue:<app>:inbox  ->  PUBLISH channel:<app>  ->  acknowledge

The queue and the bus's streams may lie in different slots, so writing and acknowledging are two steps, and not atomic.
But the script notes beside the queue, in the same slot and the same step, what it has put there: after a crash between
the two steps the record comes again, is found to have been handed over, and is only acknowledged. A reply needs no
acknowledgement; how far they were handed over is a cursor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.daemon.bus.handlers import HANDED_OVER, HandedOver
from petalbus.daemon.services.plain_forms import PLAIN, VIA
from petalbus.daemon.services.plain_inward import copy_to_outbox, cursors_key, know_replies, note
from petalbus.schemas.convert.communication import CommunicationMessage, MessagePriority, from_record
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority, ReplyKind

if TYPE_CHECKING:
    from petalbus.daemon.bus.outbox import Outbox
    from petalbus.daemon.services.plain import PlainOptions

log = logging.getLogger("petalbus.services")

REMEMBER: Final = 2000
"""Messages handed over last that are remembered beside the queue. Only those not acknowledged yet matter: a few."""

ATTEMPTS: Final = 1_000_000
"""A message is not given up because the server or this service was restarted while it was being handed over."""

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_REPLIES_AT_ONCE: Final = 64
_EXPIRED: Final = "DEADLINE_EXPIRED"


class Relay:
    """Hands over what is for one application. ``outbox``: the service's command lane."""

    def __init__(self, bus: Bus, outbox: Outbox, app: str, options: PlainOptions, counts: Counter[str]) -> None:
        self.app = app
        self._keys = bus.keys
        self._outbox = outbox
        self._options = options
        self._counts = counts
        self._clock = bus.clock
        self._cursors = cursors_key(bus.keys)
        self._arrived = asyncio.Event()
        self._full = False
        self._deadlines: dict[str, tuple[float, bytes, str]] = {}
        self._replying: asyncio.Task[None] | None = None
        self._reached: bytes | None = None
        self._client = Bus(
            bus.url, app=app, bus=bus.keys.bus, options=replace(bus.options, stop_grace=0.3, presence=False)
        )
        self._client.on("*", redelivery="rerun", concurrency=1, max_attempts=ATTEMPTS)(self._hand_over)
        self._client.on_other_reply(lambda _record: self._arrived.set())

    async def start(self) -> None:
        """Begin, with what waits already. Raises BusUnavailable."""
        await know_replies(self._outbox, self._keys, self.app)
        await self._find_deadlines()
        await self._client.start()
        self._replying = asyncio.create_task(self._hand_replies(), name=f"petalbus-plain-replies-{self.app}")

    async def close(self) -> None:
        """End in order. What was not handed over waits on the bus."""
        if self._replying is not None:
            self._replying.cancel()
            await asyncio.gather(self._replying, return_exceptions=True)
        await self._client.close()

    async def look(self) -> None:
        """What is due now and then: replies whose notice was lost, and messages whose time is up. Raises BusError."""
        self._arrived.set()
        now = time.monotonic()
        for message_id, (end, member, sender) in list(self._deadlines.items()):
            if end <= now:
                del self._deadlines[message_id]
                if await self._outbox.ask("ZREM", plain.inbox(self.app), member):
                    await self._tell_expired(message_id, sender)

    @property
    def consumer(self) -> str:
        """The name under which it consumes, as it is in the heartbeats."""
        own = self._client.statistics()["consumer"]
        return str(own["consumer"]) if own is not None else ""

    def statistics(self) -> dict[str, Any]:
        """Whether the application's queue is full, and how many messages there have a time limit."""
        return {"full": self._full, "limited": len(self._deadlines)}

    # -- messages -----------------------------------------------------------------------------------------------------

    async def _hand_over(self, record: Record) -> HandedOver:
        try:
            message = from_record(record, carry=False)
        except RecordInvalid as error:
            text = f"{self.app} lives on plain keys, where messages are JSON: {error}"
            raise HandlerError(text, error_code="NOT_JSON", dead=True) from error
        await self._hand(f"{int(record.priority)}:{record.stream_id}", message, lambda: self._too_late(record))
        if record.deadline is not None:
            left = (record.deadline - self._clock.now_ns()) / 1e9
            self._limit(message, left)
            if len(self._deadlines) > 4 * self._options.ceiling:
                self._deadlines.clear()  # most were taken long ago: only what still lies there counts
                await self._find_deadlines()
        return HANDED_OVER

    def _too_late(self, record: Record) -> bool:
        return record.expired(self._clock.now_ns(), self._clock.boot_id)

    async def _hand(self, name: str, message: CommunicationMessage, too_late: Callable[[], bool]) -> None:
        """Put a message into the queue, once for its ``name``, as soon as there is room."""
        member = message.to_json().encode()
        key = plain.message(message.id)
        fields = {
            "sender": message.sender,
            "recipient": message.recipient,
            "timestamp": str(message.timestamp),
            "type": message.message_type,
        }
        await note(self._outbox, key, fields, self._options)
        try:
            await self._outbox.ask("HSETNX", key, "status", "pending")  # not over what the application has written
        except ServerError as error:
            log.debug("%s cannot be written: %s", key, error)
        pause = _FIRST_PAUSE
        while not await self._put(name, member, message.priority):
            if too_late():
                raise HandlerError(f"its deadline passed while it waited for room at {self.app}", error_code=_EXPIRED)
            await asyncio.sleep(pause)  # the application tells nobody that it has taken something
            pause = min(_LONGEST_PAUSE, pause * 2)
        self._counts["handed"] += 1
        await self._outbox.ask("PUBLISH", plain.channel(self.app), f"new_message:{message.id}")
        await copy_to_outbox(self._outbox, message.sender, member, message.timestamp, self._options)

    async def _put(self, name: str, member: bytes, priority: MessagePriority) -> bool:
        """False when there is no room now: the queue or the server is full, or the server is away."""
        # what is urgent has as much room again for itself: a line of samples must not keep it out
        ceiling = self._options.ceiling * (2 if priority is MessagePriority.CRITICAL else 1)
        keys = [plain.inbox(self.app), plain.handed(self.app)]
        problem = f"it holds {ceiling} messages"
        try:
            answer = await self._outbox.run("plain_hand", keys, [name, member, int(priority), ceiling, REMEMBER])
            put = bool(answer != -1)
        except (BusError, ServerError) as error:
            put, problem = False, str(error)
        if put is self._full:
            self._full = not put
            if not put:
                log.warning("%s waits on the bus: nothing can be put into %s: %s", self.app, keys[0], problem)
        return put

    # -- replies ------------------------------------------------------------------------------------------------------

    async def _hand_replies(self) -> None:
        while True:
            try:
                if not await self._hand_some_replies():
                    await self._arrived.wait()
            except (BusError, ServerError) as error:
                log.warning("replies to %s wait: %s", self.app, error)
                await asyncio.sleep(_LONGEST_PAUSE)

    async def _hand_some_replies(self) -> int:
        self._arrived.clear()
        cursor = await self._cursor()
        stream = self._keys.replies(self.app)
        rows = await self._outbox.ask("XRANGE", stream, f"({cursor}", "+", "COUNT", _REPLIES_AT_ONCE)
        for entry, fields in rows:
            message = self._reply(entry, fields)
            if message is not None:
                await self._hand(f"reply:{entry.decode()}", message, lambda: False)
            await self._outbox.ask("HSET", self._cursors, self.app, entry)
            self._reached = bytes(entry)
        return len(rows)

    async def _cursor(self) -> str:
        """How far replies were handed over. A server that has forgotten it is told again."""
        stored = await self._outbox.ask("HGET", self._cursors, self.app)
        if stored is None and self._reached is not None:
            await self._outbox.ask("HSET", self._cursors, self.app, self._reached)
            stored = self._reached
        elif stored is None:
            await know_replies(self._outbox, self._keys, self.app)
            stored = await self._outbox.ask("HGET", self._cursors, self.app)
        self._reached = bytes(stored)
        return self._reached.decode()

    def _reply(self, entry: bytes, fields: list[bytes]) -> CommunicationMessage | None:
        """A final reply as a message; others have no place in the plain form."""
        try:
            record = Record.from_fields(fields, stream_id=entry.decode())
            if record.kind is None or not record.kind.final:
                return None
            message = from_record(record, carry=False)
        except RecordInvalid as error:
            log.warning("reply %s to %s cannot be handed over: %s", entry.decode(), self.app, error)
            self._counts["invalid"] += 1
            return None
        message.priority = max(message.priority, MessagePriority.HIGH)  # somebody waits for it
        return message

    # -- time limits --------------------------------------------------------------------------------------------------

    def _limit(self, message: CommunicationMessage, left: float) -> None:
        self._deadlines[message.id] = (time.monotonic() + left, message.to_json().encode(), message.sender)

    async def _find_deadlines(self) -> None:
        """After a start: a command that waits in the queue must not be taken when it is too late for it."""
        try:
            members = await self._outbox.ask("ZRANGE", plain.inbox(self.app), 0, 2 * self._options.ceiling)
        except ServerError as error:
            log.warning("%s cannot be read: %s", plain.inbox(self.app), error)
            return
        now = time.time()
        for member in members:
            try:
                message = CommunicationMessage.from_json(member)
            except RecordInvalid:
                continue  # another program's own
            if message.timeout is not None:
                end = time.monotonic() + message.timestamp + message.timeout - now
                self._deadlines[message.id] = (end, member, message.sender)

    async def _tell_expired(self, message_id: str, sender: str) -> None:
        self._counts["expired"] += 1
        text = f"the deadline passed before {self.app} took the message; it was taken away"
        data = {"status": "error", "success": False, "error_code": _EXPIRED, "error": text, "message": text}
        fields: dict[bytes, bytes] = {
            b"id": new_id().encode(),
            b"type": b"response",
            b"source": self.app.encode(),
            b"recipient": sender.encode(),
            b"reply_to": bus_id(message_id).encode(),
            b"kind": ReplyKind.ERROR.encode(),
            b"priority": b"%d" % Priority.HIGH,
            b"data": encode_json(data),
            VIA: PLAIN,
        }
        await self._outbox.call("XADD", self._keys.ingest, "*", *(part for item in fields.items() for part in item))
        await note(self._outbox, plain.message(message_id), {"status": "timeout"}, self._options)
