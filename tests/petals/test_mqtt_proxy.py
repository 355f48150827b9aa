"""The MQTT proxy and the way of commands, on a real server; the link to a broker is played by a client of the bus."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.clients import until
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.words import INVALID, filters_key, handlers_key, link_key, matches
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, mqtt_action
from petalbus.petals.owner import acting_for
from petalbus.petals.proxies.listening import MAX_WAITING
from petalbus.petals.proxies.mqtt import MQTTProxy
from petalbus.schemas.errors import RecordInvalid

from support.mqtt_world import BASE, Organization, World, mqtt_world
from support.servers import RealServer


@pytest.fixture
async def world(server: RealServer, bus_name: str) -> AsyncIterator[World]:
    async with mqtt_world(server, bus_name) as made:
        yield made


class Example(Petal):
    name = "example"
    version = "1.0.0"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.threads: list[bool] = []
        self.gate = asyncio.Event()

    @http_action("POST", "/hello")
    @mqtt_action("hello")
    async def hello(self, topic: str, message: dict[str, Any]) -> None:
        self.seen.append(message)
        answer = {"success": True, "message": f"Hello, {message['data']['name']}!"}
        await self._proxies["mqtt"].send_command_response(message["messageId"], answer)  # type: ignore[attr-defined]

    @mqtt_action("heavy", cpu_heavy=True)
    async def heavy(self, topic: str, message: dict[str, Any]) -> None:
        self.threads.append(threading.current_thread() is threading.main_thread())
        mqtt: Any = self._proxies["mqtt"]
        await mqtt.send_command_response(message_id=message["messageId"], response_data={"status": "success"})

    @mqtt_action("slow")
    async def slow(self, topic: str, message: dict[str, Any]) -> None:
        await self.gate.wait()

    @mqtt_action("fail")
    async def fail(self, topic: str, message: dict[str, Any]) -> None:
        raise OSError("no camera")


async def close(petal: Petal) -> None:
    await petal.bus.close()


async def test_a_command_is_answered(world: World) -> None:
    """S-205, S-229, S-230, S-235, S-237, C-12: `data` is found, deviceId is not required, the answer has its shape."""
    petal = await world.petal(Example())
    await world.arrive("command/edge", {"command": "example/hello", "messageId": "1", "data": {"name": "Ada"}})
    told = await world.next()
    assert told["suffix"] == "response"
    answer = told["payload"]
    assert (answer["messageId"], answer["phase"], answer["deviceId"]) == ("1", "result", "Instance-m1")
    assert (answer["success"], answer["message"]) == (True, "Hello, Ada!")
    assert answer["timestamp"].endswith("Z")
    await close(petal)


@pytest.mark.parametrize("suffix", ["command", "command/edge"])
@pytest.mark.parametrize(("given", "mirror"), [("payload", "data"), ("data", "payload")])
async def test_both_topics_and_both_bodies_reach_the_handler(
    world: World, suffix: str, given: str, mirror: str
) -> None:
    """C-06, C-12, S-213, S-217: commands come on either topic; the body is under both names, the rest unchanged."""
    petal = await world.petal(Example())
    body = {"name": "Bo"}
    await world.arrive(suffix, {"command": "example/hello", "messageId": "7", "extra": [1], given: body})
    await world.next()
    assert isinstance(petal, Example)
    (message,) = petal.seen
    assert message[given] == message[mirror] == body
    assert message["extra"] == [1]
    await close(petal)


async def test_the_acknowledgement_comes_before_the_handler(world: World) -> None:
    """S-237: `waitAck` is answered while the handler has not ended; the acknowledgement names the petal."""
    petal = await world.petal(Example())
    await world.arrive("command/edge", {"command": "example/slow", "messageId": "2", "waitAck": True})
    told = await world.next()
    assert told["suffix"] == "ack"
    assert {name: told["payload"][name] for name in ("messageId", "phase", "ackType", "service")} == {
        "messageId": "2",
        "phase": "ack",
        "ackType": "service-received",
        "service": "example",
    }
    await world.arrive("command/edge", {"command": "example/hello", "messageId": "3", "data": {"name": "Cy"}})
    assert (await world.next())["payload"]["messageId"] == "3", "a slow command delays no other (S-210)"
    assert isinstance(petal, Example)
    petal.gate.set()
    await close(petal)


async def test_unknown_commands_and_errors_are_answered_in_both_shapes(world: World) -> None:
    """S-228, S-231, S-243, C-13: only when an answer is waited for; a command of nobody's is answered, too."""
    petal = await world.petal(Example())
    await world.arrive("command/edge", {"command": "example/nothing", "messageId": "2"})
    await world.arrive("command/edge", {"command": "elsewhere/hello", "waitResponse": True, "messageId": "3"})
    stray = (await world.next())["payload"]
    assert (stray["messageId"], stray["error"]) == ("3", "Unknown command: elsewhere/hello")
    assert (stray["error_code"], "example/hello" in stray["available_commands"]) == ("UNKNOWN_COMMAND", True)
    await world.arrive("command/edge", {"command": "example/nothing", "waitResponse": True, "messageId": "4"})
    unknown = (await world.next())["payload"]
    assert (unknown["success"], unknown["status"], unknown["error_code"]) == (False, "error", "UNKNOWN_COMMAND")
    assert unknown["error"] == unknown["message"] == "Unknown command: example/nothing"
    assert "example/hello" in unknown["available_commands"]
    await world.arrive("command/edge", {"command": "example/fail", "waitResponse": True, "messageId": "5"})
    failed = (await world.next())["payload"]
    assert (failed["error_code"], failed["messageId"]) == ("HANDLER_ERROR", "5")
    assert "no camera" in failed["error"]
    await close(petal)


