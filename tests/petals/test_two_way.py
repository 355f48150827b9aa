"""Two-way communication: what the document promises, on real servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bus.clients import until
from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.redis import CommunicationMessage, MessagePriority, MessageStatus, RedisProxy, messages
from petalbus.schemas.errors import RecordInvalid

from support.servers import RealServer

Make = Callable[[str], RedisProxy]
Heard = list[CommunicationMessage]


@pytest.fixture
async def make(server: RealServer, bus_name: str) -> AsyncIterator[Make]:
    """Makes proxies on a bus of the test's own; stops them at its end."""
    made: list[RedisProxy] = []

    def proxy(app: str) -> RedisProxy:
        made.append(RedisProxy(app_id=app, url=server.url, bus=bus_name))
        return made[-1]

    yield proxy
    for one in reversed(made):
        async with asyncio.timeout(12):
            await one.stop()


async def started(make: Make, app: str) -> RedisProxy:
    proxy = make(app)
    await proxy.start()
    return proxy


async def heard_by(proxy: RedisProxy, message_type: str) -> Heard:
    """What a proxy's handler of a type gets, from now on."""
    heard: Heard = []

    async def handler(message: CommunicationMessage) -> None:
        heard.append(message)

    await proxy.register_message_handler(message_type, handler)
    return heard


async def told(proxy: RedisProxy, message_id: str, status: MessageStatus) -> None:
    async def is_so() -> bool:
        return await proxy.get_message_status(message_id) == status.value

    await until(is_so, f"{message_id} is {status}")


def answer(message: CommunicationMessage, /, **payload: Any) -> CommunicationMessage:
    return CommunicationMessage(
        id="response_id", sender="?", recipient=message.sender, message_type="command_response", payload=payload
    )


async def test_a_command_is_handled_and_its_answer_comes_back(make: Make) -> None:
    """S-084, S-088, S-110, S-111, S-112, S-113, S-116, S-117, S-121, S-130, C-18: the round trip, every field.

    S-096, S-097, S-098, S-099, S-100, S-101, S-102, S-103, S-104: as they were sent; a reply names what it answers.
    """
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    seen: Heard = []

    async def takeoff(message: CommunicationMessage) -> CommunicationMessage | None:
        seen.append(message)
        return answer(message, status="success", result={"altitude": message.payload["altitude"]})

    await drone.register_message_handler("command", takeoff)
    await drone.start_listening()
    reply = await control.send_message(
        recipient="HEAR_FC",
        message_type="command",
        payload={"command": "takeoff", "altitude": 20},
        priority=MessagePriority.HIGH,
        wait_for_reply=True,
        timeout=10,
    )
    assert isinstance(reply, CommunicationMessage)
    (message,) = seen
    assert (message.sender, message.recipient, message.message_type) == ("control", "HEAR_FC", "command")
    assert (message.payload, message.priority) == ({"command": "takeoff", "altitude": 20}, MessagePriority.HIGH)
    assert (message.timeout, message.reply_to) == (10, None)
    assert (reply.id, reply.message_type, reply.sender, reply.recipient) == (
        "response_id", "command_response", "HEAR_FC", "control",
    )  # fmt: skip
    assert reply.reply_to == message.id
    assert reply.payload == {"status": "success", "result": {"altitude": 20}}
    assert await control.get_message_status(message.id) == MessageStatus.COMPLETED.value
    assert abs(reply.timestamp - message.timestamp) < 10


async def test_a_message_that_nobody_waits_for_has_an_id_and_a_status(make: Make) -> None:
    """S-116, S-120, S-136: the id is returned at once; pending while nobody is there, completed when handled."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    sent = await control.send_message("HEAR_FC", "ping", {})
    assert isinstance(sent, str)
    assert sent
    assert await control.get_message_status(sent) == MessageStatus.PENDING.value
    heard = await heard_by(drone, "ping")
    await drone.start_listening()
    await told(control, sent, MessageStatus.COMPLETED)
    assert [message.id for message in heard] == [sent]
    assert await control.get_message_status("never-seen") is None


async def test_no_reply_in_time_is_none_and_it_does_not_run_later(make: Make) -> None:
    """S-117, S-129, S-135: falsy after the timeout, and the emergency command is not carried out when it is late."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    payload = {"action": "land_immediately"}
    answered = await control.send_message("HEAR_FC", "emergency_command", payload, wait_for_reply=True, timeout=0.2)
    assert answered is None
    heard, other = await heard_by(drone, "emergency_command"), await heard_by(drone, "ping")
    await drone.start_listening()
    await control.send_message("HEAR_FC", "ping", {})
    await until(lambda: other, "the ping is handled")
    assert not heard


