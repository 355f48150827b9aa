"""The ingest under faults: kill -9 of the daemon around its append, of the server, and lost answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from services.raw import dead, empty, entries, ingesting, xadd

from support.procs import Children
from support.proxy import Proxy
from support.servers import RealServer

# The daemon's ingest in a process of its own. Where it dies: before the append is sent, when it is sent and its answer
# is not awaited, when the answer is there and nothing else has happened, the same for the dead letters that follow from
# the same batch, or nowhere.
PROGRAM = """
import asyncio, os, signal, sys
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services import Ingest

url, name, where = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dying(Ingest):
    async def _run(self, call):
        if where == "before":
            die()
        if where == "sent":
            asking = asyncio.ensure_future(super()._run(call))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            die()
        answers = await super()._run(call)
        self.calls = getattr(self, "calls", 0) + 1
        if where == "after" or (where == "buried" and self.calls == 2):
            die()
        return answers

async def main():
    async with Bus(url, app="petalbus", bus=name) as bus:
        ingest = Dying(bus)
        print("ready", flush=True)
        await ingest.run()

asyncio.run(main())
"""

NOTE: dict[str, Any] = {"type": "note", "source": "HEAR_FC", "data": "{}"}


async def _mixture(bus: Bus, count: int, *, first: int = 0) -> None:
    """Messages, topic records, replies and poison, all with ids of their own."""
    calls: list[Coroutine[Any, Any, str]] = []
    for number in range(first, first + count):
        calls.append(xadd(bus, id=f"m{number}", recipient="app", **NOTE))
        calls.append(xadd(bus, id=f"t{number}", topic="t", **NOTE))
        calls.append(xadd(bus, id=f"r{number}", recipient="gcs", reply_to="unknown", kind="progress", **NOTE))
        calls.append(xadd(bus, id=f"bad {number}", recipient="app", **NOTE))
    await asyncio.gather(*calls)


async def _exactly_once(bus: Bus, count: int) -> None:
    """I2: every record is where it belongs, once; every invalid one is one dead letter."""
    await empty(bus)
    found = {
        "m": await entries(bus, bus.keys.inbox("app", 2)),
        "t": await entries(bus, bus.keys.topic("t")),
        "r": await entries(bus, bus.keys.replies("gcs")),
    }
    for letter, rows in found.items():
        ids = [fields["id"].decode() for _, fields in rows]
        assert ids == [f"{letter}{number}" for number in range(count)], letter
    assert [letter["id"].decode() for letter in await dead(bus)] == [f"bad {number}" for number in range(count)]


@pytest.mark.processes
@pytest.mark.parametrize("where", ["before", "sent", "after", "buried"])
async def test_kill_9_around_the_append_leaves_exactly_one_copy(
    where: str, server: RealServer, bus_name: str, children: Children
) -> None:
    """I1, I2: the daemon dies before, during and after its append; its successor neither loses nor repeats."""
    async with Bus(server.url, app="gcs", bus=bus_name) as bus:
        await _mixture(bus, 60)  # several batches: each child finds work
        for _ in range(3):
            child = await children.code(PROGRAM, server.url, bus_name, where)
            assert await child.wait() == -9
        async with ingesting(bus):
            await _exactly_once(bus, 60)


@pytest.mark.processes
async def test_kill_9_at_any_moment_of_a_flood(server: RealServer, bus_name: str, children: Children) -> None:
    """I1, I2: daemons killed one after the other in the middle of a flood."""
    async with Bus(server.url, app="gcs", bus=bus_name) as bus:
        for round_ in range(4):
            child = await children.code(PROGRAM, server.url, bus_name, "nowhere")
            await child.line("ready")
            flood = asyncio.create_task(_mixture(bus, 100, first=100 * round_), name="flood")
            await until(_adopting(bus, 60 * round_ + 10), "some are adopted")
            child.kill()
            await child.wait()
            await flood
        async with ingesting(bus):
            await _exactly_once(bus, 400)


def _adopting(bus: Bus, count: int) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def enough() -> bool:
        return bool(await bus.call("XLEN", bus.keys.topic("t")) >= count)

    return enough


async def test_kill_9_of_the_server_under_the_ingest(own_server: RealServer, bus_name: str) -> None:
    """I1, I2: the server is killed and comes back on its file, twice; the service goes on by itself."""
    options = BusOptions(connect_timeout=15, send_timeout=20)
    async with Bus(own_server.url, app="petalbus", bus=bus_name, options=options) as bus:
        await _mixture(bus, 300)
        async with ingesting(bus, pause=0.02):
            for count in (20, 150):
                await until(_adopting(bus, count), "some are adopted")
                await asyncio.to_thread(own_server.restart)
                await until(_back(bus), "the client is back")
            await _exactly_once(bus, 300)


def _back(bus: Bus) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def answers() -> bool:
        try:
            return await bus.call("PING") == b"PONG"
        except Exception:  # noqa: BLE001  # whatever a connection that is just lost says
            return False

    return answers


@pytest.mark.parametrize("word", [b"EVALSHA", b"XREADGROUP", b"dead_reason"])
async def test_a_lost_answer_repeats_nothing(server: RealServer, bus_name: str, word: bytes) -> None:
    """I2: the server has done it and its answer never arrives: neither a second copy nor a record left unseen."""
    async with Proxy(server.url) as proxy, Bus(server.url, app="gcs", bus=bus_name) as bus:
        await _mixture(bus, 50)
        async with Bus(proxy.url, app="petalbus", bus=bus_name) as broken:
            losses = [proxy.lose_reply_to(word) for _ in range(3)]
            async with ingesting(broken):
                for loss in losses:
                    async with asyncio.timeout(10):
                        await loss.wait()
                    await xadd(bus, id=f"x{os.urandom(4).hex()}", topic="more", **NOTE)
                await _exactly_once(bus, 50)
    # (the proxy and the bus are closed: nothing is left to reconnect)


async def test_cancelling_it_loses_nothing(clients: Clients, bus: Bus) -> None:
    """I10: however it is ended, what it had read is found again by the next start."""
    from petalbus.daemon.services import Ingest

    for round_ in range(5):
        task = asyncio.create_task(Ingest(bus).run(), name="ingest")
        flood = asyncio.create_task(_mixture(bus, 40, first=40 * round_), name="flood")
        await until(_adopting(bus, 40 * round_ + 1), "it works")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await flood
    async with ingesting(bus):
        await _exactly_once(bus, 200)


async def test_two_daemons_on_one_bus_adopt_each_record_once(clients: Clients, bus: Bus) -> None:
    """I2: a second daemon on the same server (two machines by mistake) makes no second copy."""
    other = await clients.open("petalbus")
    async with ingesting(bus), ingesting(other):
        await asyncio.gather(*[xadd(bus, id=f"m{number}", recipient="app", **NOTE) for number in range(500)])
        await empty(bus)
    ids = [fields["id"] for _, fields in await entries(bus, bus.keys.inbox("app", 2))]
    assert len(ids) == len(set(ids)) == 500
