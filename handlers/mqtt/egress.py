"""The outbox: records for the broker leave in order, and are acknowledged when the broker has them.

inbox of app mqtt (QoS 1)            -> take -> waiting, by rank -> sender -> transport -> PUBACK -> record settled
inbox of app mqtt.telemetry (QoS 0)  -> take -> while offline: the latest of a topic only

Higher priority first, then stream order. After a longer time offline the responses to the newest commands come first:
whoever asked an hour ago does not wait any more.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import HandlerError
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.limits import Budget, topic_problem
from petalbus.handlers.mqtt.options import EgressOptions
from petalbus.handlers.mqtt.outgoing import Item
from petalbus.handlers.mqtt.transport import Identity, LinkLost, PublishRefused, Transport
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

_NEVER: Final = 3600.0
_MOST_ECHOES: Final = 256


class Egress:
    """``take`` handles the records; ``run`` sends until it is cancelled."""

    def __init__(
        self,
        transport: Transport,
        options: EgressOptions,
        *,
        answered: Callable[[str], None] | None = None,
        response: str = words.RESPONSE,
    ) -> None:
        """``answered(messageId)`` is told when a response to a command is in our hands."""
        self._transport = transport
        self._options = options
        self._answered = answered
        self._response = response
        self._identity = Identity()
        self._heap: list[tuple[Any, Item]] = []
        self._parked: list[Item] = []
        self._latest: dict[str, Item] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._flying: set[asyncio.Future[int]] = set()
        self._offline_since: float | None = time.monotonic()
        self._budget = Budget(options, now=time.monotonic())
        self.sent = 0
        self.conflated = 0
        self.refused = 0
        self.expired = 0
        self.repeated = 0
        self.echoed = 0
        self._subscribed: frozenset[str] = frozenset()
        self._echoes: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    # -- what goes in -------------------------------------------------------------------------------------------------

    async def take(self, record: Record) -> dict[str, Any]:
        """Handle one ``mqtt.publish``: returns when the broker has it. Raises HandlerError for a dead letter."""
        item = self._item(record)
        if item.answers is not None and self._answered is not None:
            self._answered(item.answers)
        if item.qos == 0 and self._offline_since is not None:
            self._conflate(item)
        self._push(item)
        try:
            return await item.done
        finally:
            item.gone = True

    def _item(self, record: Record) -> Item:
        try:
            item = Item.of(record, next(self._numbers), response=self._response)
        except RecordInvalid as error:
            raise _dead(str(error), "INVALID_PUBLISH") from None
        if len(item.payload) > self._options.max_payload:
            text = f"the payload has {len(item.payload)} bytes; at most {self._options.max_payload} are allowed"
            raise _dead(text, "INVALID_PUBLISH")
        if item.topic is not None and (problem := topic_problem(item.topic, self._options)) is not None:
            raise _dead(problem, "INVALID_TOPIC")
        return item

    def _conflate(self, item: Item) -> None:
        """Offline, of a topic's telemetry only the latest value stays."""
        before = self._latest.get(item.where)
        if before is not None and not before.done.done() and not before.flying:
            before.done.set_result({"status": "conflated", "message": "a newer message of its topic came"})
            before.gone = True
            self.conflated += 1
        self._latest[item.where] = item

    def _push(self, item: Item) -> None:
        if item.about is not None and self._heap and self._heap[0][1].newest:
            item.newest = item.number  # newer than what has waited
        heapq.heappush(self._heap, (item.rank, item))
        self._wake.set()

    # -- what is told -------------------------------------------------------------------------------------------------

    def follow(self, identity: Identity) -> None:
        """Who we are now: what waited for it may go."""
        self._identity = identity
        parked, self._parked = self._parked, []
        for item in parked:
            self._push(item)

    def link_changed(self, *, connected: bool) -> None:
        """The link is up, or not any more."""
        if not connected:
            self._offline_since = self._offline_since or time.monotonic()
            return
        since, self._offline_since = self._offline_since, None
        self._latest.clear()
        if since is not None and time.monotonic() - since >= self._options.newest_first_after:
            self._newest_first()
        self._wake.set()

    def _newest_first(self) -> None:
        """Responses that waited: those of the newest commands first, each command's own in their order."""
        newest: dict[str, int] = {}
        for _, item in self._heap:
            if item.about is not None:
                newest[item.about] = max(newest.get(item.about, 0), item.number)
        for _, item in self._heap:
            if item.about is not None:
                item.newest = newest[item.about]
        self._heap = [(item.rank, item) for _, item in self._heap]
        heapq.heapify(self._heap)

    def statistics(self) -> dict[str, Any]:
        """What waits and for how long, and counters."""
        waiting = [item for _, item in self._heap if not item.gone] + self._parked
        oldest = min((item.stored_ns for item in waiting), default=None)
        return {
            "waiting": len(waiting),
            "oldest_s": None if oldest is None else round((boot_clock_ns() - oldest) / 1e9, 3),
            "without_organization": len(self._parked),
            "in_flight": len(self._flying),
            "sent": self.sent,
            "repeated": self.repeated,
            "echoed": self.echoed,
            "conflated": self.conflated,
            "refused": self.refused,
            "expired": self.expired,
        }

    # -- what goes out ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what waits, as the link, its window and the limits allow. Until cancelled."""
        while True:
            if not self._drop_gone():
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                # so that what became too late while there was no connection is told in time
                async with asyncio.timeout(None if self._transport.state.connected else self._next_expiry()):
                    await self._transport.room()
            except TimeoutError:
                self._expire()
                continue
            if not self._drop_gone():
                continue
            pause = self._budget.wait(len(self._heap[0][1].payload), time.monotonic())
            if pause > 0:
                await asyncio.sleep(pause)
                continue  # something more urgent may have come
            self._send(heapq.heappop(self._heap)[1])

    def is_echo(self, topic: str, payload: bytes) -> bool:
        """Whether the broker brings back what left here: the record of that lies in the outbox."""
        left = self._echoes.get((topic, payload), 0)
        if not left:
            return False
        if left == 1:
            del self._echoes[(topic, payload)]
        else:
            self._echoes[(topic, payload)] = left - 1
        self.echoed += 1
        return True

    def expect_echoes(self, topics: Collection[str]) -> None:
        """The topics that we have subscribed ourselves."""
        self._subscribed = frozenset(topics)

    def _drop_gone(self) -> bool:
        """Whether something waits that is still wanted."""
        while self._heap and (self._heap[0][1].gone or self._heap[0][1].done.done()):
            heapq.heappop(self._heap)
        return bool(self._heap)

    def _send(self, item: Item) -> None:
        topic = item.topic or item.topic_for(self._identity)
        if topic is None:
            self._parked.append(item)  # the organisation will be known one day
            return
        if (problem := topic_problem(topic, self._options)) is not None:
            self._refuse(item, problem, "INVALID_TOPIC", None)
            return
        if item.expired():
            self._too_late(item)
            return
        self._budget.take(len(item.payload), time.monotonic())
        if topic in self._subscribed:
            self._echoes[(topic, item.payload)] = self._echoes.get((topic, item.payload), 0) + 1
            if len(self._echoes) > _MOST_ECHOES:
                self._echoes.popitem(last=False)
        item.flying = True
        future = self._transport.submit(item.outgoing(topic))
        self._flying.add(future)
        future.add_done_callback(lambda done: self._ended(item, done))

    def _ended(self, item: Item, done: asyncio.Future[int]) -> None:
        self._flying.discard(done)
        item.flying = False
        if item.done.done():
            return
        error = LinkLost("cancelled") if done.cancelled() else done.exception()
        if error is None:
            self.sent += 1
            item.done.set_result({"status": "published", "reason_code": done.result()})
        elif isinstance(error, PublishRefused):
            self._refuse(item, str(error), "REFUSED_BY_BROKER", error.code, keep=error.keep)
        else:
            if not isinstance(error, LinkLost):
                log.error("a message for the broker is sent again: %r", error)
            self.repeated += 1
            self._push(item)

    def _refuse(self, item: Item, text: str, code: str, reason: int | None, *, keep: bool = True) -> None:
        self.refused += 1
        error = _dead(text, code, reason_code=reason)
        error.dead = keep
        log.log(logging.WARNING if keep else logging.DEBUG, "the message %s is refused: %s", item.id, text)
        item.done.set_exception(error)

    def _too_late(self, item: Item) -> None:
        self.expired += 1
        text = "its deadline passed before the broker had it"
        item.done.set_exception(HandlerError(text, error_code="DEADLINE_EXPIRED"))

    def _next_expiry(self) -> float:
        ends = [end for _, item in self._heap if (end := item.left()) is not None]
        return max(0.01, min(ends, default=_NEVER))

    def _expire(self) -> None:
        for _, item in self._heap:
            if item.expired() and not item.done.done():
                self._too_late(item)


def _dead(text: str, code: str, **more: Any) -> HandlerError:
    return HandlerError(text, error_code=code, dead=True, data={**more, "link": words.APP})
