"""Presence of programs in any language: a heartbeat is one HINCRBY, and the status hash follows by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from petalbus.daemon.bus.client import Bus
from services.raw import Clients, keeping, until

QUICK = {"look_every": 0.02, "dead_after": 0.3}


@contextlib.asynccontextmanager
async def beating(bus: Bus, field: str) -> AsyncIterator[None]:
    """Count up a heartbeat as a raw program does."""

    async def beat() -> None:
        while True:
            await bus.call("HINCRBY", bus.keys.beats, field, 1)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat(), name="beat")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def status(bus: Bus, app: str) -> str | None:
    value = await bus.call("HGET", bus.keys.status(app), "status")
    return value.decode() if value else None


async def becomes(bus: Bus, app: str, wanted: str) -> None:
    async def is_so() -> bool:
        return await status(bus, app) == wanted

    await until(is_so, f"{app} is {wanted}")


async def test_a_heartbeat_alone_makes_an_app_online_and_its_end_offline(clients: Clients, bus: Bus) -> None:
    """S-092, S-118, S-119, S-157: HGETALL status:<app>, and the list of applications."""
    async with keeping(bus, **QUICK) as janitor:
        async with beating(bus, "HEAR_FC|main"):
            await becomes(bus, "HEAR_FC", "online")
            flat = await bus.call("HGETALL", bus.keys.status("HEAR_FC"))
            stored = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
            assert stored["app_id"] == "HEAR_FC"
            assert float(stored["last_seen"]) > 0
            listed = {one.app: one.status for one in await bus.applications()}
            assert listed["HEAR_FC"] == "online"
            assert "HEAR_FC" in janitor.attendance.present
        await becomes(bus, "HEAR_FC", "offline")
        assert "HEAR_FC" not in janitor.attendance.present
        async with beating(bus, "HEAR_FC|main"):
            await becomes(bus, "HEAR_FC", "online")


async def test_an_app_is_online_while_one_of_its_consumers_is(clients: Clients, bus: Bus) -> None:
    async with keeping(bus, **QUICK), beating(bus, "app|one"):
        async with beating(bus, "app|two"):
            await becomes(bus, "app", "online")
        await asyncio.sleep(QUICK["dead_after"] * 2)
        assert await status(bus, "app") == "online"


async def test_an_app_whose_heartbeats_were_taken_away_goes_offline(clients: Clients, bus: Bus) -> None:
    """A takeover removes the dead one's heartbeat: nobody else would say that the app is gone."""
    async with keeping(bus, **QUICK):
        async with beating(bus, "app|one"):
            await becomes(bus, "app", "online")
        await bus.call("HDEL", bus.keys.beats, "app|one")
        await becomes(bus, "app", "offline")


async def test_dead_heartbeats_that_hold_nothing_are_removed(clients: Clients, bus: Bus) -> None:
    inbox = bus.keys.inbox("app", 2)
    await bus.call("XGROUP", "CREATE", inbox, "inbox", 0, "MKSTREAM")
    await bus.call("XADD", inbox, "*", "x", 1)
    await bus.call("XREADGROUP", "GROUP", "inbox", "holds", "COUNT", 1, "STREAMS", inbox, ">")
    await bus.call("XREADGROUP", "GROUP", "inbox", "empty", "COUNT", 1, "STREAMS", inbox, ">")
    await bus.call("HSET", bus.keys.beats, "app|holds", 7, "app|empty", 7)
    async with keeping(bus, **QUICK, forget_after=0.1), beating(bus, "app|lives"):

        async def forgotten() -> bool:
            return b"app|empty" not in await bus.call("HKEYS", bus.keys.beats)

        await until(forgotten, "the dead heartbeat is removed")
        assert set(await bus.call("HKEYS", bus.keys.beats)) >= {b"app|holds", b"app|lives"}
        names = [dict(zip(row[::2], row[1::2], strict=True))[b"name"] for row in await consumers(bus, inbox)]
        assert names == [b"holds"]


async def consumers(bus: Bus, inbox: str) -> list[list[bytes]]:
    rows: list[list[bytes]] = await bus.call("XINFO", "CONSUMERS", inbox, "inbox")
    return rows


async def test_a_client_of_the_library_is_not_disturbed(clients: Clients, bus: Bus) -> None:
    """Its own hello and goodbye stand; the janitor agrees with them."""
    async with keeping(bus, **QUICK):
        gcs = await clients.open("gcs", heartbeat=0.05)
        await becomes(bus, "gcs", "online")
        await asyncio.sleep(0.5)
        assert await status(bus, "gcs") == "online"
        await gcs.close()
        assert await status(bus, "gcs") == "offline"
        await asyncio.sleep(0.2)
        assert await status(bus, "gcs") == "offline"


async def test_whoever_just_said_hello_is_not_called_offline(clients: Clients, bus: Bus) -> None:
    """A verdict about old heartbeats is dropped when a new one has appeared meanwhile (in the script, atomically)."""
    keys = [bus.keys.beats, bus.keys.apps, bus.keys.status("app")]
    await bus.call("HSET", bus.keys.beats, "app|old", 5)

    async def write(verdict: str, *seen: str | int) -> int:
        from petalbus.daemon.bus.scripts import load

        return int(await bus.call("EVALSHA", load("attend").sha, 3, *keys, "app", verdict, "1.0", *seen))

    assert await write("offline", "app|old", 5) == 1
    assert await write("offline", "app|old", 4) == 0, "it has beaten since"
    await bus.call("HSET", bus.keys.beats, "app|new", 1)
    assert await write("offline", "app|old", 5) == 0, "somebody new is there"
    assert await write("online", "app|new", 1) == 1
    await bus.call("HDEL", bus.keys.beats, "app|new")
    assert await write("online", "app|new", 1) == 0, "it has said goodbye since"


async def test_the_boot_clock_is_published(clients: Clients, bus: Bus) -> None:
    """Programs that cannot read CLOCK_BOOTTIME find boot id and time beside each other."""
    from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

    async with keeping(bus, **QUICK):

        async def published() -> bool:
            return bool(await bus.call("EXISTS", bus.keys.clock))

        await until(published, "the clock is there")
        boot_id, mono = await bus.call("HMGET", bus.keys.clock, "boot_id", "mono")
    assert boot_id.decode() == BOOT_ID
    assert abs(int(mono) - boot_clock_ns()) < 5e9


async def test_garbage_among_the_heartbeats_disturbs_nobody(clients: Clients, bus: Bus) -> None:
    await bus.call("HSET", bus.keys.beats, b"\xff|x", "many", "no bar", 3)
    async with keeping(bus, **QUICK), beating(bus, "app|one"):
        await becomes(bus, "app", "online")
