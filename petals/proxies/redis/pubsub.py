"""Publish and subscribe, recorded.

What is published is a record and a message on the channel, in one step. What a subscriber gets comes from the records,
so it is in order, nothing is missed while the connection is away, and who asks for it gets what was said before. The
channels are listened to as well: then the server counts us among a channel's subscribers, and what foreign programs
publish is noticed. Their messages reach the records through the daemon's bridge; where no bridge runs, they are
delivered as they are heard.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import channels
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.scripts import load
from petalbus.daemon.bus.tail import Entries, Tail
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.listening import MAX_WAITING, Listener
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("RedisProxy")

Callback = Callable[[str, str], Awaitable[Any]]
NEW: Final = "new"
OLDEST: Final = "oldest"
MAX_CHANNEL: Final = 512
_BATCH: Final = 500
_SETTLE_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0
_MOST_HELD: Final = 2000
_LOOK_SECONDS: Final = 0.01
_PLACE: Final = re.compile(r"\d{1,20}(-\d{1,20})?")


class Registered:
    """What ``subscribe`` returns: it may be awaited, on any loop, or left alone; the subscription holds either way."""

    def __init__(self) -> None:
        self.done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.wrap_future(self.done).__await__()


class Subscriber(Listener):
    """A callback, its channel or pattern, and whether it is still reading what was said before it came."""

    def __init__(self, name: str, callback: Callback, *, pattern: bool, cpu_heavy: bool, start: str) -> None:
        super().__init__(f"channel {name!r}", callback, cpu_heavy=cpu_heavy, log=log)
        if start not in (NEW, OLDEST) and not _PLACE.fullmatch(start):
            raise ValueError(f"start={start!r}: it is new, oldest, or the stream id after which to go on")
        self.name = name
        self.pattern = pattern
        self.start = start
        self.held: list[tuple[bytes, str, str]] | None = [] if start != NEW else None
        """What came while it was catching up."""
        self.reached = b"0-0"
        """The last record that it got while it was catching up."""
        self.catching_up = False
        self.begun = False
        """Whether its channel is listened to."""

    @property
    def after(self) -> str:
        """Where to read on while it is catching up."""
        if self.reached != b"0-0":
            return f"({self.reached.decode()}"
        return "-" if self.start == OLDEST else f"({self.start}"

    def fits(self, channel: str) -> bool:
        """Whether a message on a channel is for it."""
        return bool(channels.glob(self.name).fullmatch(channel)) if self.pattern else channel == self.name

    def deliver(self, entry: bytes, channel: str, message: str) -> None:
        """Call it soon, or once it has caught up."""
        if self.held is not None:
            self.held.append((entry, channel, message))
            del self.held[:-_MOST_HELD]  # what is left out is still in the records, where it is catching up
        else:
            self.put(channel, message)


class PubSub(BaseProxy):
    """The calls. Subscriptions may be made before ``start``, and from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._subscribers: list[Subscriber] = []
        self._tail: Tail | None = None
        self._ears: channels.Listener | None = None
        self._hearing: asyncio.Lock = asyncio.Lock()
        self._marked: tuple[bytes, int] = (b"", 0)
        self._working: set[asyncio.Task[None]] = set()
        self._beginning: set[asyncio.Task[None]] = set()
        self.published = 0

    @abstractmethod
    async def _own_bus(self) -> Bus:
        """The client of the bus, open."""

    async def publish(self, channel: str, message: str | bytes) -> int:
        """Record a message and send it to a channel's subscribers; how many there are, ours included.

        0 when nobody listens, and when it could not be published (that is logged). Callbacks run later. Raises
        ValueError for a channel without a name, RecordInvalid for more than 1 MiB.
        """
        name, body = _checked(channel), message.encode() if isinstance(message, str) else bytes(message)
        if len(body) > MAX_PAYLOAD_BYTES:
            raise RecordInvalid("message", f"has {len(body)} bytes", limit=f"at most {MAX_PAYLOAD_BYTES} bytes")
        if self._beginning:
            # who subscribed before this on the same proxy, awaited or not, misses nothing of it
            await asyncio.wait(self._beginning, timeout=_SETTLE_SECONDS)
        bus = await self._own_bus()
        keys = bus.keys
        items = channels.record_items(name.encode(), body, source=bus.app, clock=bus.clock)
        head = (name, channels.marks(keys), channels.bridges(keys), body)
        places = (keys.topic(channels.TOPIC), channels.description(keys))
        try:
            answer = await bus.call("EVALSHA", load("pubsub").sha, len(places), *places, *head, *items)
        except (BusError, ServerError) as error:
            log.warning("a message on channel %r could not be published: %s", name, error)
            return 0
        self.published += 1
        _, heard, bridges, patterns = answer
        if bridges:
            heard -= bridges * len(channels.matching(patterns.decode().split("\n"), name))
        ours = any(subscriber.fits(name) for subscriber in self._subscribers)
        return max(int(heard), int(ours))

    def subscribe(self, channel: str, callback: Callback, cpu_heavy: bool = False, *, start: str = NEW) -> Registered:
        """Call ``async callback(channel, message)`` for each message on a channel; several callbacks may be there.

        ``start``: ``new``, ``oldest`` (all that is still kept), or the stream id after which to go on. May be awaited:
        then the server has confirmed it. Raises TypeError when the callback is not async, ValueError.
        """
        return self._register(Subscriber(_checked(channel), callback, pattern=False, cpu_heavy=cpu_heavy, start=start))

    def unsubscribe(self, channel: str, callback: Callback | None = None) -> Registered:
        """End a callback of a channel, or all of them."""
        return self._unregister(
            lambda one: not one.pattern and one.name == channel and callback in (None, one.callback)
        )

    def register_pattern_channel_callback(
        self, channel: str, callback: Callback, cpu_heavy: bool = False, *, start: str = NEW
    ) -> Registered:
        """``subscribe`` for every channel that fits a pattern, as Redis understands it (``/ack/*``)."""
        return self._register(Subscriber(_checked(channel), callback, pattern=True, cpu_heavy=cpu_heavy, start=start))

    def unregister_pattern_channel_callback(self, channel: str, callback: Callback | None = None) -> Registered:
        """End a callback of a pattern, or all of them."""
        return self._unregister(lambda one: one.pattern and one.name == channel and callback in (None, one.callback))

    def forget(self, owner: object) -> int:
        """End all callbacks of a petal; how many there were. On the proxy's loop."""
        theirs = [one for one in self._subscribers if one.is_of(owner)]
        self._unregister(lambda one: one in theirs)
        return len(theirs)

    def subscriptions(self) -> dict[str, Any]:
        """Channels and patterns with what their callbacks have done."""
        return {
            one.what: {"called": one.called, "dropped": one.dropped, "failed": one.failed} for one in self._subscribers
        }

    async def _start_pubsub(self) -> None:
        if self._subscribers:
            await self._hear()

    def _begin_the_late(self) -> None:
        """Begin those that came, from any thread, while it was not ready yet; called once it is."""
        for one in self._subscribers:
            if not one.begun or (one.held is not None and not one.catching_up):
                self._work(self._begin(one), Registered(), self._beginning)

    async def _stop_pubsub(self) -> None:
        for task in self._working:
            task.cancel()
        subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            subscriber.stop()
        await asyncio.gather(*(subscriber.ended() for subscriber in subscribers))
        tail, self._tail = self._tail, None
        ears, self._ears = self._ears, None
        if tail is not None:
            await tail.aclose()
        if ears is not None:
            await ears.close()

    def _register(self, subscriber: Subscriber) -> Registered:
        registered = Registered()
        self._subscribers.append(subscriber)
        if self._loop is None or not self.is_ready:
            registered.done.set_result(None)  # it begins with the proxy
        else:
            self._call_at_home(self._work, self._begin(subscriber), registered, self._beginning)
        return registered

    def _unregister(self, which: Callable[[Subscriber], bool]) -> Registered:
        registered = Registered()
        gone = [one for one in self._subscribers if which(one)]
        self._subscribers = [one for one in self._subscribers if one not in gone]
        if self._loop is None or not gone:
            registered.done.set_result(None)
        else:
            self._call_at_home(self._work, self._end(gone), registered)
        return registered

    async def _end(self, gone: list[Subscriber]) -> None:
        for one in gone:
            one.end()
        if self._ears is not None:
            channels_left = {one.name for one in self._subscribers if not one.pattern}
            patterns_left = {one.name for one in self._subscribers if one.pattern}
            self._ears.drop(
                channels={one.name for one in gone if not one.pattern} - channels_left,
                patterns={one.name for one in gone if one.pattern} - patterns_left,
            )
            await self._ears.settled(_SETTLE_SECONDS)

    def _work(self, work: Any, registered: Registered, among: set[asyncio.Task[None]] | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work, name="redis-subscribe")
        self._working.add(task)
        if among is not None:
            among.add(task)
            task.add_done_callback(among.discard)
        task.add_done_callback(lambda done: self._worked(done, registered))

    def _worked(self, task: asyncio.Task[None], registered: Registered) -> None:
        self._working.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a change of subscriptions takes effect when the server is back: %s", error)
            if not registered.done.done():
                registered.done.set_exception(error)
        elif not registered.done.done():  # who waited for it may have been cancelled
            registered.done.set_result(None) if not task.cancelled() else registered.done.cancel()

    async def _begin(self, subscriber: Subscriber) -> None:
        try:
            await self._begin_hearing(subscriber)
        except (BusError, ServerError):
            again = asyncio.create_task(self._begin_hearing_later(subscriber), name="redis-subscribe-later")
            self._working.add(again)
            again.add_done_callback(self._working.discard)
            raise

    async def _begin_hearing(self, subscriber: Subscriber) -> None:
        await self._hear()
        assert self._ears is not None
        self._listen_to(subscriber)
        await self._catch_up(subscriber)
        await self._ears.settled(_SETTLE_SECONDS)

    async def _begin_hearing_later(self, subscriber: Subscriber) -> None:
        """Until it works, or nobody wants it any more."""
        while subscriber in self._subscribers:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._begin_hearing(subscriber)
            except (BusError, ServerError) as error:
                log.debug("%s is still not heard: %s", subscriber.what, error)
            else:
                return

    async def _hear(self) -> None:
        """The two connections: the records, and the channels."""
        async with self._hearing:
            fresh = self._tail is None
            if self._tail is None:
                bus = await self._own_bus()
                self._tail = Tail(bus, channels.TOPIC, on_entries=self._entries)
                self._ears = channels.Listener(bus, "redis-channels", heard=self._heard)
                self._ears.add(channels=[channels.marks(bus.keys)])
                self._ears.start()
                for subscriber in self._subscribers:
                    self._listen_to(subscriber)
            await self._tail.open()  # before anybody catches up: what comes after that must not fall between the two
            if fresh:
                for subscriber in [one for one in self._subscribers if one.held is not None]:
                    await self._catch_up(subscriber)

    def _listen_to(self, subscriber: Subscriber) -> None:
        assert self._ears is not None
        subscriber.begun = True
        if subscriber.pattern:
            self._ears.add(patterns=[subscriber.name])
        else:
            self._ears.add(channels=[subscriber.name])

    async def _catch_up(self, subscriber: Subscriber) -> None:
        """Deliver what was said before, then what came meanwhile, each once, and not faster than it is taken."""
        if subscriber.held is None or subscriber.catching_up:
            return
        subscriber.catching_up = True
        try:
            await self._deliver_kept(subscriber)
        finally:
            subscriber.catching_up = False

    async def _deliver_kept(self, subscriber: Subscriber) -> None:
        bus = await self._own_bus()
        stream = bus.keys.topic(channels.TOPIC)
        while rows := await bus.ask("XRANGE", stream, subscriber.after, "+", "COUNT", _BATCH):
            await self._room(subscriber)
            for entry, flat in rows:
                told = channels.read_items(flat)
                if told is not None and subscriber.fits(told[0]):
                    subscriber.put(*told)
                subscriber.reached = entry
        while subscriber.held:
            await self._room(subscriber)
            batch = subscriber.held[:_BATCH]
            del subscriber.held[:_BATCH]
            for entry, channel, message in batch:
                if _place(entry) > _place(subscriber.reached):
                    subscriber.put(channel, message)
        subscriber.held = None

    async def _room(self, subscriber: Subscriber) -> None:
        """Wait until its callback has taken enough for another batch."""
        while subscriber in self._subscribers and subscriber.waiting + _BATCH > MAX_WAITING:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(_LOOK_SECONDS)

    def _entries(self, entries: Entries) -> None:
        for entry, flat in entries:
            told = channels.read_items(flat)
            if told is not None:
                for subscriber in self._subscribers:
                    if subscriber.fits(told[0]):
                        subscriber.deliver(entry, *told)

    def _heard(self, _pattern: bytes | None, channel: bytes, message: bytes) -> None:
        """A channel's message: one without a mark is foreign, and where no bridge runs nobody records it."""
        bus = self._bus_now()
        if bus is None:
            return
        if channel == channels.marks(bus.keys).encode():
            assert self._ears is not None
            self._marked = (message, self._ears.copies(message.decode("utf-8", "replace")))
            return
        seen, copies = self._marked
        if seen == channel and copies > 0:
            self._marked = (seen, copies - 1)  # once for each way in which we hear it; recorded, or taken already
            return
        # Copies of one message come one right after the other.
        assert self._ears is not None
        self._marked = (channel, self._ears.copies(channel.decode("utf-8", "replace")) - 1)
        work = self._deliver_unless_bridged(bus, channel, message)
        task = asyncio.get_running_loop().create_task(work, name="redis-foreign")
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _deliver_unless_bridged(self, bus: Bus, channel: bytes, message: bytes) -> None:
        name = channel.decode("utf-8", "replace")
        try:
            _, count = await bus.ask("PUBSUB", "NUMSUB", channels.bridges(bus.keys))
            patterns = await bus.ask("HGET", channels.description(bus.keys), "patterns") if count else None
        except (BusError, ServerError) as error:
            log.warning("whether a bridge records channel %r is not known: %s", name, error)
            return
        if not count or not channels.matching((patterns or b"").decode().split("\n"), name):
            for subscriber in self._subscribers:
                if subscriber.fits(name):
                    subscriber.put(name, message.decode("utf-8", "replace"))

    @abstractmethod
    def _bus_now(self) -> Bus | None:
        """The client of the bus, where it is open."""


def _checked(channel: object) -> str:
    if not isinstance(channel, str) or not channel or len(channel) > MAX_CHANNEL:
        raise ValueError(f"{channel!r} is no channel: it must be text of 1 to {MAX_CHANNEL} characters")
    return channel


def _place(stream_id: bytes) -> tuple[int, int]:
    ms, _, number = stream_id.partition(b"-")
    return int(ms), int(number or 0)
