"""The samples of the two MQTT documents, as they stand there; the link to a broker is played by a client of the bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.petals.base import Petal
from petalbus.petals.hosting import PetalHost

from . import spec
from .spec import MQTT, MQTT_PETAL
from support.mqtt_world import BASE, World, mqtt_world
from support.servers import RealServer


@pytest.fixture
async def world(server: RealServer, bus_name: str) -> AsyncIterator[World]:
    async with mqtt_world(server, bus_name) as made:
        yield made


@contextlib.asynccontextmanager
async def running(world: World, petal: type[Petal]) -> AsyncIterator[Any]:
    """A sample's petal from its start to its stop, as the runtime does it."""

    def connect(app: str) -> Bus:
        return Bus(world.server.url, app=app, bus=world.bus_name, options=BusOptions(presence=False))

    host = PetalHost(petal, {"mqtt": world.proxy}, connect)
    await host.start()
    await world.proxy._commands.settled()
    try:
        yield host.petal
    finally:
        await host.stop()


async def test_the_complete_example(world: World, tmp_path: Path) -> None:
    """S-218, S-220, S-221, S-222, S-224, S-226, S-233, S-234, S-235, S-236, S-237, S-244.

    The request of the document gets its expected response.
    """
    module = spec.load(spec.block(MQTT_PETAL, "class ExamplePetal"), tmp_path, prelude="")
    request = json.loads(spec.block(MQTT_PETAL, "example-petal/hello", language="json"))
    expected = json.loads(spec.block(MQTT_PETAL, "Hello, Developer!", language="json"))
    async with running(world, module.ExamplePetal) as petal:
        assert petal.mqtt_subscription_id is not None
        assert petal._loop is asyncio.get_running_loop()
        await world.arrive("command/edge", request)
        response = (await world.next())["payload"]
        assert {name: response[name] for name in ("messageId", "success", "message")} == {
            name: expected[name] for name in ("messageId", "success", "message")
        }
        await world.arrive(
            "command", {**request, "command": "example-petal/process", "messageId": "2", "data": {"n": 1}}
        )
        assert (await world.next())["payload"]["result"] == {"processed": True, "data": {"n": 1}}
        await world.arrive("command", {**request, "command": "example-petal/none", "messageId": "3"})
        unknown = (await world.next())["payload"]
        assert (unknown["success"], unknown["error"]) == (False, "Unknown command: example-petal/none")
        await world.arrive("command", {**request, "messageId": "4", "waitResponse": False})
        await world.arrive("command", {**request, "messageId": "5"})
        assert (await world.next())["payload"]["messageId"] == "5", "S-243: no response unless it is waited for"


async def test_the_steps_make_a_petal(world: World, tmp_path: Path) -> None:
    """S-219, S-220, S-225, S-226, S-232, S-239: the seven steps put together, with the helper that they leave open."""
    text = spec.text_of(MQTT_PETAL)
    steps = text[text.index("### Step 1") : text.index("## Complete Example")]
    pieces = [found[2] for found in spec._FENCE.finditer(steps) if found[1] == "python"]
    body = "\n".join(textwrap.indent(piece, "    ") for piece in pieces[1:])
    upload = "    async def _upload_record_handler(self, topic, message):\n        pass\n"
    code = f"{pieces[0]}\n{body}\n{upload}".replace("[...]", "[1, 2]")
    async with running(world, spec.load(code, tmp_path).FlightLogPetal) as petal:
        assert (petal.name, petal.version) == ("flight-log-petal", "1.0.0")
        await world.arrive("command/edge", {"command": "flight-log/fetch_records", "messageId": "r1", "data": {}})
        response = (await world.next())["payload"]
        assert (response["messageId"], response["success"], response["records"]) == ("r1", True, [1, 2])


