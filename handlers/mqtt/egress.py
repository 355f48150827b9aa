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
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, Protocol

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.limits import Budget, size_of, topic_problem
from petalbus.handlers.mqtt.options import EgressOptions
from petalbus.handlers.mqtt.outgoing import Item
from petalbus.handlers.mqtt.resting import Resting
from petalbus.handlers.mqtt.transport import Identity, LinkLost, NotNow, PublishRefused, Transport
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

_DEADLINE_LOOK_S: Final = 0.5
_STALE_S: Final = 1.0
"""Telemetry that has waited for so long gives way to a newer value, also while there is a connection."""
_MOST_PARKED: Final = 64
NOT_NOW_FIRST_S: Final = 0.5
NOT_NOW_MOST_S: Final = 30.0
"""Pauses before a message that the broker did not take just then is sent again: doubled each time."""
NOT_NOW_TIMES: Final = 8
"""After so many, a minute later, it is given up: where the broker took others, or did not speak of a quota."""
NOT_NOW_PASSED: Final = 3
"""So many others that it took meanwhile show that it is this one. A code that does not speak of a quota is then enough
as soon as those that rest have a quarter of all places: the others need theirs."""
_ECHO_S: Final = 60.0
_MOST_ECHOES: Final = 256
_MOST_NOT_TAKEN: Final = 256


class Answers(Protocol):
    """Who waits for responses to commands; see ``waiting``."""

    def acknowledged(self, message_id: str) -> None:
        """A petal has the command."""

    def responding(self, message_id: str) -> None:
        """A response is in our hands."""

    def answered(self, message_id: str) -> None:
        """The broker has the response."""

    async def refused(self, message_id: str, text: str) -> None:
        """The response cannot leave. Raises BusError."""


