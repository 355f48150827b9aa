"""Two-way communication: messages between applications, carried by the bus.

A message is a record in the recipient's inbox, a handler's answer is its reply record. So what the bus promises holds
here too: nothing is lost, one effect for each id, urgent ones first.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.envelope import checked_type
from petalbus.daemon.bus.errors import (
    BusUnavailable,
    HandlerError,
    NotOpen,
    ReplyError,
    RequestCancelled,
)
from petalbus.daemon.bus.handlers import Redelivery, Reply
from petalbus.petals.exits import contained
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady
from petalbus.petals.proxies.redis.applications import find_online, status_of
from petalbus.schemas.convert.communication import CommunicationMessage, MessagePriority, from_record, to_record
from petalbus.schemas.convert.exchange import wire
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import prepare
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("RedisProxy")

REPLY_SECONDS: Final = 10.0
"""How long ``send_message`` waits for a reply when it is not told."""

STORE_SECONDS: Final = 10.0
"""How long ``send_message`` goes on trying to store a message when it is not told."""

SETTLE_SECONDS: Final = 5.0
"""After ``start_listening``, how long a message of a type without a handler may wait for one to be registered."""

KEEP_SENT: Final = 10_000
"""Ids of sent messages whose replies nobody waits for, but a handler of the reply's type may want."""

KEEP_REPLIES: Final = 1000
"""Replies that may wait for such a handler."""

_PAUSE: Final = 0.1
_ANSWER_SLACK: Final = 0.25
_ANY: Final = "*"
_MADE_BY_BUS: Final = frozenset({"id", "type", "source", "recipient", "data", "reply_to", "kind", "time", "deadline"})