async def test_cpu_heavy_commands_run_in_a_thread_and_use_proxies_as_usual(world: World) -> None:
    """The loop goes on meanwhile; the answer written from there arrives."""
    petal = await world.petal(Example())
    await world.arrive("command", {"command": "example/heavy", "messageId": "6"})
    assert (await world.next())["payload"]["status"] == "success"
    assert isinstance(petal, Example)
    assert petal.threads == [False]
    await close(petal)


async def test_the_same_command_twice_runs_once(world: World) -> None:
    """S-211, I2: the broker delivers it again, also when the petal was started anew meanwhile."""
    petal = await world.petal(Example())
    message = {"command": "example/hello", "messageId": "8", "data": {"name": "Di"}}
    await world.arrive("command/edge", message)
    await world.next()
    await close(petal)
    world.proxy.unregister_handler(petal._mqtt_actions_id or "")
    await world.proxy._commands.settled()
    second = await world.petal(Example())
    await world.arrive("command/edge", message)
    await world.arrive("command/edge", {**message, "messageId": "9"})
    assert (await world.next())["payload"]["messageId"] == "9"
    assert isinstance(second, Example)
    assert [one["messageId"] for one in second.seen] == ["9"]
    await close(second)


async def test_a_command_waits_for_its_petal(world: World) -> None:
    """A command that comes before its petal is not lost."""
    await world.arrive("command/edge", {"command": "example/hello", "messageId": "10", "data": {"name": "Ed"}})
    async with asyncio.timeout(5):
        while await world.link.status("10@example") != "pending":
            await asyncio.sleep(0.005)
    petal = await world.petal(Example())
    assert (await world.next())["payload"]["message"] == "Hello, Ed!"
    await close(petal)


async def test_while_the_organisation_is_unknown_commands_and_messages_wait(world: World) -> None:
    """S-208, S-209, S-227: organization_id is None until known; nothing goes to an unknown one."""
    world.organization.organization_id = None
    petal = await world.petal(Example())
    assert world.proxy.organization_id is None
    assert world.proxy._get_base_topic() is None
    await world.arrive("command/edge", {"command": "example/hello", "messageId": "11", "data": {"name": "Fi"}})
    assert await world.proxy.publish_message({"n": 1})
    told = await world.next()
    assert told == {"suffix": "command/web", "payload": {"n": 1}, "qos": 1, "retain": False}
    world.organization.organization_id = "ORG2"
    assert world.proxy._get_base_topic() == "org/ORG2/device/Instance-m1"
    assert (await world.next())["payload"]["message"] == "Hello, Fi!"
    await close(petal)


