"""The petal ``echo``: each way into a petal, once, on both buses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from petalbus import Bus, Record, ReplyError
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.words import base_topic
from petalbus.petals.echo import EchoPetal
from petalbus.petals.proxies.mqtt import MQTTProxy
from petalbus.testing import Faults, PetalHarness, TestBus

pytest_plugins = ["petalbus.petals.testing.plugin"]


async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
    """The link answers for no petal here."""


async def test_a_record_comes_back(each_bus: TestBus) -> None:
    async with PetalHarness(EchoPetal, bus=each_bus) as h:
        reply = await h.request("echo", {"any": ["thing", 1, None]})
        assert reply.data == {"echo": {"any": ["thing", 1, None]}, "heard": 1}
        assert reply.type == "echo_response"


async def test_counting_tells_how_far_it_is(each_bus: TestBus) -> None:
    async with PetalHarness(EchoPetal, bus=each_bus) as h:
        heard: list[int] = []
        reply = await h.request("echo.count", {"to": 3}, on_progress=lambda record: heard.append(record.data["number"]))
        assert (heard, reply.data) == ([1, 2, 3], {"counted": 3})


@pytest.mark.parametrize(
    ("wrong", "field"), [({}, "to"), ({"to": 0}, "to"), ({"to": 3, "pause": 11}, "pause"), ([1], "data")]
)
async def test_a_wrong_payload_is_answered_with_its_field(each_bus: TestBus, wrong: Any, field: str) -> None:
    async with PetalHarness(EchoPetal, bus=each_bus) as h:
        with pytest.raises(ReplyError) as refused:
            await h.request("echo.count", wrong)
        assert (refused.value.error_code, refused.value.detail["field"]) == ("PAYLOAD_INVALID", field)
        await h.catch_up()
        assert not [one for one in h.records if one.place.startswith("dead")]


async def test_http_and_websocket(each_bus: TestBus) -> None:
    async with PetalHarness(EchoPetal, bus=each_bus) as h:
        answer = await h.http.get("/say", params={"text": "ahoy"})
        assert answer.json() == {"echo": "ahoy", "heard": 1}
        async with h.websocket("/ws") as socket:
            for text in ("one", "two"):
                await socket.send_text(text)
                assert await socket.receive_text() == text
        assert h.petal.heard == 3


@dataclass
class Organization:
    """What the MQTT proxy asks an OrganizationManager for."""

    organization_id: str | None = "ORG1"
    machine_id: str | None = "m1"


@asynccontextmanager
async def mqtt_link(bus: TestBus, sent: asyncio.Queue[Any]) -> AsyncIterator[Bus]:
    """The bus's side of a broker: what comes from it is published by hand, what would go to it lands in ``sent``."""
    async with bus, bus.client("mqtt") as link:

        @link.on("mqtt.publish", concurrency=None)
        async def publish(record: Record) -> None:
            sent.put_nowait(record.data)

        running = asyncio.create_task(CommandDispatch(link, respond=respond).run(), name="dispatch")
        try:
            yield link
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_an_mqtt_command_is_answered_where_somebody_waits(each_bus: TestBus) -> None:
    sent: asyncio.Queue[Any] = asyncio.Queue()

    def mqtt(bus: TestBus) -> MQTTProxy:
        return MQTTProxy(url=bus.url, bus=bus.name, app_id="echo.mqtt", organization=Organization())

    async with mqtt_link(each_bus, sent) as link, PetalHarness(EchoPetal, bus=each_bus, proxies={"mqtt": mqtt}) as h:
        message = {"messageId": "m-1", "command": "echo/say", "waitResponse": True, "payload": {"text": "ahoy"}}
        message |= {"deviceId": "Instance-m1", "timestamp": "2026-01-01T00:00:00Z"}
        topic = f"{base_topic('ORG1', 'Instance-m1')}/command/edge"
        await link.publish("mqtt.rx", "mqtt.message", {"topic": topic, "payload": message, "qos": 1})
        async with asyncio.timeout(10):
            answer = await sent.get()
        assert (answer["suffix"], answer["payload"]["echo"]) == ("response", {"text": "ahoy"})
        assert answer["payload"]["messageId"] == "m-1"
        assert h.petal.heard == 1


async def test_it_goes_on_under_faults(each_bus: TestBus) -> None:
    async with PetalHarness(EchoPetal, bus=each_bus, faults=Faults(seed=11, drop=0.2, crash=0.2)) as h:
        for n in range(6):
            receipt = await h.send("echo", n)
            assert (await h.expect_reply(receipt, within=15)).data["echo"] == n
        assert h.faults.count("crash") == h.crashes > 0
