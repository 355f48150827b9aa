"""The small pure parts that deal with time: token bucket and backoff. The clock is an argument, so nothing waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petalbus.daemon.bus.lane import Backoff
from petalbus.daemon.bus.ratelimit import TokenBucket

QUICK = settings(max_examples=100, deadline=None, database=None)
GAPS = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=300)


@QUICK
@given(rate=st.floats(0.2, 500.0), gaps=GAPS)
def test_no_window_of_time_lets_more_through_than_rate_and_burst(rate: float, gaps: list[float]) -> None:
    """Between any two moments at most rate x time + one second's worth passes, and refusals are counted."""
    bucket = TokenBucket(rate, now=0.0)
    now, taken, refused = 0.0, [], 0
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
        else:
            refused += 1
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 11):
            allowed = rate * (taken[last] - taken[first]) + max(1.0, rate)
            assert last - first + 1 <= allowed + 1e-6
    assert bucket.refused == refused


@QUICK
@given(rate=st.floats(0.2, 500.0), count=st.integers(1, 400))
def test_who_keeps_to_the_rate_is_never_refused(rate: float, count: int) -> None:
    """A steady sender just below the limit loses nothing."""
    bucket = TokenBucket(rate, now=0.0)
    assert all(bucket.take(number * 1.0001 / rate) for number in range(count))


def test_a_burst_of_one_second_passes_then_the_rate_holds() -> None:
    """Ten a second: ten at once, the eleventh is refused, one more after a tenth of a second; idling saves up
    one burst.
    """
    bucket = TokenBucket(10.0, now=5.0)
    assert [bucket.take(5.0) for _ in range(11)] == [True] * 10 + [False]
    assert bucket.take(5.1001)
    assert not bucket.take(5.1002)
    assert [bucket.take(5000.0) for _ in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_must_be_positive(rate: float) -> None:
    """The error says what to write instead."""
    with pytest.raises(ValueError, match="use None for no limit"):
        TokenBucket(rate, now=0.0)


@QUICK
@given(first=st.floats(0.001, 1.0), factor=st.floats(1.0, 1000.0), count=st.integers(1, 80))
def test_backoff_doubles_up_to_its_limit_and_never_hurries(first: float, factor: float, count: int) -> None:
    """Each wait lies between half and all of its step; steps double; none is over the limit; success starts anew."""
    most = first * factor
    backoff = Backoff(first, most)
    for number in range(count):
        step = min(most, first * 2.0**number)
        assert step * 0.5 <= backoff.next() <= step
    backoff.reset()
    assert backoff.next() <= first


def test_backoff_waits_differ_between_clients() -> None:
    """Jitter: a hundred clients that lost the server together do not come back in the same moment."""
    assert len({Backoff(1.0, 1.0).next() for _ in range(100)}) > 90