async def test_handlers_are_set_up_when_the_organisation_appears(world: World, tmp_path: Path) -> None:
    """S-207, S-209, S-223, S-224, S-227: not before, and without a restart."""
    module = spec.load(spec.block(MQTT_PETAL, "class ExamplePetal"), tmp_path, prelude="")
    world.organization.organization_id = None

    def connect(app: str) -> Bus:
        return Bus(world.server.url, app=app, bus=world.bus_name, options=BusOptions(presence=False))

    host: PetalHost[Any] = PetalHost(module.ExamplePetal, {"mqtt": world.proxy}, connect)
    await host.start()
    assert host.petal.mqtt_subscription_id is None
    world.organization.organization_id = "ORG1"
    await host.set_up_mqtt()
    await host.set_up_mqtt()
    await world.proxy._commands.settled()
    assert (await world.proxy.health_check())["subscriptions"]["handlers"] == 1
    await host.stop()
    assert (await world.proxy.health_check())["subscriptions"]["handlers"] == 0


async def test_a_test_handler_answers_once(world: World, tmp_path: Path) -> None:
    """S-238: the practice of test handlers in the registry, with data of their own."""
    sample = spec.block(MQTT_PETAL, "async def _test_handler")
    body = textwrap.indent(sample, "    ")
    production = (
        "    async def _production_handler(self, topic, message):\n"
        "        await self._proxies['mqtt'].send_command_response(message['messageId'], message['data'])\n"
        "    async def _setup_mqtt_topics(self):\n"
        "        handlers = self._setup_command_handlers()\n"
        "        async def master(topic, message):\n"
        "            await handlers[message['command']](topic, message)\n"
        "        self._proxies['mqtt'].register_handler(master)\n"
    )
    code = f"class MyPetal(Petal):\n    name = 'my-petal'\n    use_mqtt_proxy = True\n{body}\n{production}"
    async with running(world, spec.load(code, tmp_path).MyPetal):
        for number in ("1", "2"):
            await world.arrive("command", {"command": "my-petal/test", "messageId": number, "data": {"real": 1}})
        await world.arrive("command", {"command": "my-petal/production", "messageId": "3", "data": {"real": 1}})
        first, second = (await world.next())["payload"], (await world.next())["payload"]
        assert (first["messageId"], first["test"]) == ("1", "data")
        assert (second["messageId"], second["real"]) == ("3", 1)


async def test_direct_use_of_the_proxy(world: World) -> None:
    """S-136, S-174, S-175, S-176, S-177, S-178: publish, subscribe and pattern, in the form of the older document."""
    names = await spec.run(
        spec.block(MQTT, "async def my_petal_function") + "\nawait my_petal_function(proxies)\n",
        proxies={"mqtt": world.proxy},
    )
    assert names["proxies"]["mqtt"] is world.proxy
    told = await world.next()
    assert (told["topic"], told["payload"]) == ("test/topic", {"message": "Hello World!"})
    assert await world.proxy.get_subscriptions() == {"test/topic": 1, "test/*": 1}


async def test_the_older_petal(world: World, tmp_path: Path) -> None:
    """S-190, S-200, C-27: proxies in the constructor, an async startup, commands on a topic of its own, telemetry."""
    code = spec.block(MQTT, "class MyPetal")
    handled: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sample: Any = spec.load(code, tmp_path).MyPetal

    class MyPetal(sample):
        def get_telemetry_data(self) -> dict[str, int]:
            return {"altitude": 10}

        async def handle_command(self, topic: str, payload: dict[str, Any]) -> None:
            handled.put_nowait(payload)

    petal = MyPetal({"mqtt": world.proxy})
    await petal.startup()
    told = await world.next()
    assert (told["topic"], told["payload"]["data"]) == ("my/petal/telemetry", {"altitude": 10})
    await world.link.publish("mqtt.rx", "mqtt.message", {"topic": "my/petal/commands", "payload": {"go": 1}, "qos": 1})
    async with asyncio.timeout(5):
        assert await handled.get() == {"go": 1}
    for task in asyncio.all_tasks():
        if "publish_telemetry" in repr(task.get_coro()):
            task.cancel()


