"""The scheduler against a model of it that is slow and obvious: order, priority, share, limits, nothing lost
or doubled.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from petalbus.daemon.bus.scheduler import Scheduler
from petalbus.schemas.vocabulary import Priority

SHARE = 16
LIMITS = {"one": 1, "two": 2, "any": None}


@dataclass(eq=False)
class Item:
    """A record as the scheduler sees it."""

    level: Priority
    lane: str
    kind: str
    order: tuple[int, int]
    alone: bool = False
    starts: int = field(default=0)


LEVELS = st.sampled_from(list(Priority))
LANES = st.sampled_from(["s1", "s2", "s3"])
KINDS = st.sampled_from(sorted(LIMITS))


class SchedulerMachine(RuleBasedStateMachine):
    """Pushes, starts, ends, retries and removes records in any order."""

    others: int | None = None
    apart: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[Item] = Scheduler(share=SHARE, others=self.others, apart=self.apart)
        self.model_waiting: list[Item] = []
        self.model_running: list[Item] = []
        self.clock = 0
        self.skipped = Counter[Priority]()

    @initialize()
    def limits(self) -> None:
        for kind, limit in LIMITS.items():
            self.scheduler.limit(kind, limit)

    @rule(level=LEVELS, lane=LANES, kind=KINDS, burst=st.integers(1, 4))
    def arrives(self, level: Priority, lane: str, kind: str, burst: int) -> None:
        for _ in range(burst):
            self.clock += 1
            self.push(Item(level, lane, kind, (self.clock, 0)), older=False)

    @rule(level=LEVELS, lane=LANES, kind=KINDS, age=st.integers(0, 40), alone=st.booleans())
    def is_taken_over(self, level: Priority, lane: str, kind: str, age: int, alone: bool) -> None:
        self.clock += 1  # a stream id is unique; this one lies before those that arrived
        self.push(Item(level, lane, kind, (max(0, self.clock - 1 - age), self.clock), alone), older=True)

    def push(self, item: Item, *, older: bool) -> None:
        self.scheduler.push(item, older=older)
        self.model_waiting.append(item)

    @rule(critical_only=st.booleans(), most=st.integers(1, 6))
    def starts(self, critical_only: bool, most: int) -> None:
        for _ in range(most):
            item = self.scheduler.pop(critical_only=critical_only)
            self.check_start(item, critical_only)
            if item is None:
                break

    def check_start(self, item: Item | None, critical_only: bool) -> None:
        startable = [one for one in self.model_waiting if self.may_start(one)]
        if critical_only:
            startable = [one for one in startable if one.level is Priority.CRITICAL]
        if item is None:
            assert not startable, f"nothing started, though {startable[0]} could"
            return
        assert any(one is item for one in startable), f"{item} must not start now"
        item.starts += 1
        assert item.starts == 1, f"{item} started twice"
        self.model_waiting.remove(item)
        self.model_running.append(item)
        best = max(one.level for one in startable)
        if best is Priority.CRITICAL:
            assert item.level is Priority.CRITICAL, "CRITICAL waits behind something else"
            return
        assert item.level is best or self.skipped[item.level] >= SHARE - 1, (
            f"{item} overtook {best.name} before its turn"
        )
        for level in (Priority.LOW, Priority.NORMAL):
            if level is item.level:
                self.skipped[level] = 0
            elif any(one.level is level for one in self.model_waiting):
                self.skipped[level] += 1

    def may_start(self, item: Item) -> bool:
        lane = [one for one in self.model_waiting if (one.level, one.lane) == (item.level, item.lane)]
        if any((one.level, one.lane) == (item.level, item.lane) for one in self.model_running):
            return False
        if any(one.order < item.order for one in lane):
            return False
        limit = LIMITS[item.kind]
        if item.level is Priority.CRITICAL:
            return True
        if item.alone and any(one.alone and one.level is not Priority.CRITICAL for one in self.model_running):
            return False
        ordinary = [one for one in self.model_running if one.level is not Priority.CRITICAL]
        if self.others is not None and item.kind not in self.apart:
            running = sum(one.kind not in self.apart for one in ordinary)
            assert running <= self.others
            if running == self.others:
                return False
        if limit is None:
            return True
        busy = sum(one.kind == item.kind and one.level is not Priority.CRITICAL for one in self.model_running)
        return busy < limit

    def end(self, item: Item) -> None:
        self.scheduler.done(item)
        self.model_running.remove(item)

    @precondition(lambda self: self.model_running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.model_running)))

    @precondition(lambda self: self.model_running)
    @rule(data=st.data())
    def fails_and_comes_back(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.model_running))
        self.end(item)
        item.starts = 0
        self.push(item, older=True)

    @precondition(lambda self: self.model_waiting)
    @rule(data=st.data())
    def is_removed(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.model_waiting))
        assert self.scheduler.remove(item)
        assert not self.scheduler.remove(item)
        self.model_waiting.remove(item)

    @precondition(lambda self: self.model_running)
    @rule(data=st.data())
    def cannot_be_removed_when_running(self, data: st.DataObject) -> None:
        assert not self.scheduler.remove(data.draw(st.sampled_from(self.model_running)))

    @rule()
    def everything_ends_and_the_rest_runs(self) -> None:
        for item in list(self.model_running):
            self.end(item)
        while (item := self.scheduler.pop()) is not None:
            self.check_start(item, critical_only=False)
            self.end(item)
        assert not self.model_waiting, "records are left that nothing will start"

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.scheduler) == len(self.model_waiting)
        assert {id(one) for one in self.scheduler} == {id(one) for one in self.model_waiting}
        for level in Priority:
            assert self.scheduler.waiting(level) == sum(one.level is level for one in self.model_waiting)


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, database=None)


class TestSchedulerKeepsItsPromises(SchedulerMachine.TestCase):  # type: ignore[misc,valid-type]  # made at run time
    """I3, I4: order in a lane, CRITICAL first, LOW in its turn, limits; nothing lost, nothing started twice."""


class ReservingMachine(SchedulerMachine):
    """The same with places that are kept for one type."""

    others = 1
    apart = frozenset({"two"})


ReservingMachine.TestCase.settings = SchedulerMachine.TestCase.settings


class TestPlacesThatAreReserved(ReservingMachine.TestCase):  # type: ignore[misc,valid-type]  # made at run time
    """The others have the rest, and no record waits for ever."""


def test_types_with_places_of_their_own_do_not_wait_for_the_others() -> None:
    """Nor do the others take theirs; CRITICAL waits for neither."""
    scheduler: Scheduler[Item] = Scheduler(others=2, apart={"two"})
    for number in range(4):
        scheduler.push(Item(Priority.HIGH, f"s{number}", "any", (number, 0)))
        scheduler.push(Item(Priority.NORMAL, f"c{number}", "two", (number, 1)))
    started = [item for item in iter(scheduler.pop, None) if item is not None]
    assert [item.kind for item in started] == ["any"] * 2 + ["two"] * 4
    urgent = Item(Priority.CRITICAL, "u", "any", (9, 0))
    scheduler.push(urgent)
    assert scheduler.pop() is urgent
    scheduler.done(urgent)
    assert scheduler.pop() is None
    scheduler.done(started[2])
    assert scheduler.pop() is None
    scheduler.done(started[0])
    last = scheduler.pop()
    assert last is not None
    assert last.order == (2, 0)
    assert scheduler.pop() is None


def scheduler_of(*items: Item) -> Scheduler[Item]:
    """A scheduler with the limits above, holding these records."""
    scheduler: Scheduler[Item] = Scheduler(share=SHARE)
    for kind, limit in LIMITS.items():
        scheduler.limit(kind, limit)
    for item in items:
        scheduler.push(item)
    return scheduler


@pytest.mark.parametrize("mixed", [False, True], ids=["high-low", "high-normal-low"])
def test_low_gets_its_share_of_the_starts_under_constant_load(mixed: bool) -> None:
    """I4: under constant HIGH load LOW gets at least every 16th start, and 5 % where NORMAL waits as well."""
    scheduler = scheduler_of()
    starts = Counter[Priority]()
    levels = [Priority.HIGH, Priority.LOW, *([Priority.NORMAL] if mixed else [])]
    for number in range(3200):
        for level in levels:
            if scheduler.waiting(level) < 4:
                scheduler.push(Item(level, f"s{number % 7}", "any", (number, level)))
        item = scheduler.pop()
        assert item is not None
        starts[item.level] += 1
        scheduler.done(item)
    assert starts[Priority.HIGH] > 0.8 * 3200, "the higher level has precedence"
    for level in levels:
        assert starts[level] >= (160 if mixed else 200), f"{level.name} got {starts[level]} of 3200 starts"


def test_a_lane_goes_on_when_its_limited_head_is_cancelled() -> None:
    """A record of another type must not wait for the type of a cancelled one."""
    running, limited = Item(Priority.NORMAL, "s1", "one", (1, 0)), Item(Priority.NORMAL, "s2", "one", (2, 0))
    behind = Item(Priority.NORMAL, "s2", "any", (3, 0))
    scheduler = scheduler_of(running, limited, behind)
    assert scheduler.pop() is running
    assert scheduler.pop() is None
    assert scheduler.remove(limited)
    assert scheduler.pop() is behind


def test_critical_waits_for_no_limit_and_leaves_its_worker_to_nobody_else() -> None:
    """I4: a type's limit does not hold CRITICAL back, and the worker kept for it takes nothing else."""
    running = Item(Priority.HIGH, "s1", "one", (1, 0))
    scheduler = scheduler_of(running)
    assert scheduler.pop() is running
    urgent = Item(Priority.CRITICAL, "s1", "one", (2, 0))
    scheduler.push(Item(Priority.HIGH, "s3", "any", (3, 0)))
    assert scheduler.pop(critical_only=True) is None
    scheduler.push(urgent)
    assert scheduler.pop(critical_only=True) is urgent


def test_lanes_of_sources_that_are_gone_are_forgotten() -> None:
    """Everything is bounded: ten thousand sources, each seen once, leave no ten thousand lanes behind."""
    scheduler = scheduler_of()
    for number in range(10_000):
        item = Item(Priority.NORMAL, f"source-{number}", "any", (number, 0))
        scheduler.push(item)
        if number % 2:
            assert scheduler.remove(item)
        else:
            assert scheduler.pop() is item
            scheduler.done(item)
    assert len(scheduler._levels[Priority.NORMAL].lanes) < 2000
    assert len(scheduler._levels[Priority.NORMAL].ready) < 2000
