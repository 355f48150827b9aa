"""The sending half of a client: from arguments to a receipt or a reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from petalbus.daemon.bus import durability
from petalbus.daemon.bus.compact import pack_entries
from petalbus.daemon.bus.envelope import Route, checked_id, payload, record_item
from petalbus.daemon.bus.errors import BusError, IdConflict, QueueFull, RateLimited, RequestTimeout
from petalbus.daemon.bus.keys import Keys, checked_name
from petalbus.daemon.bus.messages import Known, Messages
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.ratelimit import TokenBucket
from petalbus.daemon.bus.requests import OnProgress, ReplyLane
from petalbus.schemas.compact import MAX_BOOTS, CompactEntry, CompactForm
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import default_priority
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import Clock, new_id
from petalbus.schemas.vocabulary import Priority

_MAX_ROUTES = 4096
_MANY_IN_FLIGHT = 64
_CONGESTION_LOOK = 0.005
_FIRST = False  # a receipt's ``duplicate``


class Receipt(NamedTuple):
    """The record is stored. ``duplicate``: it was stored before, and ``stream_id`` is the first one's.

    ``durability`` is what the server promises for it. ``everysec``: kill -9 of anything loses nothing, a power cut up
    to about two seconds; ``always``: neither loses anything; ``no``: a power cut loses what the system had not
    written yet; ``memory``: the server writes no append-only file, its end loses everything; ``unknown``: it does not
    tell this user.
    """

    stream_id: str
    id: str
    duplicate: bool
    durability: str


class Sender:
    """What a client sends. ``Bus`` is the whole client.

    Everything is keyword-only beyond the obvious. Durations are seconds of monotonic time. A ``priority`` that is not
    given is the one that the type (and for ``command`` the command) should have: an emergency stop is CRITICAL.
    """

    app: str
    keys: Keys
    options: BusOptions
    messages: Messages
    _outbox: Outbox
    _replies: ReplyLane
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self.clock = Clock()
        self._routes: dict[tuple[str, str, int], Route] = {}
        self._topics: dict[tuple[str, str], Route] = {}
        self._declared: dict[str, int] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self.durability = self.options.durability or durability.UNKNOWN
        self._in_flight = 0
        self._many = min(_MANY_IN_FLIGHT, self.options.max_in_flight)
        self._room = asyncio.Event()
        rate = self.options.telemetry_rate
        self._telemetry = TokenBucket(rate, now=time.monotonic()) if rate is not None else None

    async def send(
        self,
        recipient: str,
        type: str,
        data: Any,
        *,
        priority: Priority | int | None = None,
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
        if priority is None:
            priority = default_priority(type, data)
        message_id = new_id() if id is None else checked_id(id)
        extra = _extra(self.clock, deadline, key, traceparent)
        if type == "telemetry" and self._telemetry is not None and not self._telemetry.take(time.monotonic()):
            raise RateLimited(f"{self.app} may send {self._telemetry.rate:g} telemetry records a second; not stored")
        if self._in_flight >= self._many:
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
        priority: Priority | int | None = None,
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
            await self._replies.lane.wait_live(self.options.send_timeout)
        if priority is None:
            priority = default_priority(type, data)
        message_id = new_id() if id is None else checked_id(id)
        extra = _extra(self.clock, timeout, key, traceparent)
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
        self,
        topic: str,
        type: str,
        data: Any,
        *,
        id: str | None = None,
        content_type: str | None = None,
        traceparent: str | None = None,
    ) -> Receipt:
        """Append a record to a topic for every subscriber.

        With an ``id`` it is stored once, and the receipt of a repetition says so; without one nothing tells a
        repetition from a new record, so it is never repeated here.

        Raises RecordInvalid, IdConflict, BusFull, RateLimited, BusUnavailable (OutcomeUnknown: it may be stored; with
        an ``id`` publishing it again is safe).
        """
        route = self._topics.get((topic, type))
        if route is None:
            route = Route(self.keys.topic(checked_name(topic, what="topic")), type, self.app, clock=self.clock)
            if len(self._topics) < _MAX_ROUTES:
                self._topics[(topic, type)] = route
        if type == "telemetry" and self._telemetry is not None and not self._telemetry.take(time.monotonic()):
            raise RateLimited(f"{self.app} may send {self._telemetry.rate:g} telemetry records a second; not stored")
        extra = {} if traceparent is None else {b"traceparent": traceparent.encode()}
        body = payload(type, data, content_type, extra, self.options.compress_over, self.options.compression)
        message_id = new_id() if id is None else checked_id(id)
        if self._in_flight >= self._many:
            await self._wait_for_room()
        self._in_flight += 1
        try:
            if id is None:
                answer = await self._outbox.add(route.request(message_id.encode(), body, extra))
            else:
                answer = await self._outbox.append(route.stream, *route.item(message_id.encode(), body, extra))
        finally:
            self._in_flight -= 1
            self._room.set()
        return self._receipt(message_id, answer, None, None, stream=route.stream)

    async def publish_compact(self, form: CompactForm, entries: Iterable[CompactEntry]) -> list[str]:
        """Append entries to a compact topic in one write; returns their stream ids. Errors as ``publish``."""
        connects = self._outbox.lane.connects
        if self._declared.get(form.topic) != connects:
            # again for every connection: the server may have lost its last seconds, or be another one
            keys = [self.keys.form(checked_name(form.topic, what="topic")), self.keys.topic(form.topic)]
            stored = [part for item in form.to_hash().items() for part in item]
            await self._outbox.run("declare", keys, [form.boot_id, MAX_BOOTS, *stored])
            self._declared[form.topic] = connects
        packed, count = pack_entries(self.keys.topic(form.topic), entries)
        return [answer.decode() for answer in await self._outbox.add_all(packed, count)] if count else []

    async def broadcast(self, type: str, data: Any) -> Receipt:
        """Publish to every application: the topic ``broadcast``."""
        return await self.publish("broadcast", type, data)

    def _clock_changed(self) -> None:
        """The bus counts on another boot's clock now: routes carry its id."""
        self._routes.clear()
        self._topics.clear()

    def _route(self, recipient: str, record_type: str, priority: Priority | int) -> Route:
        route = self._routes.get((recipient, record_type, priority))
        if route is None:
            level = _level(priority)
            stream = self.keys.inbox(checked_name(recipient, what="recipient"), level)
            route = Route(stream, record_type, self.app, clock=self.clock, recipient=recipient, priority=level)
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
        while self._outbox.congested:  # noqa: ASYNC110  # the transport tells nobody; the server does not read: wait here rather than in memory
            await asyncio.sleep(_CONGESTION_LOOK)

    def _receipt(
        self,
        message_id: str,
        answer: bytes,
        recipient: str | None,
        priority: int | None,
        *,
        source: str | None = None,
        stream: str | None = None,
    ) -> Receipt:
        """What the append script answered. ``stream``: of a topic, where there is no recipient."""
        where = stream or self.keys.inbox(str(recipient), priority or 0)
        if answer[:1].isdigit():
            if self._outbox.any_full:
                self._outbox.note_full(where, full=False)
            return Receipt(answer.decode(), message_id, _FIRST, self.durability)
        if answer == b"!":
            self._outbox.note_full(where, full=True)
            what = f"the {Priority(priority).name} inbox of {recipient!r}" if priority else "the topic"
            raise QueueFull(f"{what} ({where}) is full; nothing was stored. Is its reader running?")
        known = Known.parse(answer)
        if known.claim != (str(int(priority)) if priority else "", recipient or "", source or self.app):
            level, first, owner = known.claim
            raise IdConflict(
                f"id {message_id!r} was used before by {owner!r} for {first!r} at priority {level}; not stored, "
                "use a new id for a new message"
            )
        return Receipt(known.entry, message_id, duplicate=True, durability=self.durability)

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
        except (IdConflict, QueueFull) as refusal:
            waiting.future.set_exception(refusal)
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


def _extra(clock: Clock, deadline: float | None, key: str | None, traceparent: str | None) -> dict[bytes, bytes]:
    extra: dict[bytes, bytes] = {}
    if deadline is not None:
        if not 0 < deadline < 366 * 86_400:
            raise RecordInvalid(
                "deadline", f"{deadline!r} s from now is no deadline", limit="more than 0, under a year"
            )
        extra[b"deadline"] = b"%d" % (clock.now_ns() + int(deadline * 1e9))
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