async def test_callbacks_of_the_older_document(world: World) -> None:
    """S-175, S-179, S-180, S-183: a command handler that answers on the response topic; telemetry by pattern."""
    code = spec.block(MQTT, "async def telemetry_handler")
    await spec.run(code, mqtt_proxy=world.proxy, org_id="ORG1", device_id="Instance-m1")
    stream = world.link.keys.topic("mqtt.rx")
    async with asyncio.timeout(5):
        while not await world.link.call("EXISTS", stream) or len(await world.link.call("XINFO", "GROUPS", stream)) < 2:
            await asyncio.sleep(0.01)
    await world.arrive("command", {"command": "shoot", "messageId": "c1"})
    told = await world.next()
    assert told["topic"] == f"{BASE}/response"
    assert told["payload"] == {"messageId": "c1", "status": "success", "result": "Command executed successfully"}


async def test_health_as_the_older_document_reads_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """S-191, C-10: the keys are there, and tell what is true."""
    await spec.run(spec.block(MQTT, "health_status['connection']['callback_server']"), mqtt_proxy=world.proxy)
    assert "operational" not in capsys.readouterr().out
    await world.link.call("HSET", f"{world.link.keys.prefix}mqtt:link", "connected", "1")
    await spec.run(spec.block(MQTT, "health_status['connection']['callback_server']"), mqtt_proxy=world.proxy)
    assert "operational" in capsys.readouterr().out


async def test_error_handling_of_the_older_document(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """S-192: a publish that cannot be stored answers False, or raises; both are handled as documented."""

    async def callback(topic: str, payload: dict[str, Any]) -> None:
        """Hears nothing here."""

    code = spec.block(MQTT, "Failed to publish to")
    await spec.run(code, mqtt_proxy=world.proxy, topic="a/b", payload={"n": 1}, callback=callback)
    assert (await world.next())["topic"] == "a/b"
    with caplog.at_level(logging.ERROR):
        await spec.run(code, mqtt_proxy=world.proxy, topic="a/b", payload={"x": "y" * 200_000}, callback=callback)
    assert "MQTT error" in caplog.text


async def test_the_older_documents_command_handler(world: World) -> None:
    """S-186, S-187, S-188: get_status and restart, answered with the response topic as first argument."""
    restarts: list[bool] = []
    code = spec.block(MQTT, "async def custom_command_handler")
    names = {
        "mqtt_proxy": world.proxy,
        "get_uptime": lambda: 42,
        "schedule_restart": lambda: restarts.append(True),
    }
    handler = (await spec.run(code, **names))["custom_command_handler"]
    for command, wanted in (
        ("get_status", {"status": "operational", "uptime": 42, "version": "1.0.0"}),
        ("restart", {"status": "restarting"}),
    ):
        await handler(f"{BASE}/command", {"command": command, "messageId": command})
        told = await world.next()
        assert told["topic"] == f"{BASE}/response"
        assert told["payload"]["messageId"] == command
        assert wanted.items() <= told["payload"].items()
    assert restarts == [True]


async def test_the_older_documents_telemetry(world: World) -> None:
    """S-183, S-189: the documented payload goes out on the device's telemetry topic."""
    code = spec.block(MQTT, "async def publish_telemetry():").replace(
        "asyncio.create_task(publish_telemetry_periodically())", "await publish_telemetry()"
    )
    words = "temperature humidity pressure cpu_usage memory_usage battery_level latitude longitude altitude"
    measured = {f"get_{name}": (lambda value=number: value) for number, name in enumerate(words.split())}
    await spec.run(code, mqtt_proxy=world.proxy, org_id="ORG1", device_id="Instance-m1", **measured)
    told = await world.next()
    assert told["topic"] == f"{BASE}/telemetry"
    assert told["payload"]["system"] == {"cpu_usage": 3, "memory_usage": 4, "battery_level": 5}
    assert set(told["payload"]["location"]) == {"latitude", "longitude", "altitude"}
