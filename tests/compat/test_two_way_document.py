"""The samples of the document about two-way communication, as they stand there, against a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.petals.proxies.redis import CommunicationMessage, MessagePriority, MessageStatus, RedisProxy
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

from . import spec
from .spec import TWO_WAY
from support.servers import RealServer


@pytest.fixture
async def proxy(server: RealServer, bus_name: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(url=server.url, bus=bus_name, app_id="my-application") as made:
        yield made


@pytest.fixture
async def gcs(server: RealServer, bus_name: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(url=server.url, bus=bus_name, app_id="gcs") as made:
        yield made


async def asked(gcs: RedisProxy, payload: dict[str, Any]) -> CommunicationMessage:
    """The application's answer to a command."""
    reply = await gcs.send_message("my-application", "command", payload, wait_for_reply=True, timeout=5)
    assert isinstance(reply, CommunicationMessage)
    return reply


@pytest.fixture
async def hear_fc(server: RealServer, bus_name: str) -> AsyncIterator[tuple[Bus, list[Record]]]:
    """The flight-control app: answers status requests and emergencies, and keeps what it was sent."""
    seen: list[Record] = []
    async with Bus(server.url, app="HEAR_FC", bus=bus_name) as bus:

        @bus.on("*", concurrency=None)
        async def take(record: Record) -> dict[str, Any] | None:
            seen.append(record)
            if record.type == "status_request":
                return {"battery": 85, "gps": "3D"}
            return {"status": "success"} if record.type == "emergency_command" else None

        await bus.listen()
        yield bus, seen


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_command_handler_answers(proxy: RedisProxy, gcs: RedisProxy) -> None:
    """S-103, S-112, S-113, S-117, S-130, S-137: the returned message is the reply, whatever id it was given."""
    commands: list[int] = []

    def execute_takeoff(altitude: int) -> bool:
        commands.append(altitude)
        return altitude < 100

    code = spec.block(TWO_WAY, "async def command_handler")
    names = {"proxy": proxy, "execute_takeoff": execute_takeoff, "CommunicationMessage": CommunicationMessage}
    await spec.run(code, **names)
    reply = await asked(gcs, {"command": "takeoff", "altitude": 20})
    assert (reply.message_type, reply.payload, reply.sender) == (
        "command_response",
        {"status": "success"},
        "my-application",
    )
    assert (await asked(gcs, {"command": "takeoff", "altitude": 200})).payload == {"status": "failed"}
    assert commands == [20, 200]


