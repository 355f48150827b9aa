"""The client: one application's connection to the bus.

send/request/publish -> envelope -> outbox -> server -> reader -> scheduler -> runner -> committer -> server -> replies
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from petalbus.daemon.bus import durability
from petalbus.daemon.bus.clock import BusClock
from petalbus.daemon.bus.connection import ServerError, pack
from petalbus.daemon.bus.consumer import Consumer
from petalbus.daemon.bus.dead import DeadLetters
from petalbus.daemon.bus.errors import BusError, BusUnavailable, NotOpen
from petalbus.daemon.bus.handlers import Handler, HandlerFunction, Redelivery, Registry, held
from petalbus.daemon.bus.heartbeat import Heartbeat, consumer_name
from petalbus.daemon.bus.keys import Keys, checked_name
from petalbus.daemon.bus.messages import Messages
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.presence import Application, Presence
from petalbus.daemon.bus.requests import OnReply, ReplyLane
from petalbus.daemon.bus.sender import Receipt, Sender
from petalbus.daemon.bus.subscription import Subscription
from petalbus.daemon.bus.url import parse
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status

log = logging.getLogger("petalbus.bus")

KEEP_CANCELLED = 1000
"""Cancellations remembered for records that have not been read yet."""

_MADE_BY_START: Final = frozenset({"_loop", "_outbox", "_replies", "_presence", "_bus_clock", "messages", "dead"})

F = TypeVar("F", bound=HandlerFunction)


class Bus(Sender):
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
        self._subscriptions: dict[str, Subscription] = {}
        self._consumer: Consumer | None = None
        self._consuming: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # one consumer after the other
        self._cancelled: OrderedDict[bytes, None] = OrderedDict()
        self._other_replies: OnReply | None = None
        self._heartbeat: Heartbeat | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._started = False
        super().__init__()

    if not TYPE_CHECKING:  # it would hide misspelt names from the type checker

        def __getattr__(self, name: str) -> Any:
            if name in _MADE_BY_START:
                raise NotOpen(f"client {self.app!r} is not open yet: use `async with`, or await start() first")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Raises BusUnavailable when the server cannot be reached, ServerRefused when it cannot serve us."""
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self.address, self.keys, self.options)
        self._replies = ReplyLane(
            self.app,
            address=self.address,
            keys=self.keys,
            outbox=self._outbox,
            options=self.options,
            on_cancel=self._cancel_here,
            on_other=self._other_reply,
        )
        self._presence = Presence(self.keys, self._outbox, self.options)
        self.messages = Messages(self.keys, self._outbox, self.options, app=self.app, clock=self.clock)
        self.dead = DeadLetters(self.keys, self._outbox)
        self._outbox.lane.start()
        try:
            await self._outbox.lane.wait_live(self.options.connect_timeout)
        except BaseException:
            await self._outbox.close()
            raise
        self._started = True
        if self.options.durability is None:
            self._outbox.on_reconnect.append(self._ask_durability)
            self._ask_durability()
        self._bus_clock = BusClock(self.clock, keys=self.keys, outbox=self._outbox, changed=self._clock_changed)
        try:
            if self.address.path is None and not self.options.beside_bus:
                await self._bus_clock.start()
            if len(self._registry):
                await self.listen()
            elif self.options.presence:
                await self._be_present()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop in order: consuming, subscriptions, presence, replies, then the command lane. Never raises BusError."""
        if not self._started:
            return
        self._started = False
        was_present = self._heartbeat is not None or self._consumer is not None
        await self.stop_listening()
        for subscription in list(self._subscriptions.values()):
            await subscription.aclose()
        try:
            await self._stop_presence()
            if was_present and self._outbox.lane.connection is not None:
                await self.messages.say_goodbye()
        except (BusError, ServerError) as error:
            log.warning("%s could not say that it leaves: %s", self.app, error)
        await self._bus_clock.stop()
        await self._replies.lane.close()
        await self._outbox.close()

    # -- receiving ----------------------------------------------------------------------------------------------------

    def on(
        self,
        type: str,
        *,
        redelivery: Redelivery = "rerun",
        concurrency: int | None = 1,
        max_attempts: int | None = None,
        overtakes: Callable[[Record], bool | str] | None = None,
    ) -> Callable[[F], F]:
        """Decorator: handle records of ``type`` (``*``: of every type without a handler) from this app's inbox.

        ``redelivery`` declares what a second delivery after a crash means: ``rerun`` (the work is idempotent) or
        ``report`` (never run twice: answer that the outcome is unknown). ``overtakes``: for which records the order
        among those of one sender or key does not hold; they start while earlier ones run (a text: it holds among those
        with the same text). Consuming starts by itself.
        """

        def register(function: F) -> F:
            attempts = max_attempts or self.options.max_attempts
            self._registry.add(
                Handler.of(
                    function,
                    record_type=type,
                    redelivery=redelivery,
                    concurrency=concurrency,
                    max_attempts=attempts,
                    overtakes=overtakes,
                )
            )
            if self._consumer is not None:
                self._consumer.handlers_changed()
            if self._started and self._consuming is None:
                self._consuming = asyncio.create_task(self._consume(), name=f"petalbus-consume-{self.app}")
            return function

        return register

    def hold(self, type: str) -> bool:
        """Let records of ``type`` wait until ``on`` gives them a handler; False when they have one.

        Without it they would be dead letters while this client serves others. Their deadlines still count.
        """
        if self._registry.find(type) is not None:
            return False
        handler = Handler.of(held, record_type=type, redelivery="rerun", concurrency=1, max_attempts=1)
        self._registry.add(replace(handler, concurrency=0))
        if self._consumer is not None:
            self._consumer.handlers_changed()
        return True

    def off(self, type: str) -> bool:
        """Remove the handler of ``type``; False when there was none."""
        return self._registry.remove(type)

    def on_other_reply(self, function: OnReply | None) -> None:
        """Call a plain function with each final reply to this app that no request of this client waits for.

        Only while this client consumes; what came before, or goes to a request of another process, may be among them.
        """
        self._other_replies = function

    async def listen(self) -> None:
        """Wait until this client consumes its inbox. Raises BusUnavailable."""
        if self._consuming is None:
            self._consuming = asyncio.create_task(self._consume(), name=f"petalbus-consume-{self.app}")
        consuming = self._consuming
        await asyncio.wait([consuming])
        if consuming.cancelled():
            raise BusUnavailable(f"{self.app} was told to stop listening before it had begun")
        consuming.result()

    async def stop_listening(self) -> None:
        """Stop consuming in order, and go on as a client that sends; ``on`` and ``listen`` start it again.

        Running handlers may finish within ``stop_grace``; what has not started is left to the other processes of this
        app, or to its next start. Does nothing when nothing is consumed. Cancelling the call does not stop the stop.
        """
        if self._consuming is not None:
            self._ending = asyncio.create_task(self._end(self._consuming), name=f"petalbus-end-{self.app}")
            self._consuming = None
        if self._ending is not None:
            await asyncio.shield(self._ending)

    def subscribe(
        self, topic: str, *, start: str = "new", name: str | None = None, messages: Iterable[str] | None = None
    ) -> Subscription:
        """The records of a topic. The group is this app's, or ``app.name``: give each further subscription a name.

        ``messages``: only records of these types, whole (``mavlink.ATTITUDE``) or without what is before the last dot
        (``ATTITUDE``); the others count as handled. ``start``: see Subscription.

        Use ``async for``; with ``async with`` the group surely exists when the block begins.
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
            messages=None if messages is None else frozenset(messages),
        )
        self._subscriptions = {name: one for name, one in self._subscriptions.items() if not one.closed}
        self._subscriptions[label] = subscription
        return subscription

    # -- looking ------------------------------------------------------------------------------------------------------

    async def applications(self) -> list[Application]:
        """All applications with their status; takes up to four heartbeats."""
        return await self._presence.applications()

    async def status(self, message_id: str) -> Status:
        """Where a message stands."""
        return await self.messages.status(message_id)

    async def reply(self, message_id: str) -> Record | None:
        """The final reply to a message, where there is one and it is still kept."""
        known = await self.messages.known(message_id)
        if known is None or not known.state.final:
            return None
        return await self._replies.find(message_id)

    async def cancel(self, message_id: str) -> bool:
        """Cancel a message: at once if nobody has it, else by asking its handler. False when settled or unknown."""
        return await self.messages.cancel(message_id)

    async def call(self, *args: bytes | str | float) -> Any:
        """Run one plain server command on the command lane, once; for tools."""
        return await self._outbox.call(*args)

    async def ask(self, *args: bytes | str | float) -> Any:
        """Run one plain server command that only reads: it is sent again when its answer is lost."""
        return await self._outbox.ask(*args)

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

    async def _consume(self) -> None:
        # one turn of the loop later, so that handlers registered one after the other are all there
        await asyncio.sleep(0)
        async with self._turn:
            await self._start_consumer()

    async def _start_consumer(self) -> None:
        self._replies.always = True  # from now on for good: a cancellation must not be missed between two consumers
        if self._replies.lane.started:
            self._replies.arm()
        else:
            self._replies.lane.start()
        consumer = Consumer(
            self.app,
            address=self.address,
            keys=self.keys,
            outbox=self._outbox,
            registry=self._registry,
            options=self.options,
            clock=self.clock,
            cancelled=self._cancelled,
        )
        self._consumer = consumer
        while True:
            try:
                await consumer.start()
                break
            except BusUnavailable as error:
                log.warning("%s cannot consume yet: %s", self.app, error)
        await self._stop_presence()

    async def _end(self, consuming: asyncio.Task[None]) -> None:
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
        async with self._turn:
            if self._consumer is None:
                return
            if self._started and self.options.presence and self._heartbeat is None:
                beat = self._own_heartbeat().arguments()  # without a gap in which it would look gone
                self._outbox.script("beat", *beat, lambda _reply: None)
            await self._consumer.stop()
            self._consumer = None

    def _ask_durability(self) -> None:
        # Nobody waits for the answer: the server answers in order, so it is here before the first receipt.
        self._outbox.submit(pack(durability.QUESTION), self._told_durability)

    def _told_durability(self, reply: Any) -> None:
        self.durability = durability.read_answer(reply)

    async def _be_present(self) -> None:
        await self._outbox.run("beat", *self._own_heartbeat().arguments())

    def _own_heartbeat(self) -> Heartbeat:
        name = consumer_name(self.app)
        self._heartbeat = Heartbeat(
            self.address, keys=self.keys, app=self.app, name=name, period=self.options.heartbeat
        )
        self._heartbeat.start()
        return self._heartbeat

    async def _stop_presence(self) -> None:
        # Cancelling the call leaves this to be finished: a count that stays behind would look alive for good.
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            before = self._retiring
            self._retiring = asyncio.create_task(self._retire(heartbeat, before), name=f"petalbus-retire-{self.app}")
        if self._retiring is not None:
            await asyncio.shield(self._retiring)

    async def _retire(self, heartbeat: Heartbeat, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        await heartbeat.stop()
        if self._outbox.lane.connection is not None:
            await self._outbox.call("HDEL", self.keys.beats, heartbeat.field)

    def _other_reply(self, record: Record) -> None:
        if self._other_replies is not None:
            self._other_replies(record)

    def _cancel_here(self, message_id: str) -> None:
        self._cancelled[message_id.encode()] = None
        if len(self._cancelled) > KEEP_CANCELLED:
            self._cancelled.popitem(last=False)
        if self._consumer is not None:
            self._consumer.cancel(message_id)


__all__ = ["Bus", "Receipt"]
