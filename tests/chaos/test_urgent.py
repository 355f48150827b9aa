"""I4: how long a CRITICAL command waits behind a backlog. The strict bound is the benchmark's; this one holds
anywhere.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from chaos.world import World, lag
from petalbus.schemas.stamps import boot_clock_ns
from petalbus.schemas.vocabulary import Priority

pytestmark = [pytest.mark.processes, pytest.mark.alone]
BACKLOG = 20_000
HANDLER = 0.001
BOUND = 0.025

BUSY = """
import asyncio, sys, time, petalbus
from petalbus.schemas.stamps import boot_clock_ns
async def main(url, bus):
    app = petalbus.connect(url, app="app", bus=bus)
    @app.on("low", concurrency=None)
    async def low(record):
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
    @app.on("stop")
    async def stop(record):
        return {"started": boot_clock_ns()}
    async with app:
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


async def test_critical_starts_behind_twenty_thousand_low_ones(world: World) -> None:
    """I4: each LOW handler burns 1 ms; of 100 CRITICAL commands 99 start within one of them and little more."""
    gcs = await world.sender()
    for first in range(0, BACKLOG, 4000):
        await asyncio.gather(
            *(gcs.send("app", "low", {}, priority=Priority.LOW, key=f"k{n % 8}") for n in range(first, first + 4000))
        )
    child = await world.children.code(BUSY, world.clients.url, world.clients.bus)
    await child.line("^ready")
    waits = []
    async with lag() as late:
        for _ in range(100):
            sent = boot_clock_ns()
            reply = await gcs.request("app", "stop", {}, priority=Priority.CRITICAL, timeout=5)
            waits.append((reply.data["started"] - sent) / 1e9)
            await asyncio.sleep(0.01)
    left = await gcs.call("XINFO", "GROUPS", gcs.keys.inbox("app", Priority.LOW))
    info = dict(zip(left[0][::2], left[0][1::2], strict=True))
    assert info[b"lag"] + info[b"pending"] > 1000, "the backlog was there all the time"
    p99 = statistics.quantiles(waits, n=100)[98]
    assert p99 < BOUND + late[0], f"p99 {p99 * 1000:.1f} ms, p50 {statistics.median(waits) * 1000:.1f} ms"
    assert time.monotonic() > 0
