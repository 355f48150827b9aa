"""I2, I9: how old the deduplication window becomes, by which clock, and that rotating it forgets nothing too early."""

from __future__ import annotations

import time

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services import Janitor, JanitorOptions
from petalbus.daemon.services.own_lane import own_lane
from services.raw import Clients

HOUR = 3600 * 10**9


class BootClock:
    """A boot clock that a test moves."""

    def __init__(self) -> None:
        self.now = 50 * HOUR

    def __call__(self) -> int:
        return self.now


async def look(bus: Bus, clock: BootClock, **options: int) -> dict[str, int]:
    """One look at the window by a janitor that was just started, as after a restart of the daemon."""
    janitor = Janitor(bus, options=JanitorOptions(**options), boot_clock=clock)  # type: ignore[arg-type]
    async with own_lane(bus) as outbox:
        await janitor._age_window(outbox)
    return janitor.window


async def send(bus: Bus, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        await bus.send("app", "note", {}, id=f"m{number}")


def test_the_promise_is_100000_ids_and_24_hours() -> None:
    """I2: the window's declared size."""
    assert JanitorOptions().window_ids == 100_000
    assert JanitorOptions().window_age == 24 * 3600


async def test_it_rotates_only_when_full_and_old(bus: Bus) -> None:
    """I2: neither a full window that is young nor an old one that is not full begins a new generation."""
    clock = BootClock()
    await send(bus, 99)
    await look(bus, clock, window_ids=100)
    clock.now += 30 * HOUR
    assert (await look(bus, clock, window_ids=100))["rotations"] == 0, "old, not full"
    await send(bus, 1, first=99)
    assert (await look(bus, clock, window_ids=100))["rotations"] == 1
    assert await bus.call("HLEN", bus.keys.ids_before) >= 100
    await send(bus, 100, first=100)
    clock.now += 23 * HOUR
    assert (await look(bus, clock, window_ids=100))["rotations"] == 0, "full, not old"
    clock.now += 2 * HOUR
    assert (await look(bus, clock, window_ids=100))["rotations"] == 1


async def test_a_rotation_forgets_nothing_that_is_in_the_window(bus: Bus) -> None:
    """I2: one generation later everything is still known; two later the oldest is not."""
    clock = BootClock()
    await send(bus, 100)
    await look(bus, clock, window_ids=100)
    for generation in range(2):
        clock.now += 25 * HOUR
        assert (await look(bus, clock, window_ids=100))["rotations"] == 1
        if generation == 0:
            assert (await bus.send("app", "note", {}, id="m0")).duplicate
            await send(bus, 100, first=100)
            assert (await bus.send("app", "note", {}, id="m50")).duplicate
            await look(bus, clock, window_ids=100)
    assert (await bus.send("app", "note", {}, id="m150")).duplicate
    assert not (await bus.send("app", "note", {}, id="m50")).duplicate


async def test_its_age_survives_restarts_and_counts_only_time_that_was_seen(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2, I9: a reboot adds nothing, because nobody knows how long the board was off."""
    clock = BootClock()
    await send(bus, 100)
    await look(bus, clock, window_ids=100)
    clock.now += 20 * HOUR
    assert (await look(bus, clock, window_ids=100))["age"] == 20 * 3600
    monkeypatch.setattr("petalbus.daemon.services.janitor.BOOT_ID", "anotherboot1")
    clock.now = 90 * HOUR
    assert (await look(bus, clock, window_ids=100))["age"] == 20 * 3600
    clock.now += 3 * HOUR
    assert (await look(bus, clock, window_ids=100))["age"] == 23 * 3600
    clock.now += 1 * HOUR
    assert (await look(bus, clock, window_ids=100))["rotations"] == 1


@pytest.mark.parametrize("years", [10, -10])
async def test_the_wall_clock_changes_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    """I9: a step of ten years forward or back neither ages nor keeps the window."""
    clock = BootClock()
    await send(bus, 100)
    await look(bus, clock, window_ids=100)
    real, real_ns, step = time.time, time.time_ns, years * 365 * 86_400
    monkeypatch.setattr(time, "time", lambda: real() + step)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + step * 10**9)
    clock.now += HOUR
    assert (await look(bus, clock, window_ids=100))["age"] == 3600
    clock.now += 23 * HOUR
    assert (await look(bus, clock, window_ids=100))["rotations"] == 1
    assert (await bus.send("app", "note", {}, id="m0")).duplicate


async def test_a_generation_that_was_begun_by_its_size_starts_young(clients: Clients, bus: Bus) -> None:
    """The append script's own rotation (its upper bound) is noticed: the new generation does not inherit the age."""
    clock = BootClock()
    small = await clients.open("small", window_ids=200)
    await send(small, 150)
    await look(bus, clock, window_ids=100)
    clock.now += 23 * HOUR
    await look(bus, clock, window_ids=100)
    await send(small, 200, first=150)
    assert await bus.call("EXISTS", bus.keys.ids_before) == 1
    clock.now += 2 * HOUR
    window = await look(bus, clock, window_ids=1)
    assert (window["rotations"], window["age"]) == (0, 0)


async def test_fenced_names_are_purged_a_generation_later(bus: Bus) -> None:
    """A name goes only when it was there one whole generation, and only when there are many."""
    clock = BootClock()
    await bus.call("HSET", bus.keys.fenced, *(part for number in range(50) for part in (f"old-{number}", 1)))
    for _ in range(2):
        clock.now += 25 * HOUR
        assert (await look(bus, clock, fenced=100))["purges"] == 0, "too few to be worth it"
    await bus.call("HSET", bus.keys.fenced, *(part for number in range(2500) for part in (f"mid-{number}", 1)))
    assert (await look(bus, clock, fenced=100))["purges"] == 0, "known from now on, purged a generation later"
    clock.now += 23 * HOUR
    assert (await look(bus, clock, fenced=100))["purges"] == 0
    assert await bus.call("HLEN", bus.keys.fenced) == 2550
    await bus.call("HSET", bus.keys.fenced, "new-0", 1)
    clock.now += 2 * HOUR
    assert (await look(bus, clock, fenced=100))["purges"] == 1
    assert await bus.call("HKEYS", bus.keys.fenced) == [b"new-0"]
