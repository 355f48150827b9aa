"""Places that are kept for a type of record: nobody else takes them, and what they are kept for reaches them."""

from __future__ import annotations

import asyncio

from bus.clients import Clients, until
from petalbus.schemas.record import Record


async def test_a_backlog_of_others_keeps_nothing_from_its_places(clients: Clients) -> None:
    """120 records wait for two places: a command that comes behind them begins at once."""
    app, gcs = clients.make("app", workers=4, reserved=(("command.now", 2),)), await clients.open("gcs")
    gate, begun = asyncio.Event(), asyncio.Event()
    running = most = 0

    @app.on("work", concurrency=None, overtakes=lambda _record: True)
    async def work(_record: Record) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    @app.on("command.now")
    async def now(_record: Record) -> None:
        begun.set()

    await app.start()
    for _ in range(120):
        await gcs.send("app", "work", {})
    await until(lambda: running == 2, "two run")
    await gcs.send("app", "command.now", {}, key="k")
    async with asyncio.timeout(5):
        await begun.wait()
    assert (running, most) == (2, 2)
    gate.set()
    await until(lambda: app.statistics()["consumer"]["held"] == 0, "all are handled")