async def test_sending_as_documented(
    proxy: RedisProxy, hear_fc: tuple[Bus, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    """S-116, S-121, S-124: a message, and one whose reply is waited for."""
    code = spec.block(TWO_WAY, "# Send a simple message")
    await spec.run(code, proxy=proxy, MessagePriority=MessagePriority)
    assert "'battery': 85" in capsys.readouterr().out
    _, seen = hear_fc
    await until(lambda: len(seen) == 2)
    assert (seen[0].type, seen[0].priority) == ("command", Priority.HIGH)
    assert seen[0].data == {"command": "takeoff", "altitude": 20}


async def test_status_as_documented(
    proxy: RedisProxy, hear_fc: tuple[Bus, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    """S-118, S-119, S-120: who is online, and where a message stands."""
    await spec.run(spec.block(TWO_WAY, "# Check if an application is online"), proxy=proxy)
    said = capsys.readouterr().out
    assert "HEAR_FC is online" in said
    assert "my-application" in said


async def test_the_common_messages(proxy: RedisProxy, hear_fc: tuple[Bus, list[Record]]) -> None:
    """S-122, S-123, S-126, S-131: commands, the emergency stop, configuration, each with its priority."""
    for containing in ("# Takeoff command", "# Send configuration update"):
        await spec.run(spec.block(TWO_WAY, containing), proxy=proxy, MessagePriority=MessagePriority)
    _, seen = hear_fc
    await until(lambda: len(seen) == 3)
    by = {record.data.get("command_id", record.type): record for record in seen}
    assert by["cmd_123"].priority is Priority.HIGH
    assert by["emergency_001"].priority is Priority.CRITICAL
    assert by["configuration"].data["geofence"]["radius"] == 1000


async def test_telemetry_and_alerts(proxy: RedisProxy, server: RealServer, bus_name: str) -> None:
    """S-125, S-127, S-132: the flight-control app's messages to petal-app-manager arrive as they were sent."""
    seen: list[CommunicationMessage] = []

    async def keep(message: CommunicationMessage) -> None:
        seen.append(message)

    async with RedisProxy(url=server.url, bus=bus_name) as manager:
        assert manager.app_id == "petal-app-manager"
        await manager.register_message_handler("telemetry", keep)
        await manager.register_message_handler("alert", keep)
        await manager.start_listening()
        for containing in ("# Send telemetry data", "# Send alert"):
            await spec.run(spec.block(TWO_WAY, containing), proxy=proxy, MessagePriority=MessagePriority)
        await until(lambda: len(seen) == 2)
    by = {message.message_type: message for message in seen}
    assert (by["telemetry"].sender, by["telemetry"].payload["battery_level"]) == ("my-application", 85)
    assert by["telemetry"].priority == MessagePriority.NORMAL
    assert by["alert"].payload["details"]["estimated_flight_time"] == 120


async def test_errors_are_handled_as_documented(
    proxy: RedisProxy, hear_fc: tuple[Bus, list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    """S-128, S-129: a ping goes out; the emergency is answered; without anybody there it times out, and says so."""
    await spec.run(spec.block(TWO_WAY, 'message_type="ping"'), proxy=proxy)
    emergency = spec.block(TWO_WAY, "land_immediately")
    names = await spec.run(emergency, proxy=proxy)
    assert names["response"].payload == {"status": "success"}
    _, seen = hear_fc
    assert [record.priority for record in seen if record.type == "emergency_command"] == [Priority.CRITICAL]
    with caplog.at_level(logging.ERROR):
        names = await spec.run(emergency.replace("HEAR_FC", "NOBODY").replace("timeout=5", "timeout=0.2"), proxy=proxy)
    assert not names["response"]
    assert "timed out" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("completed", "processed successfully"), ("failed", "processing failed"), ("timeout", "timed out")],
)
async def test_status_codes(
    proxy: RedisProxy, server: RealServer, bus_name: str, outcome: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S-134, S-135, S-136: what became of a message is compared with the documented values."""
    async with Bus(server.url, app="worker", bus=bus_name) as worker:

        @worker.on("work", max_attempts=1)
        async def work(record: Record) -> None:
            if outcome == "failed":
                raise OSError("it does not work")

        message = CommunicationMessage(id="msg_123", sender="x", recipient="worker", message_type="work", payload={})
        assert message.priority == MessagePriority.NORMAL
        deadline = 0.001 if outcome == "timeout" else None
        if outcome == "timeout":
            worker.off("work")
        await proxy._bus_now().send("worker", "work", {}, id="msg_123", deadline=deadline)  # type: ignore[union-attr]
        async with asyncio.timeout(5):
            while await proxy.get_message_status("msg_123") != MessageStatus[outcome.upper()].value:
                await asyncio.sleep(0.01)
    code = spec.block(TWO_WAY, "status == MessageStatus.FAILED.value")
    with caplog.at_level(logging.INFO):
        await spec.run(code, proxy=proxy)
    assert said in caplog.text


@pytest.mark.parametrize("fails", [False, True])
async def test_the_robust_handler(proxy: RedisProxy, gcs: RedisProxy, fails: bool) -> None:
    """S-138: replies named after the message; an error is an answer, too."""

    async def process_command(payload: dict[str, Any]) -> str:
        if fails:
            raise OSError("motor")
        return "armed"

    code = spec.block(TWO_WAY, "async def robust_handler")
    names = {"proxy": proxy, "process_command": process_command, "CommunicationMessage": CommunicationMessage}
    handler = (await spec.run(code, **names))["robust_handler"]
    await proxy.register_message_handler("command", handler)
    await proxy.start_listening()
    reply = await asked(gcs, {"command": "arm"})
    assert reply.id == f"{'error' if fails else 'response'}_{reply.reply_to}"
    assert reply.message_type == "command_response"
    wanted = {"status": "error", "message": "motor"} if fails else {"status": "success", "result": "armed"}
    assert reply.payload == wanted


async def test_the_main_program(server: RealServer, bus_name: str, hear_fc: tuple[Bus, list[Record]]) -> None:
    """S-110, S-111, S-114, S-115, S-139, S-140: start, register, listen, and both stops at its end."""
    told: asyncio.Queue[CommunicationMessage] = asyncio.Queue()

    async def command_handler(message: CommunicationMessage) -> None:
        told.put_nowait(message)

    def make(app_id: str) -> RedisProxy:
        return RedisProxy(url=server.url, bus=bus_name, app_id=app_id)

    names = await spec.run(spec.block(TWO_WAY, "async def main():"), RedisProxy=make, command_handler=command_handler)
    running = asyncio.create_task(names["main"](), name="main")
    bus, _ = hear_fc
    await bus.send("my-app", "command", {"command": "arm"})
    async with asyncio.timeout(10):
        assert (await told.get()).payload == {"command": "arm"}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(5):
        while await bus.call("HGET", bus.keys.status("my-app"), "status") != b"offline":
            await asyncio.sleep(0.01)


async def test_the_health_monitor(
    proxy: RedisProxy, hear_fc: tuple[Bus, list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    """S-141, S-142: debug logging by the documented name; the loop that lists who is online."""
    names = await spec.run(spec.block(TWO_WAY, "async def health_monitor"), proxy=proxy)
    assert logging.getLogger("RedisProxy").level == logging.DEBUG
    with caplog.at_level(logging.INFO):
        monitor = asyncio.create_task(names["health_monitor"](), name="monitor")
        await until(lambda: "Online applications" in caplog.text)
        monitor.cancel()
    assert "HEAR_FC" in caplog.text
    logging.getLogger("RedisProxy").setLevel(logging.NOTSET)