async def test_what_a_handler_raises_is_an_error_reply(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """S-089, S-134, S-138, I8: status error, id error_{id}, failed, not tried again, and kept as a dead letter."""
    caplog.set_level(logging.CRITICAL, "RedisProxy")
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    runs: list[str] = []

    async def broken(message: CommunicationMessage) -> None:
        runs.append(message.id)
        raise RuntimeError("no motors")

    for message_type in ("command", "survey"):  # one of each redelivery
        await drone.register_message_handler(message_type, broken)
    await drone.start_listening()
    for message_type in ("command", "survey"):
        reply = await control.send_message(
            "HEAR_FC", message_type, {"command": "takeoff"}, wait_for_reply=True, timeout=5
        )
        assert isinstance(reply, CommunicationMessage)
        assert reply.id == f"error_{runs[-1]}"
        assert reply.reply_to == runs[-1]
        assert reply.message_type == f"{message_type}_response"
        assert (reply.payload["status"], reply.payload["success"]) == ("error", False)
        assert "no motors" in reply.payload["message"]
        assert await control.get_message_status(runs[-1]) == MessageStatus.FAILED.value
    assert len(runs) == 2
    bus = await drone._own_bus()
    letters = await bus.dead.list("HEAR_FC")
    assert [letter.record.id for letter in letters] == runs
    assert "no motors" in letters[0].detail
    assert "RuntimeError" in letters[0].detail


@pytest.mark.parametrize("status", ["failed", "error"])
async def test_an_answer_that_says_failed_makes_the_message_failed(make: Make, status: str) -> None:
    """S-130, S-134: the reply comes as it is, also when it says that it did not work."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")

    async def refuse(message: CommunicationMessage) -> CommunicationMessage:
        return answer(message, status=status, message="low battery", command_id="c1")

    await drone.register_message_handler("command", refuse)
    await drone.start_listening()
    sent = {"command": "takeoff", "command_id": "c1"}
    reply = await control.send_message("HEAR_FC", "command", sent, wait_for_reply=True, timeout=5)
    assert isinstance(reply, CommunicationMessage)
    assert reply.payload == {"status": status, "message": "low battery", "command_id": "c1"}
    assert await control.get_message_status(str(reply.reply_to)) == MessageStatus.FAILED.value


async def test_an_answer_that_is_none_of_ours_is_an_error_reply(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """S-153: a handler that returns a dict, or a payload that breaks its type, is told so; nothing hangs."""
    caplog.set_level(logging.CRITICAL, "RedisProxy")
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")

    async def wrong(message: CommunicationMessage) -> Any:
        return {"status": "success"}

    async def invalid(message: CommunicationMessage) -> CommunicationMessage:
        return answer(message, status=["not", "a", "word"])

    await drone.register_message_handler("one", wrong)
    await drone.register_message_handler("two", invalid)
    await drone.start_listening()
    for message_type, problem in (("one", "CommunicationMessage"), ("two", "status")):
        reply = await control.send_message("HEAR_FC", message_type, {}, wait_for_reply=True, timeout=5)
        assert isinstance(reply, CommunicationMessage)
        assert problem in reply.payload["message"]


async def test_the_documented_messages_arrive_by_type_as_they_were_sent(make: Make) -> None:
    """S-122, S-124, S-125, S-126, S-127, S-128, S-137: each documented message, to the handler of its type."""
    drone, control = await started(make, "HEAR_FC"), await started(make, "petal-app-manager")
    documented: list[tuple[str, dict[str, Any], MessagePriority]] = [
        ("command", {"command_id": "cmd_123", "command": "takeoff", "parameters": {"altitude": 20, "speed": 2.0}},
         MessagePriority.HIGH),
        ("telemetry", {"timestamp": 1.5, "battery_level": 85, "gps_coordinates": {"lat": 37.7749, "lon": -122.4194},
                       "altitude": 50.5, "speed": 5.2, "system_status": "normal"}, MessagePriority.NORMAL),
        ("configuration", {"flight_mode": "autonomous", "max_altitude": 100,
                           "geofence": {"enabled": True, "center": {"lat": 37.7749, "lon": -122.4194}, "radius": 1000},
                           "safety_settings": {"battery_low_threshold": 20, "auto_land_enabled": True}},
         MessagePriority.HIGH),
        ("alert", {"severity": "warning", "message": "Low battery warning",
                   "details": {"battery_level": 15, "estimated_flight_time": 120}}, MessagePriority.HIGH),
        ("status_request", {"fields": ["battery", "gps"]}, MessagePriority.NORMAL),
        ("ping", {}, MessagePriority.LOW),
    ]  # fmt: skip
    heard = {message_type: await heard_by(control, message_type) for message_type, _, _ in documented}
    await control.start_listening()
    for message_type, payload, priority in documented:
        assert await drone.send_message("petal-app-manager", message_type, payload, priority)
    for message_type, payload, priority in documented:
        await until(lambda one=message_type: heard[one], f"the {message_type} is handled")
        (message,) = heard[message_type]
        assert (message.payload, message.priority, message.sender) == (payload, priority, "HEAR_FC")


async def test_an_emergency_overtakes_without_naming_a_priority(make: Make) -> None:
    """S-105, S-106, S-107, S-108, S-123, C-16: critical first, then high, normal, low; the oldest of each first."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    order: list[str] = []
    for number in range(3):
        for priority in (MessagePriority.LOW, MessagePriority.NORMAL, MessagePriority.HIGH):
            payload = {"command": "hover", "command_id": f"{priority.name}-{number}"}
            await control.send_message("HEAR_FC", "command", payload, priority)
    stop = {"command": "emergency_stop", "command_id": "stop", "parameters": {"immediate": True}}
    await control.send_message("HEAR_FC", "command", stop)

    async def handler(message: CommunicationMessage) -> None:
        order.append(message.payload["command_id"])

    await drone.register_message_handler("command", handler)
    await drone.start_listening()
    await until(lambda: len(order) == 10, "all are handled")
    assert order[0] == "stop"
    for level in ("LOW", "NORMAL", "HIGH"):
        assert [one for one in order if one.startswith(level)] == [f"{level}-{number}" for number in range(3)]
    assert order.index("HIGH-2") < order.index("LOW-2")


async def test_handlers_may_come_before_or_after_listening_and_be_replaced(make: Make) -> None:
    """S-087, S-115, S-118, S-119, S-131, S-132, S-139, S-142: status and list; gone after the block."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    await drone.start_listening()
    first = await heard_by(drone, "one")
    await control.send_message("HEAR_FC", "one", {"n": 1})
    await control.send_message("HEAR_FC", "two", {"n": 1})
    await until(lambda: first, "the first handler has it")
    second = await heard_by(drone, "two")
    await until(lambda: second, "what came before its handler is handled")
    replaced = await heard_by(drone, "one")
    await control.send_message("HEAR_FC", "one", {"n": 2})
    await until(lambda: replaced, "the new handler has it")
    assert (len(first), len(second), len(replaced)) == (1, 1, 1)


async def test_a_type_that_nobody_handles_is_told_and_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-153, I8: after the time for settling in it is an error reply and a dead letter; ``*`` takes every type."""
    monkeypatch.setattr(messages, "SETTLE_SECONDS", 0.2)
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    await heard_by(drone, "known")
    await drone.start_listening()
    reply = await control.send_message("HEAR_FC", "strange", {}, wait_for_reply=True, timeout=5)
    assert isinstance(reply, CommunicationMessage)
    assert reply.payload["error_code"] == "NO_HANDLER"
    (letter,) = await (await drone._own_bus()).dead.list("HEAR_FC")
    assert "strange" in letter.reason
    rest = await heard_by(drone, "*")
    await control.send_message("HEAR_FC", "stranger", {})
    await until(lambda: rest, "the handler of everything has it")


async def test_stop_listening_leaves_messages_for_later(make: Make) -> None:
    """S-114, S-140: what comes meanwhile waits; handlers stay registered until the proxy is stopped."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")
    heard = await heard_by(drone, "one")
    await drone.start_listening()
    await drone.stop_listening()
    await drone.stop_listening()
    sent = await control.send_message("HEAR_FC", "one", {})
    assert await control.get_message_status(str(sent)) == MessageStatus.PENDING.value
    assert not heard
    await drone.start_listening()
    await until(lambda: heard, "it is handled")
    await drone.stop()
    assert not drone._message_handlers


async def test_a_reply_that_nobody_waits_for_goes_to_the_handler_of_its_type(make: Make) -> None:
    """S-088, S-130: a program may register for command_response instead of waiting; one that waited has its own."""
    control, drone = await started(make, "control"), await started(make, "HEAR_FC")

    async def handler(message: CommunicationMessage) -> CommunicationMessage:
        return answer(message, status="success", command_id=message.payload["command_id"])

    await drone.register_message_handler("command", handler)
    await drone.start_listening()
    heard = await heard_by(control, "command_response")
    await control.start_listening()
    sent = await control.send_message("HEAR_FC", "command", {"command": "hover", "command_id": "a"})
    await until(lambda: heard, "the reply is handled")
    assert (heard[0].reply_to, heard[0].payload["command_id"]) == (sent, "a")
    waited = {"command": "hover", "command_id": "b"}
    assert await control.send_message("HEAR_FC", "command", waited, wait_for_reply=True, timeout=5)
    await control.send_message("HEAR_FC", "command", {"command": "hover", "command_id": "c"})
    await until(lambda: len(heard) == 2, "the third reply is handled")
    assert heard[1].payload["command_id"] == "c"


async def test_applications_are_listed_while_they_are_there(make: Make) -> None:
    """S-087, S-115, S-118, S-119, S-131, S-132, S-139, S-142: status and list; gone after the context manager."""
    control = await started(make, "petal-app-manager")
    assert await control.get_application_status("HEAR_FC") is None
    async with make("HEAR_FC") as drone:
        await drone.send_message("petal-app-manager", "ping", {})
        status = await control.get_application_status("HEAR_FC")
        assert status is not None
        assert (status["status"], status["app_id"]) == ("online", "HEAR_FC")
        assert status["last_seen"] > 0
        assert set(await drone.list_online_applications()) == {"HEAR_FC", "petal-app-manager"}
    status = await control.get_application_status("HEAR_FC")
    assert status is not None
    assert status["status"] == "offline"
    assert "HEAR_FC" not in await control.list_online_applications()


async def test_what_cannot_be_sent_is_refused_by_name(make: Make) -> None:
    """S-153: before the start, a wrong name, type, priority or timeout: an error that says which, nothing stored."""
    control = make("control")
    with pytest.raises(ProxyNotReady, match="start"):
        await control.send_message("HEAR_FC", "ping", {})
    await control.start()
    for field, arguments in {
        "recipient": ("HEAR FC", "ping", {}),
        "type": ("HEAR_FC", "no type", {}),
        "priority": ("HEAR_FC", "ping", {}, 9),
        "data.command": ("HEAR_FC", "command", {"command": 7}),
        "timeout": ("HEAR_FC", "ping", {}, None, False, 0),
    }.items():
        with pytest.raises(RecordInvalid) as refused:
            await control.send_message(*arguments)
        assert refused.value.field == field
    with pytest.raises(RecordInvalid):
        await control.register_message_handler("no type", print)
    with pytest.raises(TypeError):
        await control.register_message_handler("ping", "no function")  # type: ignore[arg-type]  # what is tested


async def test_an_outage_is_waited_out(own_server: RealServer, bus_name: str) -> None:
    """S-133, S-089: while the server is away a message waits and is stored once; too long an absence is an error."""
    control = RedisProxy(app_id="control", url=own_server.url, bus=bus_name)
    drone = RedisProxy(app_id="HEAR_FC", url=own_server.url, bus=bus_name)
    async with control, drone:
        heard = await heard_by(drone, "one")

        async def takeoff(message: CommunicationMessage) -> CommunicationMessage:
            return answer(message, status="success")

        await drone.register_message_handler("command", takeoff)
        await drone.start_listening()
        await control.send_message("HEAR_FC", "one", {"n": 0})
        await until(lambda: heard, "it works")
        own_server.kill()
        with pytest.raises(ProxyNotReady, match="away"):
            await control.send_message("HEAR_FC", "one", {"n": 1}, timeout=0.3)
        waiting = asyncio.create_task(control.send_message("HEAR_FC", "one", {"n": 2}))
        asking = asyncio.create_task(
            control.send_message("HEAR_FC", "command", {"command": "takeoff"}, wait_for_reply=True, timeout=9)
        )
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(own_server.start)
        assert await waiting
        reply = await asking
        assert isinstance(reply, CommunicationMessage)
        assert reply.payload == {"status": "success"}
        await until(lambda: len(heard) >= 2, "what waited is handled")
        assert [message.payload["n"] for message in heard] == [0, 2]
