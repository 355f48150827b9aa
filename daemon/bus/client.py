"""The client: one application's connection to the bus.

    send/request/publish -> envelope -> outbox -> server -> reader -> scheduler -> runner -> committer -> server -> replies
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from petalbus.daemon.bus.consumer import Consumer, consumer_name
from petalbus.daemon.bus.dead import DeadLetters
from petalbus.daemon.bus.envelope import Route, bulk, checked_id, payload, record_item
from petalbus.daemon.bus.errors import BusError, IdConflict, RateLimited, RequestTimeout
from petalbus.daemon.bus.handlers import Handler, HandlerFunction, Redelivery, Registry
from petalbus.daemon.bus.heartbeat import Heartbeat
from petalbus.daemon.bus.keys import Keys, checked_name
from petalbus.daemon.bus.messages import Known, Messages
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.presence import Application, Presence
from petalbus.daemon.bus.ratelimit import TokenBucket
from petalbus.daemon.bus.requests import OnProgress, ReplyLane
from petalbus.daemon.bus.subscription import Subscription
from petalbus.daemon.bus.url import parse
from petalbus.schemas.compact import CompactEntry, CompactForm
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import boot_clock_ns, new_id
from petalbus.schemas.vocabulary import Priority, Status

log = logging.getLogger("petalbus.bus")

F = TypeVar("F", bound=HandlerFunction)
_MAX_ROUTES = 4096


class Receipt(NamedTuple):
    """The record is stored. ``duplicate``: it was stored before, and ``stream_id`` is the first one's.

    ``durability`` is what the server promises for it: ``everysec`` (kill -9 of anything loses nothing, a power cut up to
    about two seconds) or ``always``.
    """

    stream_id: str
    id: str
    duplicate: bool
    durability: str


class Bus:
    """A client of the bus for the application ``app``; an asynchronous context manager.

    Everything is keyword-only beyond the obvious. Durations are seconds of monotonic time.
    """

    def __init__(self, url: str, *, app: str, bus: str = "petalbus", options: BusOptions | None = None) -> None:
        self.app = checked_name(app, what="app")
        self.url = url
        self.keys = Keys(bus)
        self.options = options or BusOptions()
        self.address = parse(url)
        self._registry = Registry()
        self._routes: dict[tuple[str, str, int], Route] = {}
        self._topics: dict[tuple[str, str], Route] = {}
        self._declared: set[str] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._consumer: Consumer | None = None
        self._consuming: asyncio.Task[None] | None = None
        self._heartbeat: Heartbeat | None = None
        self._fetching: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._room = asyncio.Event()
        self._started = False
        rate = self.options.telemetry_rate
        self._telemetry = TokenBucket(rate, now=time.monotonic()) if rate is not None else None

    async def __aenter__(self) -> Bus:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises BusUnavailable when the server cannot be reached, ServerRefused when it cannot carry the bus."""
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self.address, self.keys, self.options)
        self._replies = ReplyLane(
            self.app,
            address=self.address,
            keys=self.keys,
            outbox=self._outbox,
            options=self.options,
            on_cancel=self._cancel_here,
        )
        self._presence = Presence(self.keys, self._outbox, self.options)
        self.messages = Messages(self.keys, self._outbox, self.options, app=self.app)
        self.dead = DeadLetters(self.keys, self._outbox)
        self._outbox.lane.start()
        try:
            await self._outbox.lane.wait_live(self.options.connect_timeout)
        except BaseException:
            await self._outbox.close()
            raise
        self._started = True
        if len(self._registry):
            await self.listen()
        elif self.options.presence:
            await self._be_present()

    async def close(self) -> None:
        """Stop in order: consuming, subscriptions, replies, then the command lane."""
        if not self._started:
            return
        self._started = False
        if self._consuming is not None:
            await asyncio.gather(self._consuming, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()
        for subscription in list(self._subscriptions.values()):
            await subscription.aclose()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            await self._outbox.call("HDEL", self.keys.beats, self._heartbeat.field)
        if (self._consumer or self._heartbeat) is not None and self._outbox.lane.connection is not None:
            await self.messages.say_goodbye()
        await self._replies.lane.close()
        await self._outbox.close()

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send(
        self,
        recipient: str,
        type: str,
        data: Any,
        *,
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        deadline: float | None = None,
        key: str | None = None,
        content_type: str | None = None,
        traceparent: str | None = None,
    ) -> Receipt:
        """Append a record to an application's inbox, once per ``id`` (made here when not given).

        ``deadline``: seconds from now after which it must not run. ``key``: records of one key are handled in order, in
        place of all records of one source. Raises RecordInvalid, IdConflict, BusFull, QueueFull, RateLimited or
        BusUnavailable (OutcomeUnknown: sending it again with the same id is safe).
        """
        message_id = new_id() if id is None else checked_id(id)
        extra = _extra(deadline, key, traceparent)
        if type == "telemetry" and self._telemetry is not None and not self._telemetry.take(time.monotonic()):
            raise RateLimited(f"{self.app} may send {self._telemetry.rate:g} telemetry records a second; not stored")
        if self._in_flight >= self.options.max_in_flight:
            await self._wait_for_room()
        self._in_flight += 1
        try:
            answer = await self._append(self._route(recipient, type, priority), message_id, data, content_type, extra)
        finally:
            self._in_flight -= 1
            self._room.set()
        return self._receipt(message_id, answer, recipient, priority)

    async def send_many(self, records: Sequence[Record]) -> list[Receipt]:
        """Append complete records as they are, in one batch per stream; each must name a recipient.

        Raises RecordInvalid before anything is sent; later errors as ``send``, for the first record that fails.
        """
        for record in records:
            if record.recipient is None:
                raise RecordInvalid("recipient", f"is missing in record {record.id!r}")
        futures = []
        for record in records:
            count, packed = record_item(record)
            stream = self.keys.inbox(str(record.recipient), record.priority)
            futures.append(self._outbox.append(stream, count, packed))
        answers = await asyncio.gather(*futures)
        return [
            self._receipt(record.id, answer, record.recipient, record.priority, source=record.source)
            for record, answer in zip(records, answers, strict=True)
        ]

    async def request(
        self,
        recipient: str,
        type: str,
        data: Any,
        *,
        timeout: float = 5.0,
        priority: Priority | int = Priority.NORMAL,
        id: str | None = None,
        key: str | None = None,
        content_type: str | None = None,
        traceparent: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Record:
        """Send a record and wait for its result. It does not run any more once ``timeout`` seconds have passed.

        Asking again with the same ``id``, also from a restarted program, waits for the reply to the first one. Raises
        ReplyError, RequestCancelled, RequestTimeout, and what ``send`` raises.
        """
        if self._replies.lane.connection is None:
            if not self._replies.lane.started:
                self._replies.lane.start()
            await self._replies.lane.wait_live(self.options.connect_timeout)
        message_id = new_id() if id is None else checked_id(id)
        extra = _extra(timeout, key, traceparent)
        extra[b"wants_reply"] = b"1"
        waiting = self._replies.expect(message_id, on_progress, timeout)
        try:
            self._append_request(self._route(recipient, type, priority), message_id, data, content_type, extra)
            return await waiting.future
        except RequestTimeout:
            text = await self.messages.why_no_reply(recipient, message_id, timeout)
            raise RequestTimeout(text, message_id=message_id) from None
        finally:
            self._replies.forget(message_id)

    async def publish(
        self, topic: str, type: str, data: Any, *, content_type: str | None = None, traceparent: str | None = None
    ) -> Receipt:
        """Append a record to a topic for every subscriber; no deduplication, so it is never repeated.

        Raises RecordInvalid, BusFull, RateLimited, BusUnavailable (OutcomeUnknown: it may be stored).
        """
        route = self._topics.get((topic, type))
        if route is None:
            route = Route(self.keys.topic(checked_name(topic, what="topic")), type, self.app)
            if len(self._topics) < _MAX_ROUTES:
                self._topics[(topic, type)] = route
        if type == "telemetry" and self._telemetry is not None and not self._telemetry.take(time.monotonic()):
            raise RateLimited(f"{self.app} may send {self._telemetry.rate:g} telemetry records a second; not stored")
        extra = {} if traceparent is None else {b"traceparent": traceparent.encode()}
        body = payload(type, data, content_type, extra, self.options.compress_over, self.options.compression)
        message_id = new_id()
        if self._in_flight >= self.options.max_in_flight:
            await self._wait_for_room()
        self._in_flight += 1
        try:
            answer = await self._outbox.add(route.request(message_id.encode(), body, extra))
        finally:
            self._in_flight -= 1
            self._room.set()
        return Receipt(answer.decode(), message_id, False, self.options.durability)

    async def publish_compact(self, form: CompactForm, entries: Iterable[CompactEntry]) -> list[str]:
        """Append entries to a compact topic in one write; returns their stream ids. Errors as ``publish``."""
        if form.topic not in self._declared:
            checked_name(form.topic, what="topic")
            stored = [part for item in form.to_hash().items() for part in item]
            await self._outbox.call("HSET", self.keys.form(form.topic), *stored)
            self._declared.add(form.topic)
        stream = bulk(self.keys.topic(form.topic).encode())
        futures = [
            self._outbox.add(b"*9\r\n$4\r\nXADD\r\n%b$1\r\n*\r\n%b" % (stream, b"".join(map(bulk, entry.to_fields()))))
            for entry in entries
        ]
        return [answer.decode() for answer in await asyncio.gather(*futures)]

    async def broadcast(self, type: str, data: Any) -> Receipt:
        """Publish to every application: the topic ``broadcast``."""
        return await self.publish("broadcast", type, data)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def on(
        self,
        type: str,
        *,
        redelivery: Redelivery = "rerun",
        concurrency: int | None = 1,
        max_attempts: int | None = None,
    ) -> Callable[[F], F]:
        """Decorator: handle records of ``type`` (``*``: of every type without a handler) from this app's inbox.

        ``redelivery`` declares what a second delivery after a crash means: ``rerun`` (the work is idempotent) or
        ``report`` (never run twice: answer that the outcome is unknown). Consuming starts by itself.
        """

        def register(function: F) -> F:
            attempts = max_attempts or self.options.max_attempts
            if self._consumer is not None:
                self._consumer.handlers_changed()
            self._registry.add(
                Handler.of(
                    function, record_type=type, redelivery=redelivery, concurrency=concurrency, max_attempts=attempts
                )
            )
            if self._started and self._consuming is None:
                self._consuming = asyncio.create_task(self._consume(), name=f"petalbus-consume-{self.app}")
            return function

        return register

    def off(self, type: str) -> bool:
        """Remove the handler of ``type``; False when there was none."""
        return self._registry.remove(type)

    async def listen(self) -> None:
        """Wait until this client consumes its inbox. Raises BusUnavailable."""
        if self._consuming is None:
            self._consuming = asyncio.create_task(self._consume(), name=f"petalbus-consume-{self.app}")
        await asyncio.shield(self._consuming)

    def subscribe(self, topic: str, *, start: str = "new", name: str | None = None) -> Subscription:
        """The records of a topic. The group is this app's, or ``app.name``: give each further subscription a name.

        ``start``: see Subscription. Use ``async for``; with ``async with`` the group surely exists when the block begins.
        """
        group = self.app if name is None else f"{self.app}.{checked_name(name, what='name')}"
        label = f"{topic} as {group}"
        old = self._subscriptions.get(label)
        if old is not None and not old.closed:
            raise ValueError(f"topic {topic!r} is subscribed by {group!r} already; give this subscription a name")
        subscription = Subscription(
            checked_name(topic, what="topic"),
            group=group,
            start=start,
            address=self.address,
            keys=self.keys,
            outbox=self._outbox,
            options=self.options,
        )
        self._subscriptions[label] = subscription
        return subscription

    # -- looking ------------------------------------------------------------------------------------------------------

    async def applications(self) -> list[Application]:
        """All applications with their status; takes up to four heartbeats."""
        return await self._presence.applications()

    async def status(self, message_id: str) -> Status:
        """Where a message stands."""
        return await self.messages.status(message_id)

    async def cancel(self, message_id: str) -> bool:
        """Cancel a message: at once if nobody has it, else by asking its handler. False when it is settled or unknown."""
        return await self.messages.cancel(message_id)

    async def call(self, *args: bytes | str | int | float) -> Any:
        """Run one plain server command on the command lane, once; for tools."""
        return await self._outbox.call(*args)

    def statistics(self) -> dict[str, Any]:
        """What is under way, and counters."""
        return {
            "app": self.app,
            "in_flight": self._in_flight,
            "repeated": self._outbox.repeated,
            "command": self._outbox.lane.statistics(),
            "requests": len(self._replies.waiting),
            "consumer": self._consumer.statistics() if self._consumer is not None else None,
            "subscriptions": [subscription.statistics() for subscription in self._subscriptions.values()],
            "telemetry_refused": self._telemetry.refused if self._telemetry is not None else 0,
        }

    # -- inside -------------------------------------------------------------------------------------------------------

    def _route(self, recipient: str, record_type: str, priority: Priority | int) -> Route:
        route = self._routes.get((recipient, record_type, priority))
        if route is None:
            level = _level(priority)
            stream = self.keys.inbox(checked_name(recipient, what="recipient"), level)
            route = Route(stream, record_type, self.app, recipient=recipient, priority=level)
            if len(self._routes) < _MAX_ROUTES:
                self._routes[(recipient, record_type, priority)] = route
        return route

    def _append(
        self, route: Route, message_id: str, data: Any, content_type: str | None, extra: dict[bytes, bytes]
    ) -> asyncio.Future[bytes]:
        body = payload(route.type, data, content_type, extra, self.options.compress_over, self.options.compression)
        count, packed = route.item(message_id.encode(), body, extra)
        return self._outbox.append(route.stream, count, packed)

    def _append_request(
        self, route: Route, message_id: str, data: Any, content_type: str | None, extra: dict[bytes, bytes]
    ) -> None:
        """Append, and read the replies: in one write where both connections are idle."""
        body = payload(route.type, data, content_type, extra, self.options.compress_over, self.options.compression)
        count, packed = route.item(message_id.encode(), body, extra)
        beside = self._replies.free_connection
        if beside is not None and self._outbox.idle:
            self._outbox.append_beside(
                route.stream, count, packed, beside, lambda answer: self._stored(answer, message_id, route)
            )
        else:
            stored = self._outbox.append(route.stream, count, packed)
            stored.add_done_callback(lambda done: self._stored(_outcome(done), message_id, route))
        self._replies.arm()

    async def _wait_for_room(self) -> None:
        while self._in_flight >= self.options.max_in_flight:
            self._room.clear()
            await self._room.wait()

    def _receipt(
        self, message_id: str, answer: bytes, recipient: str | None, priority: int, *, source: str | None = None
    ) -> Receipt:
        if answer[:1].isdigit():
            return Receipt(answer.decode(), message_id, False, self.options.durability)
        known = Known.parse(answer)
        if known.claim != (str(int(priority)), recipient, source or self.app):
            level, first, owner = known.claim
            raise IdConflict(
                f"id {message_id!r} was used before by {owner!r} for {first!r} at priority {level}; nothing was stored. "
                "Use a new id for a new message"
            )
        return Receipt(known.entry, message_id, True, self.options.durability)

    def _stored(self, answer: bytes | BaseException, message_id: str, route: Route) -> None:
        """A request's own receipt: an error ends the wait; a repetition may have its reply already."""
        if isinstance(answer, bytes) and answer[:1].isdigit():
            return
        waiting = self._replies.waiting.get(message_id)
        if waiting is None or waiting.future.done():
            return
        if isinstance(answer, BaseException):
            waiting.future.set_exception(answer)
            return
        try:
            self._receipt(message_id, answer, route.recipient, route.priority or 0)
        except IdConflict as conflict:
            waiting.future.set_exception(conflict)
            return
        if Known.parse(answer).state.final:
            task = self._loop.create_task(self._fetch_reply(message_id, waiting.future), name="petalbus-fetch-reply")
            self._fetching.add(task)
            task.add_done_callback(self._fetching.discard)

    async def _fetch_reply(self, message_id: str, future: asyncio.Future[Record]) -> None:
        try:
            reply = await self._replies.find(message_id)
        except (BusError, RecordInvalid) as error:
            if not future.done():
                future.set_exception(error)
            return
        if reply is not None:
            self._replies.take(reply)
        elif not future.done():
            text = f"message {message_id!r} was settled before, and its reply is not kept any more"
            future.set_exception(BusError(text))

    async def _consume(self) -> None:
        # one turn of the loop later, so that handlers registered one after the other are all there
        await asyncio.sleep(0)
        consumer = Consumer(
            self.app,
            address=self.address,
            keys=self.keys,
            outbox=self._outbox,
            registry=self._registry,
            options=self.options,
        )
        await consumer.start()
        self._consumer = consumer
        self._replies.always = True
        self._replies.arm()
        if not self._replies.lane.started:
            self._replies.lane.start()
        if self._heartbeat is not None:
            self._heartbeat.stop()
            await self._outbox.call("HDEL", self.keys.beats, self._heartbeat.field)
            self._heartbeat = None

    async def _be_present(self) -> None:
        name = consumer_name(self.app)
        self._heartbeat = Heartbeat(
            self.address, keys=self.keys, app=self.app, name=name, period=self.options.heartbeat
        )
        await self._outbox.run("beat", *self._heartbeat.arguments())
        self._heartbeat.start()

    def _cancel_here(self, message_id: str) -> None:
        if self._consumer is not None:
            self._consumer.cancel(message_id)


def _extra(deadline: float | None, key: str | None, traceparent: str | None) -> dict[bytes, bytes]:
    extra: dict[bytes, bytes] = {}
    if deadline is not None:
        if not 0 < deadline < 366 * 86_400:
            raise RecordInvalid("deadline", f"{deadline!r} s from now is no deadline", limit="more than 0, under a year")
        extra[b"deadline"] = b"%d" % (boot_clock_ns() + int(deadline * 1e9))
    if key is not None:
        if not 0 < len(key) <= 128:
            raise RecordInvalid("key", f"has {len(key)} characters", limit="1 to 128")
        extra[b"key"] = key.encode()
    if traceparent is not None:
        extra[b"traceparent"] = traceparent.encode()
    return extra


def _level(priority: Priority | int) -> Priority:
    try:
        return Priority(priority)
    except ValueError:
        raise RecordInvalid("priority", f"{priority!r} is not a priority", limit="1 (low) to 4 (critical)") from None


def _outcome(done: asyncio.Future[bytes]) -> bytes | BaseException:
    if done.cancelled():
        return BusError("sending was cancelled")
    return done.exception() or done.result()