MessageHandler = Callable[[CommunicationMessage], Any]
"""Takes a message; returns, or awaits to, a CommunicationMessage (the reply) or None."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Registered:
    handler: MessageHandler
    redelivery: Redelivery
    concurrency: int | None


class TwoWayMessages(BaseProxy):
    """The part of RedisProxy that sends messages to applications and handles those that come in."""

    app_id: str

    def __init__(self) -> None:
        super().__init__()
        self._message_handlers: dict[str, _Registered] = {}
        self._listens_on: Bus | None = None
        self._listens_since = 0.0
        self._handler_came = asyncio.Event()
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._late: asyncio.Queue[Record] = asyncio.Queue(KEEP_REPLIES)
        self._late_task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _own_bus(self) -> Bus:
        """The proxy's own client of the bus, open. Raises BusUnavailable or ProxyNotReady."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def register_message_handler(
        self,
        message_type: str,
        handler: MessageHandler,
        *,
        redelivery: Redelivery | None = None,
        concurrency: int | None = 1,
    ) -> None:
        """Call ``handler`` with each message of a type (``*``: of every type that has no handler of its own).

        A second handler of a type replaces the first. What the handler returns is the reply; what it raises becomes an
        error reply. ``redelivery``: ``rerun`` or ``report`` after a crash in the middle of the handler; not given:
        ``report`` for commands and emergencies, which must not happen twice, ``rerun`` for all else. ``concurrency``:
        handlers of this type that may run at once. Raises RecordInvalid for what is no message type.
        """
        if message_type != _ANY:
            checked_type(message_type)
        if not callable(handler):
            raise TypeError(f"handler {handler!r} of {message_type!r} cannot be called")
        chosen = redelivery or _redelivery_of(message_type)
        self._message_handlers[message_type] = _Registered(handler, chosen, concurrency)
        self._handler_came.set()
        if self._listens_on is not None:
            self._attach(self._listens_on, message_type)

    async def start_listening(self) -> None:
        """Handle what comes in, from now on and what waits already. Handlers may also be registered later.

        Raises ProxyNotReady when the bus cannot be reached.
        """
        if self._listens_on is not None:
            return
        try:
            bus = await self._own_bus()
        except BusUnavailable as error:
            raise ProxyNotReady(f"{self.app_id} cannot listen: {error}") from error
        if self._begin_to_listen(bus) and self._message_handlers:
            await bus.listen()

    def _begin_to_listen(self, bus: Bus) -> bool:
        """False when another task was quicker while we connected."""
        if self._listens_on is not None:
            return False
        self._listens_on = bus
        self._listens_since = time.monotonic()
        bus.on_other_reply(self._on_late_reply)
        self._late_task = asyncio.create_task(self._handle_late_replies(), name=f"petalbus-replies-{self.app_id}")
        for message_type in list(self._message_handlers):
            self._attach(bus, message_type)
        return True

    async def stop_listening(self) -> None:
        """Stop handling; running handlers may finish. What has not started waits. The handlers stay registered."""
        bus, self._listens_on = self._listens_on, None
        if bus is None:
            return
        bus.on_other_reply(None)
        if self._late_task is not None:
            self._late_task.cancel()
            await asyncio.gather(self._late_task, return_exceptions=True)
            self._late_task = None
        await bus.stop_listening()
        for message_type in (*self._message_handlers, _ANY):
            bus.off(message_type)

    async def _stop_messages(self) -> None:
        """Part of the proxy's ``stop``, before its bus is closed: stop listening and forget the handlers."""
        await self.stop_listening()
        self._message_handlers.clear()
        self._sent.clear()

    def _attach(self, bus: Bus, message_type: str) -> None:
        bus.off(message_type)
        registered = self._message_handlers[message_type]

        async def serve(record: Record) -> Reply | None:
            return await self._serve(record, registered.handler)

        bus.on(message_type, redelivery=registered.redelivery, concurrency=registered.concurrency)(serve)
        if _ANY not in self._message_handlers:
            bus.off(_ANY)
            bus.on(_ANY)(self._serve_unknown)

    async def _serve(self, record: Record, handler: MessageHandler) -> Reply | None:
        try:
            message = from_record(record, carry=False)
            with contained():
                answer = handler(message)
                if inspect.isawaitable(answer):
                    answer = await answer
            return None if answer is None else _reply_of(answer, message, self.app_id)
        except HandlerError:
            raise
        except Exception as error:
            # told at once and not tried again: the sender decides, and the dead letter keeps what happened
            log.exception("the handler of %s failed on message %s from %s", record.type, record.id, record.source)
            raise HandlerError(f"{type(error).__name__}: {error}", dead=True) from error

    async def _serve_unknown(self, record: Record) -> None:
        """A message of a type that has no handler: at the beginning one may still be on its way."""
        while record.type not in self._message_handlers:
            left = self._listens_since + SETTLE_SECONDS - time.monotonic()
            if left <= 0:
                text = f"{self.app_id} has no handler for messages of type {record.type!r}"
                raise HandlerError(text, error_code="NO_HANDLER", dead=True)
            self._handler_came.clear()
            try:
                async with asyncio.timeout(left):
                    await self._handler_came.wait()
            except TimeoutError:
                continue
        raise HandlerError("its handler has come meanwhile", retry=True)

    def _on_late_reply(self, record: Record) -> None:
        """A reply that no call of ``send_message`` waits for: it is for the handler of its type, if there is one."""
        if record.reply_to is None or record.reply_to not in self._sent or self._handler_for(record.type) is None:
            return
        del self._sent[record.reply_to]
        try:
            self._late.put_nowait(record)
        except asyncio.QueueFull:
            log.warning("reply %s to %s comes too fast for its handler; it is not handled", record.id, record.reply_to)

    async def _handle_late_replies(self) -> None:
        while True:
            record = await self._late.get()
            registered = self._handler_for(record.type)
            if registered is None:
                continue
            try:
                with contained():
                    answer = registered.handler(from_record(record, carry=False))
                    if inspect.isawaitable(answer):
                        await answer
            except Exception:
                log.exception("the handler of %s failed on reply %s from %s", record.type, record.id, record.source)

    def _handler_for(self, message_type: str) -> _Registered | None:
        return self._message_handlers.get(message_type) or self._message_handlers.get(_ANY)

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send_message(
        self,
        recipient: str,
        message_type: str,
        payload: dict[str, Any],
        priority: MessagePriority | int | None = None,
        wait_for_reply: bool = False,
        timeout: float | None = None,
    ) -> str | CommunicationMessage | None:
        """Send a message. Returns its id; with ``wait_for_reply`` the reply, or None when none came in time.

        ``priority`` not given: CRITICAL for emergencies, else NORMAL. ``timeout`` (seconds): after it the message is
        not started any more, and no reply is waited for. While the bus is away the message waits, up to ``timeout``
        (10 s when not given); then ProxyNotReady is raised. Also raises RecordInvalid, QueueFull, BusFull.
        """
        if timeout is not None and timeout <= 0:
            raise RecordInvalid("timeout", f"is {timeout!r}", limit="more than 0 seconds")
        message_id = new_id()
        if wait_for_reply:
            reply = await self._ask(recipient, message_type, payload, priority, message_id, timeout or REPLY_SECONDS)
            return None if reply is None else from_record(reply, carry=False)
        self._expect_later(message_id)

        async def store(bus: Bus, _left: float) -> None:
            await bus.send(recipient, message_type, payload, priority=priority, id=message_id, deadline=timeout)

        seconds = timeout or STORE_SECONDS
        try:
            await self._patiently(seconds, store)
        except TimeoutError as error:
            text = f"the bus was away: message {message_id} to {recipient} was not confirmed within {seconds:g} s"
            raise ProxyNotReady(f"{text}, and may be stored all the same") from error
        return message_id

    async def _ask(
        self,
        recipient: str,
        message_type: str,
        payload: dict[str, Any],
        priority: MessagePriority | int | None,
        message_id: str,
        timeout: float,
    ) -> Record | None:
        async def ask(bus: Bus, left: float) -> Record:
            return await bus.request(recipient, message_type, payload, priority=priority, id=message_id, timeout=left)

        try:
            return await self._patiently(timeout, ask)
        except (ReplyError, RequestCancelled) as error:
            return error.record
        except TimeoutError as error:
            log.warning("no reply to %s (%s to %s): %s", message_id, message_type, recipient, error)
            self._expect_later(message_id)
            return None

    async def _patiently(self, seconds: float, attempt: Callable[[Bus, float], Awaitable[T]]) -> T:
        """Try until it works, as long as the bus is only away. It must be repeatable: it carries a fixed id."""
        if self._loop is None:
            raise ProxyNotReady(f"the {self.kind} proxy is not started: await start() first")
        end = time.monotonic() + seconds
        async with asyncio.timeout(seconds + _ANSWER_SLACK):
            while True:
                left = end - time.monotonic()
                try:
                    return await attempt(await self._own_bus(), max(left, 0.001))
                except (BusUnavailable, NotOpen, ProxyNotReady) as error:
                    if end - time.monotonic() <= _PAUSE:
                        raise ProxyNotReady(f"the bus was away for {seconds:g} s: {error}") from error
                await asyncio.sleep(_PAUSE)

    def _expect_later(self, message_id: str) -> None:
        self._sent[message_id] = None
        if len(self._sent) > KEEP_SENT:
            self._sent.popitem(last=False)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def get_application_status(self, app_id: str) -> dict[str, Any] | None:
        """``status`` (``online``, ``offline``), ``last_seen`` (seconds since 1970) and ``app_id``; None: never seen."""
        return await status_of(await self._open_bus(), app_id)

    async def list_online_applications(self) -> list[str]:
        """Names of the applications that are there now, sorted. Takes up to four heartbeats."""
        return await find_online(await self._open_bus())

    async def get_message_status(self, message_id: str) -> str | None:
        """Where a message stands, as the value of a MessageStatus; None for one that is not known (any more)."""
        bus = await self._open_bus()
        status = await bus.status(bus_id(message_id))
        if status is not Status.UNKNOWN:
            return str(status)
        noted = await bus.call("HGET", plain.message(message_id), "status")
        return noted.decode("utf-8", "replace") if noted else None

    async def _open_bus(self) -> Bus:
        try:
            return await self._own_bus()
        except BusUnavailable as error:
            raise ProxyNotReady(f"the {self.kind} proxy cannot be used: {error}") from error


def _redelivery_of(message_type: str) -> Redelivery:
    # a takeoff whose handler died half-way may have happened: nobody may do it again unasked
    word = message_type.replace("/", ".").split(".")[-1]
    return "report" if word == "command" or word.startswith("emergency") else "rerun"


def _reply_of(answer: object, message: CommunicationMessage, app: str) -> Reply:
    """What a handler returned, as the reply of the bus: its id, type, payload and priority are kept."""
    if not isinstance(answer, CommunicationMessage):
        raise TypeError(f"it returned {type(answer).__name__}; a handler returns a CommunicationMessage or None")
    if answer.recipient not in (message.sender, ""):
        log.warning("the reply to %s goes to its sender %s, not to %s", message.id, message.sender, answer.recipient)
    said = replace(answer, sender=app, recipient=message.sender, reply_to=message.id)
    record = to_record(said, carry=False)
    prepare(record.type, said.payload)
    fields = {name.encode(): value for name, value in wire(record).items() if name not in _MADE_BY_BUS}
    kind = record.kind
    if kind is None:
        raise ProxyError(f"the reply to {message.id} has no kind")  # to_record gives one to every message with reply_to
    return Reply(said.payload, kind, record.type, id=record.id, fields=fields)
