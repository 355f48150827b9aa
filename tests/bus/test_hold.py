"""Records whose handler is still to come wait; and records of a topic that are published once by their id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import IdConflict
from petalbus.daemon.bus.options import BusOptions
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

from support.servers import RealServer


async def test_a_held_type_waits_for_its_handler(server: RealServer, bus_name: str) -> None:
    """I1, I8: what comes before its handler is no dead letter, and holds up no other type."""
    async with Bus(server.url, app="worker", bus=bus_name) as worker, Bus(server.url, app="boss", bus=bus_name) as boss:
        done: list[Any] = []

        @worker.on("other")
        async def other(record: Record) -> str:
            return "other"

        assert worker.hold("late")
        assert not worker.hold("other")
        await worker.listen()
        for number in range(3):
            await boss.send("worker", "late", {"number": number})
        assert (await boss.request("worker", "other", {})).data == "other"
        all_there = asyncio.Event()

        @worker.on("late")
        async def late(record: Record) -> None:
            done.append(record.data["number"])
            if len(done) == 3:
                all_there.set()

        async with asyncio.timeout(5):
            await all_there.wait()
        assert done == [0, 1, 2]
        with pytest.raises(ValueError, match="has a handler already"):
            worker.on("late")(late)


async def test_an_emergency_waits_for_its_handler_too(server: RealServer, bus_name: str) -> None:
    """I1, I8: a CRITICAL record, which no limit of its type delays, is no dead letter before it has a handler."""
    async with Bus(server.url, app="worker", bus=bus_name) as worker, Bus(server.url, app="boss", bus=bus_name) as boss:
        worker.hold("stop")
        await worker.listen()
        asked = asyncio.create_task(boss.request("worker", "stop", {}, priority=Priority.CRITICAL))
        async with asyncio.timeout(5):
            while worker.statistics()["consumer"]["held"] < 1:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

        @worker.on("stop")
        async def stop(_record: Record) -> str:
            return "stopped"

        assert (await asked).data == "stopped"
        assert await boss.dead.list("worker") == []


async def test_what_comes_later_does_not_overtake_what_was_held(server: RealServer, bus_name: str) -> None:
    """I3: records of one key that came before the handler, and those that come after it, are one lane."""
    async with Bus(server.url, app="worker", bus=bus_name) as worker, Bus(server.url, app="boss", bus=bus_name) as boss:
        worker.hold("late")
        await worker.listen()
        for number in range(5):
            await boss.send("worker", "late", {"number": number}, key=f"k{number % 2}")
        async with asyncio.timeout(5):
            while worker.statistics()["consumer"]["held"] < 5:
                await asyncio.sleep(0.01)
        done: list[int] = []
        all_there = asyncio.Event()

        async def late(record: Record) -> None:
            await asyncio.sleep(0.02)
            done.append(record.data["number"])
            if len(done) == 10:
                all_there.set()

        worker.on("late", concurrency=8)(late)
        for number in range(5, 10):
            await boss.send("worker", "late", {"number": number}, key=f"k{number % 2}")
        async with asyncio.timeout(5):
            await all_there.wait()
        for odd in (0, 1):
            assert [number for number in done if number % 2 == odd] == [n for n in range(10) if n % 2 == odd]


async def test_the_deadline_of_a_held_record_counts(server: RealServer, bus_name: str) -> None:
    """A held record whose deadline passes is never run, and its sender is told."""
    async with Bus(server.url, app="worker", bus=bus_name) as worker, Bus(server.url, app="boss", bus=bus_name) as boss:
        worker.hold("late")
        await worker.listen()
        await boss.send("worker", "late", {}, id="one", deadline=0.05)
        await asyncio.sleep(0.1)
        ran: list[str] = []

        @worker.on("late")
        async def late(record: Record) -> None:
            ran.append(record.id)

        async with asyncio.timeout(5):
            while (await boss.status("one")).name != "TIMEOUT":
                await asyncio.sleep(0.01)
        assert not ran


async def test_a_topic_keeps_an_id_once(server: RealServer, bus_name: str) -> None:
    """I2: the second one is told as a duplicate, also by another client of the same app; another app may not."""
    async with (
        Bus(server.url, app="one", bus=bus_name) as one,
        Bus(server.url, app="two", bus=bus_name) as two,
        one.subscribe("events", start="oldest") as events,
    ):
        first = await one.publish("events", "event", {"n": 1}, id="e1")
        second = await one.publish("events", "event", {"n": 2}, id="e1")
        assert (first.duplicate, second.duplicate) == (False, True)
        assert second.stream_id == first.stream_id
        with pytest.raises(IdConflict, match="e1"):
            await two.publish("events", "event", {"n": 3}, id="e1")
        await one.publish("events", "event", {"n": 4}, id="e2")
        seen = []
        async for record in events:
            seen.append((record.id, record.data["n"]))
            if record.id == "e2":
                break
        assert seen == [("e1", 1), ("e2", 4)]


async def test_a_sole_process_takes_over_in_the_order_of_the_stream(server: RealServer, bus_name: str) -> None:
    """I3: of several predecessors at once, at the start, and before anything newer."""
    gate = asyncio.Event()
    options = BusOptions(workers=2, window=4, stop_grace=0.1)
    left: list[Bus] = []
    async with Bus(server.url, app="boss", bus=bus_name) as boss:
        for number in range(30):
            await boss.send("worker", "work", {"n": number})
        for _ in range(3):  # each takes a few, and stops with them in hand
            one = Bus(server.url, app="worker", bus=bus_name, options=options)
            left.append(one)

            async def stuck(_record: Record) -> None:
                await gate.wait()

            one.on("work", concurrency=None, overtakes=lambda _record: True)(stuck)
            await one.start()
            await asyncio.sleep(0.1)
        for one in left:
            await one.close()
        done: list[int] = []
        all_there = asyncio.Event()
        sole = Bus(server.url, app="worker", bus=bus_name, options=BusOptions(workers=32, sole=True))

        async def work(record: Record) -> None:
            done.append(record.data["n"])
            if len(done) == 30:
                all_there.set()

        sole.on("work", concurrency=None, overtakes=lambda _record: True)(work)
        async with sole, asyncio.timeout(10):
            await all_there.wait()
        assert done == sorted(done)
