"""Missions on links that lose a third or half of all messages, each way, on a clock of its own: how long it takes."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from typing import Any

import pytest

from mavlink.ground import BOTH, Ground, flying
from mavlink.own_clock import run_on_own_clock
from mavlink.some_missions import mission, onboard, places
from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.missions.trip import SteadyTrip
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.failures import Failures

ITEMS = 50
SEEDS = range(10)


async def exchange(autopilot: Any, failures: Failures, seed: int) -> tuple[float, float, Counter[str]]:
    """Seconds for an upload and for a download, and how often what was said."""
    ground = Ground()
    said: Counter[str] = Counter()
    send = ground.calls._send  # what passes here is counted

    def counted(message: Any, system: int) -> int:
        said[message.get_type()] += 1
        return send(message, system)

    ground.calls._send = counted  # type: ignore[method-assign]  # as above
    async with ground.link, flying(ground, autopilot, failures, seed=seed) as vehicle:
        items = mission(ITEMS)
        began = time.monotonic()
        await ground.missions.upload(items, timeout=30.0, verify=False)
        up = time.monotonic() - began
        assert places(onboard(vehicle.sim).items[0], 1) == places(items, 1)
        await asyncio.sleep(6.0)  # PX4 may have missed that the exchange is over
        began = time.monotonic()
        assert places(await ground.missions.download(timeout=30.0), 1) == places(items, 1)
        return up, time.monotonic() - began, said


@BOTH
@pytest.mark.parametrize(("loss", "up_s", "down_s"), [(0.3, (4.5, 7.5), (6.5, 9.0)), (0.5, (8.0, 14.0), (10.0, 14.0))])
def test_no_exchange_on_a_bad_link_is_much_slower_than_the_others(
    autopilot: Any, loss: float, up_s: tuple[float, float], down_s: tuple[float, float]
) -> None:
    """50 items, 40 ms to and fro; the median and the slowest of ten."""
    failures = Failures(loss=loss, delay=0.02)
    results = [run_on_own_clock(exchange(autopilot, failures, seed)) for seed in SEEDS]
    for place, (middle, most) in enumerate((up_s, down_s)):
        seconds = sorted(result[place] for result in results)
        assert statistics.median(seconds) <= middle
        assert seconds[-1] <= most


@pytest.mark.parametrize("autopilot", [PX4, ARDUPILOT], ids=["px4", "ardupilot"])
def test_a_slow_link_is_not_flooded(autopilot: Any) -> None:
    """600 ms to and fro, nothing lost: once that is known everything is said once."""
    _, _, said = run_on_own_clock(exchange(autopilot, Failures(delay=0.3), 1))
    assert said["MISSION_REQUEST_INT"] <= ITEMS + 5
    assert said["MISSION_ITEM_INT"] <= 8 * ITEMS, "its length is found out while it goes on"


def test_a_wire_that_is_full_for_a_moment_is_a_loss_and_no_error() -> None:
    """Only when nothing ever left nobody is there."""

    async def main() -> None:
        ground = Ground()
        send, count = ground.calls._send, 0

        def narrow(message: Any, system: int) -> int:
            nonlocal count
            count += 1
            return send(message, system) if count % 3 else 0

        async with ground.link, flying(ground, PX4):
            ground.calls._send = narrow  # type: ignore[method-assign]  # a wire that drops every third
            await ground.missions.upload(mission(20), timeout=10.0)
            count = 0  # a whole exchange begins with a message that leaves
            assert len(await ground.missions.download(timeout=10.0)) == 20
            ground.calls._send = lambda _message, _system: 0  # type: ignore[method-assign]  # as above
            with pytest.raises(NotConnected):
                await ground.missions.download(timeout=1.0)

    run_on_own_clock(main())


# How long an answer takes


def learn(trip: SteadyTrip, takes: float, exchanges: int, *, loss: float = 0.0, seed: int = 1) -> int:
    """Exchanges with a vehicle that answers after ``takes`` seconds; how often something was said."""
    rng = random.Random(seed)
    said = 0
    for _ in range(exchanges):
        now, said_at, answer_at = 0.0, [0.0], float("inf")
        while True:
            if rng.random() >= loss:
                answer_at = min(answer_at, now + takes)
            again_at = now + trip.pause(len(said_at))
            if answer_at <= again_at:
                break
            now = again_at
            said_at.append(now)
        said += len(said_at)
        trip.answered(said_at, answer_at)
    return said


@pytest.mark.parametrize("takes", [0.03, 0.12, 0.6, 1.2])
def test_the_time_is_learnt_from_answers_that_do_not_say_to_what(takes: float) -> None:
    trip = SteadyTrip()
    learn(trip, takes, 20, loss=0.3)
    assert trip.smooth == pytest.approx(takes, rel=0.15, abs=0.005)
    assert learn(trip, takes, 20) <= 24, "who answers always is not asked twice"


@pytest.mark.parametrize(("before", "after"), [(0.04, 0.5), (0.5, 0.04), (0.3, 0.05)])
def test_it_follows_when_it_changes(before: float, after: float) -> None:
    """Also from an answer that the vehicle gave late, or to a question that it repeated by itself."""
    trip = SteadyTrip()
    learn(trip, before, 10)
    learn(trip, after, 30, loss=0.5)
    assert trip.smooth == pytest.approx(after, rel=0.15, abs=0.005)
