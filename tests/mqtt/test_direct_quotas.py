"""A broker with quotas, as AWS IoT and Mosquitto have them: what it does not take now arrives later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import egress, words
from petalbus.handlers.mqtt.direct import DirectTransport
from petalbus.handlers.mqtt.handler import MqttHandler
from petalbus.handlers.mqtt.options import DirectOptions, EgressOptions, MqttOptions
from petalbus.schemas.vocabulary import Status

from .test_link import BASE, Somebody
from support.mqtt_link import until
from support.odd_broker import OddBroker, Published
from support.servers import RealServer


@dataclass
class Whole:
    """The whole link to a broker, and a client that publishes as a petal does."""

    handler: MqttHandler
    transport: DirectTransport
    petal: Bus

    async def publish(self, number: int, topic: str = f"{BASE}/web/x", *, qos: int = 1) -> str:
        data = {"topic": topic, "payload": {"n": number}, "qos": qos}
        return (await self.petal.send(words.APP if qos else words.TELEMETRY, words.PUBLISH, data)).id

    async def becomes(self, message_id: str, status: Status) -> None:
        async with asyncio.timeout(15):
            while await self.petal.status(message_id) is not status:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def whole(server: RealServer, bus_name: str, port: int, limits: EgressOptions) -> AsyncIterator[Whole]:
    transport = DirectTransport(DirectOptions(host="127.0.0.1", port=port, retry_first=0.05))
    quick = BusOptions(stop_grace=0.2)
    handler = MqttHandler(
        lambda app: Bus(server.url, app=app, bus=bus_name, options=quick),
        transport,
        who=Somebody(),
        options=MqttOptions(egress=limits),
    )
    async with Bus(server.url, app="petal", bus=bus_name) as petal, handler:
        running = asyncio.create_task(handler.run(), name="link")
        try:
            await until(lambda: transport.state.connected, lambda: f"{transport.state}")
            yield Whole(handler, transport, petal)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_nothing_exceeds_the_quota_of_a_second(odd: OddBroker, server: RealServer, bus_name: str) -> None:
    """S-197, S-198: AWS IoT drops what exceeds it without an answer: nothing does, after a pause neither."""
    odd.be_aws()
    odd.most_a_second = 30
    assert EgressOptions().rate < 100, "what the network delays arrives closer together"
    async with whole(server, bus_name, odd.port, EgressOptions(rate=27)) as link:
        names = [await link.publish(number) for number in range(60)]
        await link.becomes(names[-1], Status.COMPLETED)
        await asyncio.sleep(0.3)
        names = [await link.publish(number) for number in range(30)]
        await link.becomes(names[-1], Status.COMPLETED)
        assert not odd.discarded
        assert len(odd.published) == 90
        assert link.transport.describe()["in_flight"] == 0


async def test_a_quota_that_is_exceeded_now_is_not_a_dead_letter(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-192, S-197: Mosquitto says 0x97 when it is full. The message is sent again after a pause; others go on."""
    monkeypatch.setattr(egress, "NOT_NOW_FIRST_S", 0.05)
    monkeypatch.setattr(egress, "_DEADLINE_LOOK_S", 0.02)
    left = 9

    def full(message: Published) -> int:
        nonlocal left
        if not message.topic.endswith("/full") or not left:
            return 0
        left -= 1
        return 0x97

    odd.puback = full
    monkeypatch.setattr(egress, "NOT_NOW_MOST_S", 0.05)
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        late = await link.publish(1, f"{BASE}/full")
        await until(lambda: left < 8, lambda: f"{left} left")
        assert await link.petal.status(late) is not Status.FAILED
        out = link.handler.egress.statistics()
        assert (out["waiting"] + out["in_flight"], out["refused"]) == (1, 0)
        other = await link.publish(2)
        await link.becomes(other, Status.COMPLETED)
        await link.becomes(late, Status.COMPLETED)
        out = link.handler.egress.statistics()
        assert (out["put_off"], out["refused"], out["waiting"]) == (9, 0, 0)


@pytest.mark.parametrize("code", [0x97, 0x83])
async def test_one_message_that_is_never_taken_is_given_up(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """I8: bounded: where the broker takes others meanwhile (quota), or says nothing that passes (0x83)."""
    for name, value in (("NOT_NOW_FIRST_S", 0.01), ("_DEADLINE_LOOK_S", 0.02), ("NOT_NOW_MOST_S", 0.02)):
        monkeypatch.setattr(egress, name, value)
    odd.puback = lambda message: code if message.topic.endswith("/never") else 0
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        never = await link.publish(0, f"{BASE}/never")
        if code == 0x97:
            for number in range(2 * egress.NOT_NOW_PASSED):  # nobody confirms them
                await link.becomes(await link.publish(number, qos=0), Status.COMPLETED)
            before = max(egress.NOT_NOW_TIMES, link.handler.egress.put_off)
            await until(lambda: link.handler.egress.put_off > before + 2, lambda: "it is refused")
            assert await link.petal.status(never) is not Status.FAILED, "perhaps the broker is full altogether"
            for number in range(egress.NOT_NOW_PASSED):
                await link.becomes(await link.publish(number), Status.COMPLETED)
        await link.becomes(never, Status.FAILED)
        (dead,) = await link.petal.dead.list(words.APP)
        assert f"{code:#04x}" in str(dead)


async def test_a_deadline_passes_while_the_broker_is_full(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for its next turn expires as everything else does."""
    monkeypatch.setattr(egress, "_DEADLINE_LOOK_S", 0.02)
    odd.puback = lambda _: 0x97
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        data = {"topic": f"{BASE}/x", "payload": 1, "qos": 1}
        sent = await link.petal.send(words.APP, words.PUBLISH, data, deadline=0.3)
        await until(lambda: link.handler.egress.expired == 1, lambda: f"{link.handler.egress.statistics()}")
        assert await link.petal.status(sent.id) is not Status.COMPLETED