class Egress:
    """``take`` handles the records; ``run`` sends until it is cancelled."""

    def __init__(
        self,
        transport: Transport,
        options: EgressOptions,
        *,
        answers: Answers | None = None,
        response: str = words.RESPONSE,
    ) -> None:
        """``answers`` is told what becomes of responses to commands."""
        self._transport = transport
        self._options = options
        self._answers = answers
        self._response = response
        self._most_resting = options.held // 4
        self._not_taken: dict[str, int] = {}
        self._identity = Identity()
        self._heap: list[tuple[Any, Item]] = []
        self._parked: list[Item] = []
        self._resting = Resting(self._push)
        self._latest: dict[str, Item] = {}
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._some = asyncio.Event()
        self._flying: set[asyncio.Future[int]] = set()
        self._offline_since: float | None = time.monotonic()
        self._budget = Budget(options, now=time.monotonic())
        self.sent = 0
        self._confirmed = 0
        self.conflated = 0
        self.refused = 0
        self.expired = 0
        self.repeated = 0
        self.put_off = 0
        self.echoed = 0
        self._subscribed: frozenset[str] = frozenset()
        self._echoes: OrderedDict[tuple[str, bytes], float] = OrderedDict()

    # -- what goes in -------------------------------------------------------------------------------------------------

    async def take(self, record: Record) -> dict[str, Any]:
        """Handle one ``mqtt.publish``: returns when the broker has it. Raises HandlerError for a dead letter."""
        try:
            item = self._item(record)
        except HandlerError as error:
            await self._response_refused(_answered_by(record.data, self._response), str(error))
            raise
        if item.topic is None and len(self._parked) >= _MOST_PARKED and item.topic_for(self._identity) is None:
            raise HandlerError("the organisation is not known", error_code="NO_ORGANIZATION", retry=True)
        if self._answers is not None:
            if item.answers is not None:
                self._answers.responding(item.answers)
            elif item.about is not None and item.is_ack:
                self._answers.acknowledged(item.about)
        if item.qos == 0:
            self._conflate(item)
        self._push(item)
        try:
            told = await item.done
        except HandlerError as error:
            await self._response_refused(item.answers, str(error))
            raise
        finally:
            item.gone = True
        if item.answers is not None and self._answers is not None:
            self._answers.answered(item.answers)
        return told

    async def _response_refused(self, message_id: str | None, text: str) -> None:
        if message_id is None or self._answers is None:
            return
        try:
            await self._answers.refused(message_id, text)
        except BusError as error:
            log.warning("command %s is left without a response: %s", message_id, error)

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
        """Of a topic's telemetry that waits, for a link or for its turn, only the latest value stays."""
        before = self._latest.get(item.where)
        late = before is not None and (self._offline_since is not None or before.waited > _STALE_S)
        if before is not None and late and not before.done.done() and not before.flying:
            before.done.set_result({"status": "conflated", "message": "a newer message of its topic came"})
            before.gone = True
            self.conflated += 1
        self._latest[item.where] = item

    def _push(self, item: Item) -> None:
        if item.about is not None and self._heap and self._heap[0][1].newest:
            item.newest = item.number  # newer than what has waited
        heapq.heappush(self._heap, (item.rank, item))
        self._wake.set()
        self._some.set()

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
        waiting = [item for _, item in self._heap if not item.gone] + self._parked + [*self._resting]
        oldest = min((item.stored_ns for item in waiting), default=None)
        return {
            "waiting": len(waiting),
            "oldest_s": None if oldest is None else round((boot_clock_ns() - oldest) / 1e9, 3),
            "without_organization": len(self._parked),
            "in_flight": len(self._flying),
            "sent": self.sent,
            "repeated": self.repeated,
            "put_off": self.put_off,
            "echoed": self.echoed,
            "conflated": self.conflated,
            "refused": self.refused,
            "expired": self.expired,
        }

    # -- what goes out ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what waits, as the link, its window and the limits allow. Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_all(), name="mqtt.send")
            tasks.create_task(self._watch_deadlines(), name="mqtt.deadlines")

    async def _watch_deadlines(self) -> None:
        """What became too late while it waits is told in time."""
        while True:
            await self._some.wait()
            waiting = [item for _, item in self._heap] + self._parked + [*self._resting]
            if not waiting:
                self._some.clear()
            for item in waiting:
                if item.expired() and not item.done.done() and not item.flying:
                    self._too_late(item)
            self._parked = [item for item in self._parked if not item.done.done()]
            self._resting.rouse(lambda item, topic: self._crowds(item, topic, more_than=self._most_resting))
            self._latest = {where: item for where, item in self._latest.items() if not item.gone}
            await asyncio.sleep(_DEADLINE_LOOK_S)

    async def _send_all(self) -> None:
        while True:
            if not self._drop_gone():
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._transport.room()
            if not self._drop_gone():
                continue
            pause = self._budget.wait(self._size(self._heap[0][1]), time.monotonic())
            if pause > 0:
                await asyncio.sleep(pause)
                continue  # something more urgent may have come
            self._send(heapq.heappop(self._heap)[1])

    def is_echo(self, topic: str, payload: bytes) -> bool:
        """Whether the broker brings back a response that left here: its record lies in the outbox."""
        left = self._echoes.pop((topic, payload), None)
        if left is None or time.monotonic() - left > _ECHO_S:
            return False
        self.echoed += 1
        return True

    def expect_echoes(self, topics: Collection[str]) -> None:
        """Where our own responses come back, and nobody here listens."""
        self._subscribed = frozenset(topics)

    def _drop_gone(self) -> bool:
        """Whether something waits that is still wanted."""
        while self._heap and (self._heap[0][1].gone or self._heap[0][1].done.done()):
            heapq.heappop(self._heap)
        return bool(self._heap)

    def _size(self, item: Item) -> int:
        return size_of(item.topic or item.topic_for(self._identity) or "", item.payload)

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
        if item.qos and self._resting.holds(item, topic):
            return
        self._budget.take(size_of(topic, item.payload), time.monotonic())
        if topic in self._subscribed and item.answers is not None:
            self._echoes[(topic, item.payload)] = time.monotonic()
            if len(self._echoes) > _MOST_ECHOES:
                self._echoes.popitem(last=False)
        item.flying = True
        old = item.tried and self._resting.is_overtaken(item, topic)
        future = self._transport.submit(item.outgoing(topic, retain=item.retain and not old))
        self._flying.add(future)
        future.add_done_callback(lambda done: self._ended(item, topic, done))

    def _ended(self, item: Item, topic: str, done: asyncio.Future[int]) -> None:
        self._flying.discard(done)
        item.flying = False
        if item.done.done():
            return
        error = LinkLost("cancelled") if done.cancelled() else done.exception()
        if error is None:
            self.sent += 1
            self._resting.confirmed(item, topic)
            self._not_taken.pop(topic, None)
            self._confirmed += item.qos  # that telemetry left says nothing about the broker
            item.done.set_result({"status": "published", "reason_code": done.result()})
        elif isinstance(error, PublishRefused):
            self._refuse(item, str(error), "REFUSED_BY_BROKER", error.code, keep=error.keep)
        else:
            item.tried = True
            self._echoes.pop((topic, item.payload), None)
            if isinstance(error, NotNow):
                self._put_off(item, topic, error)
                return
            if not isinstance(error, LinkLost):
                log.error("a message for the broker is sent again: %r", error)
            self.repeated += 1
            self._push(item)

    def _put_off(self, item: Item, topic: str, error: NotNow) -> None:
        """The broker does not take it just now: again after a pause, unless it will not have just this one."""
        self.put_off += 1
        if not item.put_off:
            item.sent_before = self._confirmed
            # a full broker is one line, not one of each message
            level = logging.DEBUG if self._resting else logging.WARNING
            log.log(level, "the message %s is sent again later: %s", item.id, error)
        item.put_off += 1
        if not error.patient:
            self._not_taken.setdefault(topic, self._confirmed)
            if len(self._not_taken) > _MOST_NOT_TAKEN:
                del self._not_taken[next(iter(self._not_taken))]
        often = item.put_off >= NOT_NOW_TIMES and (self._passed(item) >= NOT_NOW_PASSED or not error.patient)
        doubted = self._resting.doubts(item, topic) or self._crowds(item, topic, more_than=self._most_resting - 1)
        if often or (doubted and not error.patient):
            if not error.patient:
                self._resting.give_up(item, topic)
            text = f"{error}, {item.put_off} times, while it took {self._passed(item)} others"
            self._refuse(item, text, "REFUSED_BY_BROKER", error.code)
            return
        item.again_at = time.monotonic() + min(NOT_NOW_MOST_S, NOT_NOW_FIRST_S * 2.0 ** min(item.put_off - 1, 16))
        self._resting.put_off(item, topic, patient=error.patient)
        self._some.set()

    def _passed(self, item: Item) -> int:
        """How many others the broker has taken since it first did not take this one."""
        return self._confirmed - item.sent_before

    def _crowds(self, item: Item, topic: str, *, more_than: int) -> bool:
        """Whether too much rests, and it is not the broker as a whole: it took others since it first did not take this
        one, or any of its topic. What answers a command has all its attempts.
        """
        before = min(item.sent_before, self._not_taken.get(topic, item.sent_before))
        passed = self._confirmed - before
        return item.about is None and passed >= NOT_NOW_PASSED and len(self._resting) > more_than

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


def _answered_by(data: Any, response: str) -> str | None:
    """The command that a record answers that cannot be read otherwise."""
    payload = data.get("payload") if isinstance(data, dict) else None
    where = str(data.get("suffix") or data.get("topic") or "") if isinstance(data, dict) else ""
    if not isinstance(payload, dict) or where.rpartition("/")[2] != response or payload.get("messageId") is None:
        return None
    return str(payload["messageId"])


def _dead(text: str, code: str, **more: Any) -> HandlerError:
    return HandlerError(text, error_code=code, dead=True, data={**more, "link": words.APP})
