"""I5: memory stays under its ceiling at any input rate; what is shed, in which order, and how it is reported."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services.retention import Keep
from petalbus.schemas.record import Record
from services.raw import Clients, entries, keeping, until

KB = "x" * 1000


@pytest.fixture
async def small(own_clients: Clients) -> Bus:
    """A bus with a ceiling of 24 MB."""
    bus = await own_clients.open("petalbus")
    await bus.call("CONFIG", "SET", "maxmemory", 24_000_000)
    return bus


async def memory(bus: Bus) -> int:
    text = (await bus.call("INFO", "memory")).decode()
    return int(next(line for line in text.splitlines() if line.startswith("used_memory:")).partition(":")[2])


async def fill(bus: Bus, key: str, count: int) -> list[str]:
    connection = bus._outbox.lane.connection
    assert connection is not None
    return [(await call).decode() for call in [connection.call("XADD", key, "*", "data", KB) for _ in range(count)]]


async def lost(bus: Bus) -> list[dict[str, Any]]:
    rows = await entries(bus, bus.keys.topic("bus.loss"))
    return [
        Record.from_fields([part for name, value in fields.items() for part in (name.encode(), value)]).data
        for _, fields in rows
    ]


async def check_exact(bus: Bus, key: str, ids: list[str]) -> list[str]:
    """What is missing of a stream is exactly what was reported of it; what is left."""
    left = [entry for entry, _ in await entries(bus, key)]
    missing: list[str] = []
    for report in await lost(bus):
        if report["stream"] == key:
            span = ids[ids.index(report["first"]) : ids.index(report["last"]) + 1]
            assert len(span) == report["count"]
            missing += span
    assert missing + left == ids
    return left


async def test_a_topic_that_grows_without_end_stays_below_the_ceiling(small: Bus) -> None:
    """I5: 60 MB of telemetry through 24 MB of memory; commands are accepted all the time."""
    topic = small.keys.topic("telemetry")
    ids: list[str] = []
    async with keeping(small, look_every=0.02, trim_every=0.05, keep=Keep(topics=1_000_000)) as janitor:
        for number in range(60):
            ids += await fill(small, topic, 1000)
            janitor.shedding.pressure = 1.0  # what was seen before does not count: a busy machine's look may be late
            assert not (await small.send("vehicle", "note", {}, priority=4, id=f"c{number}")).duplicate
            await until(lambda: janitor.shedding.pressure < 0.86, "there is room again")
        await until(lambda: janitor.shedding.pressure < 0.86, "memory is below the threshold")
    assert await memory(small) < 24_000_000 * 0.9
    left = await check_exact(small, topic, ids)
    assert len(left) > 5_000, "no more than needed is shed"
    assert await small.call("XLEN", small.keys.inbox("vehicle", 4)) == 60
    reports = await lost(small)
    assert all("memory" in report["reason"] for report in reports)


async def test_the_lowest_class_goes_first_and_urgent_commands_never(small: Bus) -> None:
    """I5: history that everybody has read, then topics, LOW, dead letters, NORMAL, at last what came by MQTT.

    Never HIGH or CRITICAL, nor what was promised: uploads, rows for the cloud, messages for the broker.
    """
    keys = small.keys
    filled = {}
    for key, count in (
        (keys.topic("t"), 3000),
        (keys.inbox("app", 1), 3000),
        (keys.inbox("app", 2), 3000),
        (keys.inbox("app", 3), 3000),
        (keys.inbox("app", 4), 3000),
        (keys.inbox("bucket", 1), 500),
        (keys.inbox("database", 2), 500),
        (keys.topic("mqtt.rx"), 3000),
    ):
        filled[key] = await fill(small, key, count)
        if ":inbox:" in key:
            await small.call("XGROUP", "CREATE", key, "inbox", 0)
    for topic in ("t", "mqtt.rx"):
        await small.call("XGROUP", "CREATE", keys.topic(topic), "app", 0)
    used = await memory(small)
    async with keeping(small, look_every=0.02, memory_ceiling=int(used / 0.86)) as janitor:
        await until(lambda: janitor.retention.lost, "something is shed")
        await until(lambda: janitor.shedding.pressure < 0.85, "there is room")
    reports = await lost(small)
    assert {report["stream"] for report in reports} == {keys.topic("t")}
    assert reports[0]["unread_by"] == ["app"]

    ceiling = int(await memory(small) / 2)
    async with keeping(small, look_every=0.02, memory_ceiling=ceiling) as janitor:
        await until(lambda: janitor.shedding._helpless, "all that may go is gone")
        await asyncio.sleep(0)
    order = list(dict.fromkeys(report["stream"] for report in await lost(small)))
    assert order == [keys.topic("t"), keys.inbox("app", 1), keys.inbox("app", 2), keys.topic("mqtt.rx")]
    for key, ids in filled.items():
        left = await check_exact(small, key, ids)
        if key.endswith((":inbox:3", ":inbox:4")) or ":bucket:" in key or ":database:" in key:
            assert left == ids
    assert await small.call("XLEN", keys.inbox("app", 1)) == 0
    assert await small.call("XLEN", keys.inbox("app", 2)) == 0


async def test_history_that_everybody_has_read_goes_before_anything_unread(small: Bus) -> None:
    keys = small.keys
    read = await fill(small, keys.topic("read"), 4000)
    unread = await fill(small, keys.topic("unread"), 6000)
    for topic, ids in (("read", read), ("unread", unread)):
        await small.call("XGROUP", "CREATE", keys.topic(topic), "app", ids[-1] if topic == "read" else 0)
    used = await memory(small)
    async with keeping(small, look_every=0.02, memory_ceiling=int(used / 0.9)) as janitor:
        await until(lambda: janitor.retention.lost, "something is shed")
        await until(lambda: janitor.shedding.pressure < 0.85, "there is room")
    reports = await lost(small)
    assert {report["stream"] for report in reports} == {keys.topic("read")}
    assert all("unread_by" not in report for report in reports)
    await check_exact(small, keys.topic("read"), read)
    assert await small.call("XLEN", keys.topic("unread")) == 6000


async def test_without_a_ceiling_nothing_is_shed(own_clients: Clients) -> None:
    bus = await own_clients.open("petalbus")
    await bus.call("CONFIG", "SET", "maxmemory", 0)
    await fill(bus, bus.keys.topic("t"), 2000)
    async with keeping(bus, look_every=0.01) as janitor:
        await until(lambda: janitor.boot is not None and janitor._trimmed_at, "it has looked")
    assert janitor.shedding.pressure == 0.0
    assert await bus.call("XLEN", bus.keys.topic("t")) == 2000
