"""The limits of a connection to AWS IoT are kept in every second, not only on average."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.mqtt.limits import Budget, size_of
from petalbus.handlers.mqtt.options import EgressOptions


def leave(budget: Budget, idle: list[float], sizes: list[int]) -> list[float]:
    """When messages leave that come after pauses, each as soon as it may."""
    now, left = 0.0, []
    for pause, size in zip(idle, sizes, strict=True):
        now += pause
        while (wait := budget.wait(size, now)) > 0:
            now += wait + 1e-9
        budget.take(size, now)
        left.append(now)
    return left


@given(
    st.integers(1, 200),
    st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.3, 2.0]), st.integers(0, 2000)), max_size=500),
)
def test_no_second_has_more_than_the_rate(rate: int, plan: list[tuple[float, int]]) -> None:
    """S-198: a broker counts what comes in any second. Nobody waits for longer than the rate makes it."""
    budget = Budget(EgressOptions(rate=rate, bytes_rate=1e9), now=0.0)
    left = leave(budget, [pause for pause, _ in plan], [size for _, size in plan])
    for number, at in enumerate(left):
        assert bisect_right(left, at + 1 - 1e-6) - number <= rate
    if plan:
        assert left[-1] <= sum(pause for pause, _ in plan) + len(plan) / (0.9 * rate) + 1e-3


@pytest.mark.parametrize("size", [1_000, 100_000, 131_072])
def test_the_bytes_of_a_second(size: int) -> None:
    """A message larger than a burst leaves; those after it wait for longer."""
    options = EgressOptions(rate=1e6)
    left = leave(Budget(options, now=0.0), [0.0] * 2000, [size] * 2000)
    for begin in range(0, 1900, 97):
        count = bisect_right(left, left[begin] + 1 - 1e-6) - begin
        assert (count - 1) * size <= options.bytes_rate
    assert left[-1] <= 2000 * size / (0.9 * options.bytes_rate) + 1.0


def test_the_topic_counts() -> None:
    """What is sent is more than the payload."""
    assert size_of("a" * 200, b"x" * 10) >= 200 + 10 + 40
    assert size_of("\ud800", b"") < 100
