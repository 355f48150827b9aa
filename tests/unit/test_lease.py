"""Leases: dead is who stood still for the whole term on one monotonic clock, and nobody else."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from petalbus.daemon.bus.lease import RELEASED, LeaseTable

TERM = 1.2
NAMES = ("a", "b", "c")


@dataclass
class Truth:
    """What a consumer really did: its count, when it last moved, whether it gave its work away."""

    count: int
    moved: float


class LeaseMachine(RuleBasedStateMachine):
    """Consumers beat, stop, leave and come; an observer looks, now and then late, over a slow wire."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(term=TERM)
        self.now = 100.0
        self.beat = 0
        self.truth: dict[str, Truth] = {}
        self.noted: dict[str, tuple[int, float]] = {}
        self.grace = 0.0

    @rule(seconds=st.sampled_from([0.05, 0.3, 0.9, 1.3, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def beats(self, name: str) -> None:
        self.beat += 1  # a count never comes back: names are not used twice, and a count only goes up
        self.truth[name] = Truth(self.beat, self.now)

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def leaves_in_order(self, data: st.DataObject) -> None:
        self.truth[data.draw(st.sampled_from(sorted(self.truth)))].count = RELEASED

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def is_forgotten(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.truth)))
        del self.truth[name]

    @rule()
    def observer_was_blind(self) -> None:
        self.table.reset(self.now)
        self.grace = self.now

    @rule(out=st.sampled_from([0.0, 0.2, 3.0]), back=st.sampled_from([0.0, 0.2, 3.0]))
    def looks(self, out: float, back: float) -> None:
        asked = self.now
        self.now += out
        sampled = self.now
        beats = {name: truth.count for name, truth in self.truth.items()}
        self.now += back
        dead = self.table.observe(beats, asked=asked, now=self.now)
        assert dead <= beats.keys()
        for name, truth in self.truth.items():
            if truth.count == RELEASED:
                assert name in dead, "who leaves in order is relieved at once"
                continue
            if name in dead:
                assert sampled - truth.moved >= TERM, f"{name} beat {sampled - truth.moved:g} s ago and counts as dead"
                assert asked - self.grace >= TERM, "judged before the observer had looked for a whole term"
            count, since = self.noted.get(name, (None, 0.0))
            if count == truth.count and asked - max(since, self.grace) >= TERM:
                assert name in dead, f"{name} was seen standing still for the whole term"
        self.noted = {
            name: self.noted[name] if self.noted.get(name, (None, 0.0))[0] == count else (count, self.now)
            for name, count in beats.items()
        }

    @invariant()
    def knows_only_who_is_there(self) -> None:
        assert len(self.table._seen) <= len(NAMES), "the table must not grow with names that are gone"


LeaseMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, database=None)


class TestLeasesAreJudgedFairly(LeaseMachine.TestCase):  # type: ignore[misc,valid-type]  # made at run time
    """I6: dead within the term, never while beating; an answer that came late blames nobody; released at once."""


def test_a_stale_answer_blames_nobody() -> None:
    """I6: the answer waited 5 s in the buffer of a busy process; what it says is as old as the question."""
    table = LeaseTable(term=TERM)
    assert table.observe({"a": 7}, asked=0.0, now=0.01) == set()
    assert table.observe({"a": 7}, asked=0.3, now=5.3) == set()
    assert table.observe({"a": 24}, asked=5.3, now=5.31) == set()


def test_the_first_look_judges_nobody() -> None:
    """An observer that has just started gives everybody a whole term, except who left in order."""
    table = LeaseTable(term=TERM)
    assert table.observe({"a": 1, "b": RELEASED}, asked=50.0, now=50.0) == {"b"}
    assert table.observe({"a": 1}, asked=51.1, now=51.1) == set()
    assert table.observe({"a": 1}, asked=51.3, now=51.3) == {"a"}
    assert table.observe({"a": 2}, asked=51.4, now=51.4) == set(), "it is back before its work was taken"


def test_alive_says_whether_it_knows() -> None:
    """``alive`` is None before the first look, then True until the term is over."""
    table = LeaseTable(term=TERM)
    assert table.alive("a", 0.0) is None
    table.observe({"a": 1}, asked=0.0, now=0.0)
    assert table.alive("a", 1.0) is True
    assert table.alive("a", 1.3) is False
