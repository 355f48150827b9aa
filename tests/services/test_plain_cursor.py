"""How far replies were handed over to a program is forgotten by the server, in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis.asyncio

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services.plain_inward import cursors_key
from petalbus.schemas.record import Record

from .plain_program import APP, CONTROL, Program, bridging
from support.servers import RealServer


@pytest.fixture
def bus_server(own_server: RealServer) -> RealServer:
    """A server of the test's own: plain keys have no name of the bus in them."""
    return own_server


@pytest.fixture
def bus_name() -> str:
    return "petalbus"


async def answering(clients: Clients) -> None:
    """An application that answers with the number that it was given."""
    control = clients.make(CONTROL)

    @control.on("command")
    async def handle(record: Record) -> dict[str, object]:
        return {"status": "success", "n": record.data["n"]}

    await control.start()


@pytest.mark.parametrize("again", [False, True], ids=["it runs on", "it starts again"])
async def test_replies_are_handed_over_although_the_cursor_is_lost(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis, again: bool
) -> None:
    """S-130, I1, I2: each reply once, those before and those after; also by a bridge that knows nothing of before."""
    await answering(clients)
    program = Program(keys)
    cursors = cursors_key(bus.keys)

    async def ask(numbers: range) -> None:
        for number in numbers:
            await program.send("command", {"command": "hover", "n": number})
        await until(lambda: set(answered()) >= set(numbers), "they are answered")

    def answered() -> list[int]:
        return [int(message["payload"].get("n", -1)) for message in program.got]

    async with program.running(), contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(bridging(bus))
        await ask(range(5))
        if again:
            await stack.aclose()
        assert await keys.delete(cursors) == 1
        if again:
            running = await stack.enter_async_context(bridging(bus))
            await until(lambda: APP in running.statistics()["programs"], "the program is served")
        for number in range(5, 15):
            await ask(range(number, number + 1))
            await keys.hdel(cursors, APP)
        await asyncio.sleep(0.3)
    assert sorted(answered()) == list(range(15)), "none is missing, none came twice"
