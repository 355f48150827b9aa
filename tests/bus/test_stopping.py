"""I10: a graceful stop leaves nothing delivered but unseen, and keeps nobody waiting. On a real server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from support.procs import Children

WORKER = """
import asyncio, signal, sys, petalbus
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with petalbus.connect(sys.argv[1], app="app", bus=sys.argv[2]) as bus:
        @bus.on("n", concurrency=None)
        async def n(record):
            await asyncio.sleep(0.002)
            print("ran", record.id, flush=True)
            return {}
        await bus.listen()
        print("ready", flush=True)
        await stop.wait()
    print("stopped", flush=True)
asyncio.run(main())
"""


def holding(bus: Bus, runs: Counter[str], go: asyncio.Event) -> Bus:
    """A member of the app that counts its runs and waits for ``go`` in each."""

    @bus.on("n", concurrency=None)
    async def handle(record: Record) -> dict[str, bool]:
        runs[record.id] += 1
        await go.wait()
        return {"ok": True}

    return bus


async def test_running_work_is_finished_and_unstarted_work_is_given_away_at_once(clients: Clients) -> None:
    """I10: what runs is finished and answered by the leaver; what it had only read is run by a sibling without
    waiting.
    """
    runs_1, runs_2 = Counter[str](), Counter[str]()
    go_1, go_2 = asyncio.Event(), asyncio.Event()
    go_2.set()
    first = await _started(holding(clients.make("app", workers=1, heartbeat=0.1, dead_after=30), runs_1, go_1))
    gcs = await clients.open("gcs")
    for number in range(30):
        await gcs.send("app", "n", {}, id=f"m{number}", key=f"k{number}")
    await until(lambda: first.statistics()["consumer"]["held"] == 30, "the first member has read all")
    second = await _started(holding(clients.make("app", heartbeat=0.1, dead_after=30), runs_2, go_2))
    closing = asyncio.create_task(first.close(), name="closing")
    await asyncio.sleep(0)
    begun = time.monotonic()
    await until(lambda: len(runs_2) == 29, "the sibling runs what the leaver had not started", seconds=4)
    assert time.monotonic() - begun < 2.0, "no lease had to end for it, and no running handler"
    go_1.set()
    await closing
    await until(lambda: len(runs_1 + runs_2) == 30, "all ran")
    assert set((runs_1 + runs_2).values()) == {1}
    for number in range(30):
        await until(lambda one=f"m{number}": _status(gcs, one, Status.COMPLETED), f"m{number} is completed")
        assert len(await replies_to(gcs, f"m{number}")) == 1
    assert await pending(gcs, "app") == 0
    assert second.statistics()["consumer"]["taken_over"] == 29


async def _started(bus: Bus) -> Bus:
    await bus.start()
    return bus


async def _status(bus: Bus, message_id: str, status: Status) -> bool:
    return await bus.status(message_id) is status


async def test_a_handler_that_outlasts_the_grace_is_left_to_the_successor(clients: Clients) -> None:
    """I10: beyond the grace the handler is cancelled and its record runs again, at once, when somebody comes."""
    runs_1, runs_2 = Counter[str](), Counter[str]()
    never, go = asyncio.Event(), asyncio.Event()
    go.set()
    first = await _started(holding(clients.make("app", stop_grace=0.1), runs_1, never))
    gcs = await clients.open("gcs")
    await gcs.send("app", "n", {}, id="m1")
    await until(lambda: _status(gcs, "m1", Status.PROCESSING), "it runs")
    begun = time.monotonic()
    await first.close()
    assert time.monotonic() - begun < 2.0
    assert await pending(gcs, "app") == 1
    await _started(holding(clients.make("app", dead_after=30), runs_2, go))
    await until(lambda: _status(gcs, "m1", Status.COMPLETED), "the successor did it", seconds=3)
    assert (runs_1, runs_2) == (Counter(m1=1), Counter(m1=1))
    assert len(await replies_to(gcs, "m1")) == 1


async def test_a_stop_in_the_middle_of_traffic_loses_nothing(clients: Clients) -> None:
    """I10: ten members come and go while requests keep coming at every level: each is answered once."""
    gcs = await clients.open("gcs")
    runs = Counter[str]()
    done = asyncio.Event()

    def member() -> Bus:
        bus = clients.make("app")

        @bus.on("n", concurrency=None)
        async def handle(record: Record) -> dict[str, int]:
            runs[record.id] += 1
            await asyncio.sleep(0)
            return {"n": record.data["n"]}

        return bus

    async def come_and_go() -> None:
        old = await _started(member())
        for _ in range(10):
            new = await _started(member())
            await old.close()
            old = new
        done.set()

    going = asyncio.create_task(come_and_go(), name="come-and-go")
    answers = []
    number = 0
    while not done.is_set():
        answers.append(
            asyncio.create_task(
                gcs.request("app", "n", {"n": number}, id=f"m{number}", priority=Priority(1 + number % 4), timeout=15)
            )
        )
        number += 1
        await asyncio.sleep(0.0005)
    await going
    replies = await asyncio.gather(*answers)
    assert [reply.data["n"] for reply in replies] == list(range(number))
    assert set(runs.values()) == {1}, "nothing that was only read counts as begun"
    assert await pending(gcs, "app") == 0


@pytest.mark.processes
async def test_a_process_that_is_asked_to_stop(clients: Clients, children: Children) -> None:
    """I10: SIGTERM to a busy process while another one works: every record runs once, over both."""
    one = await children.code(WORKER, clients.url, clients.bus)
    two = await children.code(WORKER, clients.url, clients.bus)
    await one.line("ready")
    await two.line("ready")
    gcs = await clients.open("gcs")
    await asyncio.gather(*(gcs.send("app", "n", {}, id=f"m{n}", key=f"k{n % 8}") for n in range(600)))
    await one.line("ran m")
    one.signal(15)
    await one.line("stopped")
    assert await one.wait() == 0
    await until(lambda: len(_ran(one.output) + _ran(two.output)) >= 600, "all ran")
    counts = Counter(_ran(one.output) + _ran(two.output))
    assert counts == {f"m{n}": 1 for n in range(600)}
    await until(lambda: _nothing_pending(gcs), "all are settled")


def _ran(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith("ran ")]


async def _nothing_pending(gcs: Bus) -> bool:
    return await pending(gcs, "app") == 0
