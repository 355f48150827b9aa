"""RedisProxy and programs on plain keys: who is listed, and a conversation over the bridge; and calls from a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from bus.clients import Clients, until
from petalbus.petals.proxies.redis import CommunicationMessage, MessagePriority, MessageStatus, RedisProxy
from services.plain_program import APP, CONTROL, Program, bridging, plain

from support.servers import RealServer


@pytest.fixture
async def keys(own_server: RealServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with plain(own_server) as client:
        yield client


@pytest.fixture
async def control(own_server: RealServer) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(app_id=CONTROL, url=own_server.url, bus="petalbus") as proxy:
        yield proxy


async def test_programs_are_listed_by_what_they_announce(control: RedisProxy, keys: redis.asyncio.Redis) -> None:
    """S-118, S-119, S-142, C-19: status:<app> and app:<app>:online count, without any bridge; offline does not."""
    program = Program(keys)
    await program.announce()
    await keys.hset("status:gone", mapping={"status": "offline", "last_seen": "5", "app_id": "gone"})
    await keys.set("status:text", "online")
    await keys.set("app:dashboard:online", "1", ex=60)
    await keys.hset("app:hash:online", "x", "1")
    assert await control.list_online_applications() == [APP, "dashboard", "hash", CONTROL]
    status = await control.get_application_status(APP)
    assert status is not None
    assert (status["status"], status["app_id"]) == ("online", APP)
    assert abs(status["last_seen"] - time.time()) < 60
    assert await control.get_application_status("gone") == {"status": "offline", "last_seen": 5.0, "app_id": "gone"}
    assert await control.get_application_status("text") is None


async def test_what_the_bridge_showed_is_not_taken_for_a_program(
    own_server: RealServer, control: RedisProxy, keys: redis.asyncio.Redis
) -> None:
    """C-19: a status that the bus wrote and nobody took back, after a crash of the daemon, makes nobody online."""
    seen = {"status": "online", "last_seen": "5", "app_id": "dead", "petalbus": "5"}
    await keys.hset("status:dead", mapping=seen)
    await keys.set("app:dead:online", "petalbus")
    assert await control.list_online_applications() == [CONTROL]
    assert await control.get_application_status("dead") is None


async def test_a_conversation_with_a_program(
    own_server: RealServer, control: RedisProxy, keys: redis.asyncio.Redis
) -> None:
    """S-084, S-120, S-155, C-18: delivered while it works, completed with its response; its telemetry is handled."""
    clients = Clients(own_server.url, "petalbus")
    heard: list[CommunicationMessage] = []

    async def on_any(message: CommunicationMessage) -> None:
        heard.append(message)

    for message_type in ("telemetry", "command_response"):
        await control.register_message_handler(message_type, on_any)
    await control.start_listening()
    program = Program(keys, answer=lambda _: {"status": "success"})
    await program.announce()
    try:
        async with bridging(await clients.open("petalbus")) as bridge:
            sent = await control.send_message(APP, "command", {"command": "takeoff"}, MessagePriority.HIGH)
            await until(lambda: bridge.counts["handed"] == 1, "it is handed over")
            await _says(control, str(sent), MessageStatus.DELIVERED)
            async with program.running():
                await _says(control, str(sent), MessageStatus.COMPLETED)
                await until(lambda: heard, "the response is handled")
                assert (heard[0].reply_to, heard[0].sender) == (sent, APP)
                reply = await control.send_message(APP, "command", {"command": "land"}, wait_for_reply=True, timeout=5)
                assert isinstance(reply, CommunicationMessage)
                assert (reply.id, reply.payload) == (f"response_{reply.reply_to}", {"status": "success"})
                await program.send("telemetry", {"battery_level": 50})
                await until(lambda: len(heard) == 2, "the telemetry is handled")
                assert heard[1].payload == {"battery_level": 50}
    finally:
        await control.stop_listening()
        await clients.close()


async def test_it_works_from_another_thread(control: RedisProxy) -> None:
    """A cpu_heavy handler's loop sends, asks and registers as one on the proxy's own loop."""

    async def elsewhere() -> CommunicationMessage | str | None:
        async def answer(message: CommunicationMessage) -> CommunicationMessage:
            return CommunicationMessage("r", CONTROL, message.sender, "sum_response", {"n": message.payload["n"] + 1})

        await control.register_message_handler("sum", answer)
        await control.start_listening()
        return await control.send_message(CONTROL, "sum", {"n": 1}, wait_for_reply=True, timeout=5)

    reply = await asyncio.to_thread(asyncio.run, elsewhere())
    assert isinstance(reply, CommunicationMessage)
    assert reply.payload == {"n": 2}


async def test_a_message_of_another_program_is_checked(own_server: RealServer) -> None:
    """S-153: bytes that are no JSON are refused with a reason, and the next message is handled."""
    clients = Clients(own_server.url, "petalbus")
    heard: list[CommunicationMessage] = []

    async def on_one(message: CommunicationMessage) -> None:
        heard.append(message)

    async with RedisProxy(app_id=APP, url=own_server.url, bus="petalbus") as drone:
        await drone.register_message_handler("one", on_one)
        await drone.start_listening()
        raw = await clients.open("raw")
        await raw.send(APP, "one", b"\x00\x01")
        await raw.send(APP, "one", [1, 2])
        await until(lambda: heard, "the second is handled")
        assert heard[0].payload == {"value": [1, 2]}
        (letter,) = await raw.dead.list(APP)
        assert "octet-stream" in letter.reason
        await clients.close()


async def _says(proxy: RedisProxy, message_id: str, status: MessageStatus) -> None:
    async def so() -> bool:
        return await proxy.get_message_status(message_id) == status.value

    await until(so, f"{message_id} is {status}")
