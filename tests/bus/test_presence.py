"""Which applications are there: online while a heartbeat moves, offline when it does not. On a real server."""

from __future__ import annotations

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record

from support.procs import Children

SITTER = """
import asyncio, sys, petalbus
async def main():
    async with petalbus.connect(sys.argv[1], app="sitter", bus=sys.argv[2]) as bus:
        @bus.on("x")
        async def x(record): ...
        await bus.listen()
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def seen(bus: Bus) -> dict[str, tuple[str, int]]:
    """Status and number of live processes of each app."""
    return {one.app: (one.status, one.consumers) for one in await bus.applications()}


async def test_applications_come_and_go(clients: Clients) -> None:
    """S-087, S-119: online with its number of processes; offline, and still listed, after an orderly end."""
    gcs, app = await clients.open("gcs"), clients.make("app")

    @app.on("x")
    async def handle(_record: Record) -> None: ...

    await app.start()
    second = await clients.open("gcs")
    assert await seen(gcs) == {"gcs": ("online", 2), "app": ("online", 1)}
    await app.close()
    await second.close()
    assert await seen(gcs) == {"gcs": ("online", 1), "app": ("offline", 0)}
    status = await gcs.call("HGETALL", gcs.keys.status("app"))
    stored = dict(zip(status[::2], status[1::2], strict=True))
    assert (stored[b"app_id"], stored[b"status"]) == (b"app", b"offline")
    assert float(stored[b"last_seen"]) > 1e9


async def test_an_orderly_end_leaves_no_ghost(clients: Clients) -> None:
    """Ten quick lives: no heartbeat is left behind that nobody will ever remove, and nobody is shown as online."""
    gcs = await clients.open("gcs", presence=False)
    for number in range(10):
        bus = clients.make("brief", heartbeat=0.01)
        if number % 2:
            bus.on("x")(_nothing)
        await bus.start()
        await bus.close()
    assert await gcs.call("HLEN", gcs.keys.beats) == 0
    assert await gcs.call("HGET", gcs.keys.status("brief"), "status") == b"offline"


async def _nothing(_record: Record) -> None: ...


async def test_a_killed_or_stopped_process_goes_offline_and_a_resumed_one_comes_back(
    clients: Clients, children: Children
) -> None:
    """S-087: judged by whether the count moves: SIGSTOP and kill -9 show as offline, SIGCONT as online again."""
    gcs = await clients.open("gcs")
    child = await children.code(SITTER, clients.url, clients.bus)
    await child.line("ready")

    async def is_(status: str) -> bool:
        return (await seen(gcs)).get("sitter", ("", 0))[0] == status

    await until(lambda: is_("online"), "it is online")
    child.freeze()
    await until(lambda: is_("offline"), "a stopped process is offline")
    child.thaw()
    await until(lambda: is_("online"), "it is back")
    child.kill()
    await until(lambda: is_("offline"), "a killed process is offline")


async def test_a_one_shot_tool_is_no_application(clients: Clients) -> None:
    """With ``presence=False`` a client is not listed."""
    tool = await clients.open("tool", presence=False)
    assert await seen(tool) == {}