async def test_a_master_handler_of_any_object_is_offered_every_command(world: World) -> None:
    """S-201, S-202, S-203, S-226: register_handler gives an id at once; its commands may be named as it likes."""
    seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def master(topic: str, message: dict[str, Any]) -> None:
        seen.put_nowait((topic, message["command"]))

    name = world.proxy.register_handler(master)
    assert isinstance(name, str)
    await world.proxy._commands.settled()
    await world.arrive("command/edge", {"command": "flight-log/fetch", "messageId": "12"})
    async with asyncio.timeout(5):
        assert await seen.get() == (f"{BASE}/command/edge", "flight-log/fetch")
    assert world.proxy.unregister_handler(name) is True
    assert world.proxy.unregister_handler(name) is False
    with pytest.raises(TypeError, match="async def"):
        world.proxy.register_handler(lambda topic, message: None)  # type: ignore[arg-type, return-value]


async def test_what_is_no_command_is_kept(world: World) -> None:
    """Nothing is dropped in silence: it is in topic mqtt.invalid with the reason."""
    async with world.link.subscribe(INVALID) as invalid:
        records = aiter(invalid)
        for payload in (
            "text",
            {"messageId": "1"},
            {"command": "", "messageId": "1"},
            {"command": "a/b", "messageId": {}},
        ):
            await world.arrive("command/edge", payload)
            async with asyncio.timeout(5):
                record = await anext(records)
            assert json.loads(record.data["text"]) == payload
            assert "command" in record.data["reason"]


@pytest.mark.parametrize(
    ("given", "named", "topic"),
    [
        (({"n": 1},), {}, None),
        (({"n": 1}, 0), {}, None),
        ((), {"payload": {"n": 1}}, None),
        (("t/x", {"n": 1}), {}, "t/x"),
        (("t/x", {"n": 1}, 0), {}, "t/x"),
        ((), {"topic": "t/x", "payload": {"n": 1}, "qos": 0}, "t/x"),
        (({"n": 1},), {"topic": "t/x"}, "t/x"),
    ],
)
async def test_publish_message_in_all_its_forms(
    world: World, given: tuple[Any, ...], named: dict[str, Any], topic: str | None
) -> None:
    """C-02, S-136, S-204: with and without a topic, by position and by name."""
    assert await world.proxy.publish_message(*given, **named) is True
    told = await world.next()
    assert told["payload"] == {"n": 1}
    assert told.get("topic") == topic
    assert told.get("suffix") == (None if topic else "command/web")


@pytest.mark.parametrize(
    ("given", "named", "topic"),
    [
        (("m1", {"ok": 1}), {}, None),
        ((), {"message_id": "m1", "response_data": {"ok": 1}}, None),
        (("r/t", "m1", {"ok": 1}), {}, "r/t"),
        (("r/t",), {"message_id": "m1", "response_data": {"ok": 1}}, "r/t"),
    ],
)
async def test_send_command_response_in_all_its_forms(
    world: World, given: tuple[Any, ...], named: dict[str, Any], topic: str | None
) -> None:
    """C-03, S-188, S-205."""
    assert await world.proxy.send_command_response(*given, **named) is True
    told = await world.next()
    assert (told.get("topic"), told["payload"]["messageId"], told["payload"]["ok"]) == (topic, "m1", 1)


