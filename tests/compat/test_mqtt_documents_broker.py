"""The sample petal of the newer MQTT document over a real broker: the document's own request and its response."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt.direct import DirectTransport
from petalbus.handlers.mqtt.handler import MqttHandler
from petalbus.handlers.mqtt.options import DirectOptions
from petalbus.handlers.mqtt.transport import Identity
from petalbus.petals.hosting import PetalHost
from petalbus.petals.proxies.mqtt import MQTTProxy

from . import spec
from .spec import MQTT_PETAL
from support.broker import Mosquitto, program
from support.mqtt_world import BASE, Organization
from support.servers import RealServer

SECONDS: Final = 20


class Who:
    """Who we are; it stays so."""

    def identity(self) -> Identity:
        return Identity("ORG1", "Instance-m1")

    async def changed(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@contextlib.asynccontextmanager
async def linked(server: RealServer, bus_name: str, port: int) -> AsyncIterator[MQTTProxy]:
    """The link as the daemon has it, connected, and the proxy of a petal's process."""
    quick = BusOptions(stop_grace=0.2)
    handler = MqttHandler(
        lambda app: Bus(server.url, app=app, bus=bus_name, options=quick),
        DirectTransport(DirectOptions(host="127.0.0.1", port=port, retry_first=0.05)),
        who=Who(),
        installed=lambda: ("example-petal",),
    )
    proxy = MQTTProxy(url=server.url, bus=bus_name, app_id="petals.mqtt", organization=Organization())
    async with handler:
        running = asyncio.create_task(handler.run(), name="link")
        await proxy.start()
        try:
            async with asyncio.timeout(SECONDS):
                while not await proxy.is_connected():
                    await asyncio.sleep(0.01)
            yield proxy
        finally:
            await proxy.stop()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_the_complete_example_over_a_broker(
    server: RealServer, bus_name: str, broker: Mosquitto, tmp_path: Path
) -> None:
    """S-201, S-205, S-220, S-233, S-234, C-06: command/edge and command, the expected responses, nothing twice."""
    module = spec.load(spec.block(MQTT_PETAL, "class ExamplePetal"), tmp_path, prelude="")
    request = json.loads(spec.block(MQTT_PETAL, "example-petal/hello", language="json"))
    expected = json.loads(spec.block(MQTT_PETAL, "Hello, Developer!", language="json"))

    def connect(app: str) -> Bus:
        return Bus(server.url, app=app, bus=bus_name, options=BusOptions(presence=False))

    async with linked(server, bus_name, broker.port) as proxy:
        host: PetalHost[Any] = PetalHost(module.ExamplePetal, {"mqtt": proxy}, connect)
        await host.start()
        await proxy._commands.settled()
        try:
            options = ("-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-W", str(SECONDS))
            cloud = await asyncio.create_subprocess_exec(
                program("mosquitto_sub"), *options, "-t", f"{BASE}/response", stdout=asyncio.subprocess.PIPE
            )
            await _subscribed(broker)
            process = {**request, "command": "example-petal/process", "messageId": "2", "data": {"n": 1}}
            for suffix, message in (
                ("command/edge", request),
                ("command/edge", request),
                ("command", process),
                ("command", {**process, "command": "example-petal/none", "messageId": "3"}),
            ):
                await asyncio.to_thread(broker.publish, f"{BASE}/{suffix}", json.dumps(message))
            assert cloud.stdout is not None
            answers = {}
            async with asyncio.timeout(SECONDS):
                while len(answers) < 3:
                    answer = json.loads(await cloud.stdout.readline())
                    assert answer["messageId"] not in answers, "it was answered twice"
                    answers[answer["messageId"]] = answer
            cloud.kill()
            await cloud.wait()
        finally:
            await host.stop()
    hello = answers[request["messageId"]]
    assert {name: hello[name] for name in ("success", "message")} == {
        name: expected[name] for name in ("success", "message")
    }
    assert answers["2"]["result"] == {"processed": True, "data": {"n": 1}}
    assert (answers["3"]["success"], answers["3"]["error"]) == (False, "Unknown command: example-petal/none")


async def _subscribed(broker: Mosquitto) -> None:
    """The listener in the cloud has its subscription; the link's own of this topic is the other one."""
    async with asyncio.timeout(SECONDS):
        while broker.log.count(f"{BASE}/response (QoS 1)") < 2:
            await asyncio.sleep(0.02)
