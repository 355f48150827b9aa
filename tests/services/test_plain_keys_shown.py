"""What people and old programs read in plain keys: statuses, queues, copies, broadcasts."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import pytest
import redis.asyncio

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from services.raw import keeping

from .plain_program import APP, CONTROL, Program, bridging
from support.servers import RealServer


@pytest.fixture
def bus_server(own_server: RealServer) -> RealServer:
    """A server of the test's own: plain keys have no name of the bus in them."""
    return own_server


@pytest.fixture
def bus_name() -> str:
    return "petalbus"


@pytest.fixture
def cli(own_server: RealServer) -> list[str]:
    """redis-cli, as a person uses it."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is None:
        pytest.skip("no redis-cli on PATH")
    return [program, "-s", own_server.socket_path]


async def shown(cli: list[str], *words: str) -> list[str]:
    """The lines that a command prints."""
    done = await asyncio.to_thread(
        subprocess.run, [*cli, *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.splitlines()


async def test_the_debug_commands_work(clients: Clients, bus: Bus, keys: redis.asyncio.Redis, cli: list[str]) -> None:
    """S-090, S-091, S-092, S-094, S-157: HGETALL status, KEYS queue, ZRANGE WITHSCORES, MONITOR show what they did."""
    control = await clients.open(CONTROL)
    program = Program(keys)
    await program.announce()
    async with bridging(bus) as bridge:
        await until(lambda: APP in bridge.statistics()["programs"], "the program is served")
        monitor = await asyncio.create_subprocess_exec(*cli, "MONITOR", stdout=asyncio.subprocess.PIPE)
        try:
            assert monitor.stdout is not None
            assert await monitor.stdout.readline() == b"OK\n"
            sent = await control.send(APP, "command", {"command": "hover"}, priority=3)
            await until(lambda: bridge.counts["handed"] == 1, "it is handed over")
            seen = b""
            async with asyncio.timeout(5):
                while b'"PUBLISH" "channel:HEAR_FC"' not in seen:
                    seen += await monitor.stdout.readline()
            assert sent.id.encode() in seen
        finally:
            monitor.kill()
            await monitor.wait()

        async def copied() -> bool:
            return bool(await keys.exists(f"queue:{CONTROL}:outbox"))

        await until(copied, "the outbox has its copy")
        assert (await shown(cli, "HGETALL", f"status:{APP}"))[:2] == ["status", "online"]
        queues = await shown(cli, "KEYS", "queue:*")
        assert set(queues) == {f"queue:{APP}:inbox", f"queue:{CONTROL}:outbox"}
        text, score = await shown(cli, "ZRANGE", f"queue:{APP}:inbox", "0", "-1", "WITHSCORES")
        assert json.loads(text)["id"] == sent.id
        assert score == "3499999999"
        assert await shown(cli, "HGET", f"message:{sent.id}", "type") == ["command"]


async def test_applications_of_the_bus_are_shown_in_plain_keys(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-092, S-118, S-119, C-19: status:<app> and app:<app>:online; offline when it leaves, and at the end."""
    control = await clients.open(CONTROL)
    other = await clients.open("other")
    async with keeping(bus, look_every=0.05, dead_after=0.4), bridging(bus):
        await _shows(keys, CONTROL, "online")
        status = await keys.hgetall(f"status:{CONTROL}")
        assert status["app_id"] == CONTROL
        assert float(status["last_seen"]) > 0
        assert 0 < await keys.ttl(f"app:{CONTROL}:online") <= 30
        await control.close()
        await _shows(keys, CONTROL, "offline")
        assert not await keys.exists(f"app:{CONTROL}:online")
        await _shows(keys, "other", "online")
    await _shows(keys, "other", "offline")
    assert (await other.call("HGET", bus.keys.status("other"), "status")) == b"online"


async def test_what_a_program_says_of_itself_is_not_overwritten(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """C-19: HEAR_FC was on the bus before, and is offline there; what it announces in plain keys counts."""
    native = await clients.open(APP)
    async with keeping(bus, look_every=0.05, dead_after=0.4), bridging(bus) as bridge:
        await _shows(keys, APP, "online")
        await native.close()
        await _shows(keys, APP, "offline")
        program = Program(keys)
        await program.announce()
        await until(lambda: APP in bridge.statistics()["programs"], "it is served")
        await _shows(keys, APP, "online")
        control = await clients.open(CONTROL)
        listed = {one.app: one.status for one in await control.applications()}
        assert listed[APP] == "online"
        assert (await keys.hgetall(f"status:{APP}")).get("petalbus") != (await keys.hget(f"status:{APP}", "last_seen"))


async def test_outboxes_and_hashes_are_bounded(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-091, S-143, S-158, C-17: the newest messages only, and everything written for people ends by itself."""
    control = await clients.open(CONTROL)
    program = Program(keys)
    await program.announce()
    async with bridging(bus, keep_outbox=5, keep_for=60) as bridge:
        await until(lambda: APP in bridge.statistics()["programs"], "the program is served")
        for number in range(12):
            await control.send(APP, "n", {"n": number})
        await until(lambda: bridge.counts["handed"] == 12, "all are handed over")

        async def last_copied() -> bool:
            newest = await keys.zrange(f"queue:{CONTROL}:outbox", -1, -1)
            return bool(newest and json.loads(newest[0])["payload"]["n"] == 11)

        await until(last_copied, "the outbox has the last one")
        copies = [json.loads(text)["payload"]["n"] for text in await keys.zrange(f"queue:{CONTROL}:outbox", 0, -1)]
        assert copies == [7, 8, 9, 10, 11]
        hashes = await keys.keys("message:*")
        assert len(hashes) == 12
        for key in (*hashes, f"queue:{CONTROL}:outbox"):
            assert 0 < await keys.ttl(key) <= 60


async def test_broadcasts_go_both_ways_once(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-095, S-147: channel:broadcast and the topic broadcast; text, JSON, messages; nothing comes back as an echo."""
    control = await clients.open(CONTROL)
    async with (
        keys.pubsub() as channel,
        control.subscribe("broadcast") as records,
        bridging(bus) as bridge,
    ):
        await channel.subscribe("channel:broadcast")
        await channel.get_message(timeout=5)
        await until(lambda: bridge.statistics()["hears"], "the bridge hears the channels")
        message = {"sender": APP, "message_type": "alert", "payload": {"severity": "warning", "message": "wind"}}
        for said in ("landing soon", '{"n":1}', json.dumps(message)):
            await keys.publish("channel:broadcast", said)
            assert (await _next(channel))["data"] == said
        got = []
        async for record in records:
            got.append((record.type, record.source, record.data))
            if record.type == "alert":
                await control.broadcast("note", {"n": 2})
                told = json.loads((await _next(channel))["data"])
                assert (told["sender"], told["message_type"], told["payload"]) == (CONTROL, "note", {"n": 2})
                await keys.publish("channel:broadcast", "the end")
                assert (await _next(channel))["data"] == "the end"
            if record.data == "the end":
                break
    assert got == [
        ("broadcast", "plain", "landing soon"),
        ("broadcast", "plain", {"n": 1}),
        ("alert", APP, message["payload"]),
        ("note", CONTROL, {"n": 2}),
        ("broadcast", "plain", "the end"),
    ]


async def _next(channel: redis.asyncio.client.PubSub) -> dict[str, str]:
    said = await channel.get_message(timeout=5)
    assert said is not None
    return dict(said)


async def _shows(keys: redis.asyncio.Redis, app: str, status: str) -> None:
    async def so() -> bool:
        return bool(await keys.hget(f"status:{app}", "status") == status)

    await until(so, f"status:{app} says {status}")