async def test_wrong_arguments_are_named(world: World) -> None:
    for call in (
        world.proxy.publish_message(),
        world.proxy.publish_message("topic"),
        world.proxy.publish_message({"n": 1}, 0, 1),
        world.proxy.publish_message({"n": 1}, color="red"),
        world.proxy.send_command_response("m1"),
        world.proxy.send_command_response("m1", "text"),
    ):
        with pytest.raises(TypeError, match=r"publish_message|send_command_response"):
            await call
    with pytest.raises(ValueError, match="quality of service"):
        await world.proxy.publish("t", {}, qos=2)
    with pytest.raises(RecordInvalid, match="131072"):
        await world.proxy.publish("t", {"text": "x" * 131_072})


async def test_topics_and_patterns_reach_their_callbacks(world: World) -> None:
    """S-074, S-075, S-076, S-174, S-176, S-177, S-196, S-206, C-05: topics and patterns; unsubscribe ends."""
    seen: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()

    def named(name: str) -> Any:
        async def callback(topic: str, message: dict[str, Any]) -> None:
            seen.put_nowait((name, topic, message))
            if name == "bad":
                raise OSError("the callback's own fault")

        return callback

    await world.proxy.subscribe_to_topic(f"{BASE}/telemetry", named("exact"))
    await world.proxy.subscribe(f"{BASE}/telemetry", named("bad"), qos=0)
    world.proxy.subscribe_pattern("org/*/device/*/telemetry", named("pattern"))
    subscriptions = await world.proxy.get_subscriptions()
    assert (
        subscriptions
        == world.proxy.get_subscriptions()
        == {
            f"{BASE}/telemetry": 2,
            "org/*/device/*/telemetry": 1,
        }
    )
    async with asyncio.timeout(5):
        while not world.link.statistics()["subscriptions"] or not await world.link.call(
            "EXISTS", world.link.keys.topic("mqtt.rx")
        ):
            await asyncio.sleep(0.005)
        await _until_reading(world)
        for n in range(2):
            await world.arrive("telemetry", {"n": n})
        found = [await seen.get() for _ in range(6)]
    assert sorted(found, key=str) == sorted(
        ((name, f"{BASE}/telemetry", {"n": n}) for name in ("exact", "bad", "pattern") for n in range(2)), key=str
    )
    assert await world.proxy.unsubscribe(f"{BASE}/telemetry") is True
    assert await world.proxy.unsubscribe(f"{BASE}/telemetry") is False
    await world.arrive("telemetry", {"n": 2})
    async with asyncio.timeout(5):
        assert (await seen.get())[0] == "pattern"
    assert seen.empty()


async def _until_reading(world: World) -> None:
    groups: list[Any] = []
    while len(groups) < 2:  # the dispatch's, and the proxy's own
        groups = await world.link.call("XINFO", "GROUPS", world.link.keys.topic("mqtt.rx"))
        await asyncio.sleep(0.005)


async def test_is_connected_is_a_flag_and_a_call(world: World) -> None:
    """C-04, C-10, S-077, S-191: what the link says; both names of the callback server are there."""
    assert not world.proxy.is_connected
    assert await world.proxy.is_connected() is False
    await world.link.call("HSET", link_key(world.link.keys), "connected", "1")
    assert await world.proxy.is_connected() is True
    assert world.proxy.is_connected
    health = await world.proxy.health_check()
    assert health["status"] == "healthy"
    assert health["connection"] == dict.fromkeys(("ts_client", "callback_server", "callback_router", "connected"), True)
    assert health["device_info"] == {"organization_id": "ORG1", "robot_instance_id": "m1"}


async def test_handlers_registered_before_the_start_and_in_a_thread_count(server: RealServer, bus_name: str) -> None:
    """S-011, S-078: petals register in startup(), whatever the order; cpu_heavy code from its thread; disconnect."""
    proxy = MQTTProxy(url=server.url, bus=bus_name, app_id="early")

    async def handler(topic: str, message: dict[str, Any]) -> None:
        """Takes commands."""

    proxy.register_handler(handler)
    await proxy.start()
    await asyncio.to_thread(proxy.register_handler, handler)
    async with asyncio.timeout(5), Bus(server.url, app="look", bus=bus_name) as bus:
        while await bus.call("HKEYS", f"{{{bus_name}}}:mqtt:handlers") != [b"early"]:
            await asyncio.sleep(0.005)
    assert (await proxy.health_check())["subscriptions"]["handlers"] == 2
    await proxy.stop()
    assert not proxy.is_ready
    await proxy.disconnect()


@pytest.mark.parametrize(
    ("pattern", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/*", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "x", True),
        ("a/+", "a", False),
        ("+", "a/b", False),
    ],
)
def test_filters(pattern: str, topic: str, fits: bool) -> None:
    """MQTT 5, 4.7: + is one level, # all further ones, and the level above."""
    assert matches(pattern, topic) is fits


async def test_publishing_with_quality_and_retained(world: World) -> None:
    """S-073, S-079, S-214, S-215, S-216: any topic, the device's own among them; text goes as it is."""
    base = world.proxy._get_base_topic()
    assert await world.proxy.publish(f"{base}/debug", "a line", qos=1, retain=True) is True
    assert await world.next() == {"topic": f"{BASE}/debug", "payload": "a line", "qos": 1, "retain": True}
    assert await world.proxy.publish_message({"n": 1}) is True
    assert (await world.next())["suffix"] == "command/web"
    assert await world.proxy.send_command_response("m", {"ok": True}) is True
    assert (await world.next())["suffix"] == "response"


async def test_a_slow_callback_loses_its_oldest_messages_and_delays_nobody(world: World) -> None:
    """S-210, S-212: a bounded buffer for each callback; what goes is counted; the others hear everything."""
    gate, slow, quick = asyncio.Event(), list[int](), list[int]()

    async def wait(topic: str, message: dict[str, Any]) -> None:
        await gate.wait()
        slow.append(message["n"])

    async def take(topic: str, message: dict[str, Any]) -> None:
        quick.append(message["n"])

    topics = world.proxy._topics
    topics.add("a/b", wait)
    topics.add("a/b", take)
    for n in range(MAX_WAITING + 100):
        topics.deliver("a/b", {"n": n})
        await asyncio.sleep(0)
    assert quick[-1] == MAX_WAITING + 99
    listener = next(iter(topics._listeners.values()))
    assert listener.dropped == 99, "one is with the callback, a thousand wait"
    gate.set()
    async with asyncio.timeout(5):
        while len(slow) < MAX_WAITING + 1:
            await asyncio.sleep(0.005)
    assert slow[-1] == MAX_WAITING + 99


async def test_a_handler_that_is_not_called_can_be_found_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """S-240: the documented checklist: the flag, the registration, the exact name, the organisation, all visible."""
    world.organization.organization_id = None
    petal = await world.petal(Example())
    await world.arrive("command", {"command": "example/hello", "messageId": "q1", "data": {"name": "x"}})
    async with asyncio.timeout(5):
        while "organisation is not known" not in caplog.text:
            await asyncio.sleep(0.005)
    world.organization.organization_id = "ORG1"
    await world.arrive("command", {"command": "example/helo", "messageId": "q2"})
    async with asyncio.timeout(5):
        while "command example/helo is unknown" not in caplog.text:
            await asyncio.sleep(0.005)
    health = await world.proxy.health_check()
    assert (health["subscriptions"]["handlers"], health["device_info"]["organization_id"]) == (1, "ORG1")
    await close(petal)


async def test_an_old_command_is_kept_and_not_offered(server: RealServer, bus_name: str) -> None:
    """Its time counts from its arrival, not from when somebody could dispatch it."""
    async with Bus(server.url, app="mqtt", bus=bus_name) as link, Bus(server.url, app="p", bus=bus_name) as petal:
        await link.call("HSET", handlers_key(link.keys), "p", "1")
        message = {"topic": f"{BASE}/command", "payload": {"command": "p/go", "messageId": "m1", "waitResponse": True}}
        stream = link.keys.topic("mqtt.rx")
        await link.publish("mqtt.rx", "mqtt.message", message)
        ((_, flat),) = await link.call("XRANGE", stream, "-", "+")
        await link.call("DEL", stream)
        flat[flat.index(b"boot_id") + 1] = b"ffffffff"  # of an earlier boot, so its age is the wall clock's
        await link.call("XADD", stream, "1-1", *flat)
        answers: list[tuple[str, str]] = []

        async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
            answers.append((message_id, data["error_code"]))

        dispatch = CommandDispatch(link, respond=respond)
        running = asyncio.create_task(dispatch.run(), name="dispatch")
        try:
            await until(lambda: dispatch.refused == 1, "it is kept")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert dispatch.offered == 0
        assert answers == [("m1", "DEADLINE_EXPIRED")]
        rows = await link.call("XRANGE", link.keys.topic(INVALID), "-", "+")
        assert len(rows) == 1
        assert await petal.call("XLEN", petal.keys.inbox("p", 2)) == 0


async def test_a_topic_belongs_to_each_app_that_wants_it(world: World) -> None:
    """One that leaves takes it from no other."""
    other = MQTTProxy(url=world.server.url, bus=world.bus_name, app_id="other.mqtt", organization=world.organization)
    await other.start()
    try:
        for proxy in (world.proxy, other):
            await proxy.subscribe("x/#", ignore)
        await other.unsubscribe("x/#")
        wanted = await world.link.call("HKEYS", filters_key(world.link.keys))
        assert wanted == [b"petals.mqtt|x/#"]
    finally:
        await other.stop()


async def test_topics_of_a_petal_end_with_it(world: World) -> None:
    """Its methods, and closures that it registered while it started."""
    petal, heard = Petal(), []

    async def closure(topic: str, message: Any) -> None:
        heard.append(topic)

    with acting_for(petal):
        await world.proxy.subscribe("a/1", closure)
        await world.proxy.subscribe("shared", closure)
    await world.proxy.subscribe("shared", ignore)
    assert world.proxy.forget(petal) == 2

    async def left() -> bool:
        wanted = await world.link.call("HKEYS", filters_key(world.link.keys))
        return bool(wanted == [b"petals.mqtt|shared"])

    await until(left, "its own filter is left, the shared one is not")
    assert await world.proxy.get_subscriptions() == {"shared": 1}


async def ignore(topic: str, message: Any) -> None:
    """Nothing."""


async def test_a_response_goes_to_whoever_gave_the_command(world: World) -> None:
    """The organisation changed while the handler ran: the old one hears the answer, the new one does not."""
    petal = await world.petal(Example())
    assert isinstance(petal, Example)
    await world.arrive("command/edge", {"command": "example/hello", "messageId": "o1", "data": {"name": "Al"}})
    assert (await world.next())["organization"] == "ORG1"
    world.organization.organization_id = "ORG2"
    await world.proxy.send_command_response("o1", {"status": "later"})
    assert (await world.next())["organization"] == "ORG1"
    await world.proxy.send_command_response("other", {"status": "x"})
    assert (await world.next())["organization"] == "ORG2"
    await close(petal)


async def test_the_constructor_of_the_document(
    server: RealServer, bus_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S-167, S-168: with the document's arguments; ``debug`` shows what is sent, received and subscribed."""
    organization = Organization()
    proxy = MQTTProxy(
        local_db_proxy=organization,
        ts_client_host="localhost",
        ts_client_port=3004,
        callback_host="localhost",
        callback_port=3005,
        enable_callbacks=True,
        debug=True,
        url=server.url,
        bus=bus_name,
        app_id="documented.mqtt",
    )
    assert (proxy.client, proxy.callbacks) == (("localhost", 3004), ("localhost", 3005, True))
    await proxy.start()
    try:
        assert (proxy.organization_id, proxy.device_id) == ("ORG1", "Instance-m1")
        with caplog.at_level("DEBUG", logger="MQTTProxy"):
            assert await proxy.publish_message("a/b", {"n": 1})
        assert "a/b" in caplog.text
    finally:
        await proxy.stop()
