"""The whole link through the client program: bus, handler, HTTP, while everything around it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from mqtt_client.conftest import BASE, FILTERS, IDENTITY, QUICK, Site, stored, until
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mqtt.client.callbacks import Callbacks
from petalbus.handlers.mqtt.client.transport import ClientTransport
from petalbus.handlers.mqtt.handler import MqttHandler
from petalbus.handlers.mqtt.options import ClientOptions
from petalbus.handlers.mqtt.transport import Identity

from support.servers import RealServer
from support.ts_client import TsClient

COMMAND = f"{BASE}/command/edge"
Start = Callable[..., Awaitable[Site]]


class Known:
    """We know who we are."""

    def identity(self) -> Identity:
        return IDENTITY

    async def changed(self) -> None:
        await asyncio.Event().wait()


class Rig:
    """A link that runs."""

    def __init__(self, handler: MqttHandler, petal: Bus, site: Site) -> None:
        self.handler = handler
        self.petal = petal
        self.site = site

    async def connected(self) -> None:
        await until(lambda: self.handler.transport.state.connected)


@pytest.fixture
async def rig(own_server: RealServer, bus_name: str, client: TsClient, serve: Start) -> AsyncIterator[Rig]:
    """Its bus is on a server of its own."""
    async with AsyncExitStack() as stack:
        petal = await stack.enter_async_context(Bus(own_server.url, app="petals.mqtt", bus=bus_name))
        callbacks = Callbacks(ClientOptions(), patience=1.0)
        site = await serve(callbacks, lambda: petal)
        given = ClientOptions(host="127.0.0.1", port=client.port, callback_url=site.callback_url, **QUICK)
        handler = MqttHandler(
            lambda app: Bus(own_server.url, app=app, bus=bus_name), ClientTransport(given, callbacks), who=Known()
        )
        await stack.enter_async_context(handler)
        running = asyncio.create_task(handler.run(), name="link")
        made = Rig(handler, petal, site)
        try:
            await made.connected()
            yield made
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def command(number: int) -> dict[str, Any]:
    return {"messageId": f"m{number}", "command": "camera/shoot", "payload": {"n": number}}


async def taken(rig: Rig) -> list[int]:
    """The numbers of the commands that are in the stream, in its order."""
    return [one["payload"]["payload"]["n"] for one in await stored(rig.petal) if one["topic"] == COMMAND]


async def test_one_failed_probe_loses_no_command(rig: Rig, client: TsClient) -> None:
    """S-160, S-172: one failed probe, and 20 commands at that time: each is taken at once, and the link is told."""
    client.failing_probes = 1
    await until(lambda: not rig.handler.transport.state.connected)
    for number in range(20):
        answer = await rig.site.bring(COMMAND, command(number))
        assert answer.status_code == 200
    assert await taken(rig) == list(range(20))
    await rig.connected()
    assert client.subscriptions.keys() == FILTERS.keys()
    async with asyncio.timeout(10):
        while (await rig.site.client.get("/mqtt/status")).json()["status"] != "healthy":
            await asyncio.sleep(0.05)


async def test_nothing_is_lost_while_everything_fails(rig: Rig, client: TsClient, own_server: RealServer) -> None:
    """The client program fails, goes and comes without memory, Redis is killed: each way 100 messages, none lost.

    Whatever was answered with success is in the stream; the order of each topic is kept both ways.
    """
    answered: list[int] = []

    async def come() -> None:
        for number in range(100):
            await client.bring_until_taken(COMMAND, command(number))
            answered.append(number)
            await asyncio.sleep(0.02)

    async def go() -> None:
        for number in range(100):
            body = {"topic": f"{BASE}/response", "payload": {"n": number}, "qos": 1}
            while (await rig.site.client.post("/mqtt/publish", json=body)).status_code != 200:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)

    async def fail() -> None:
        await asyncio.sleep(0.3)
        client.failing_probes = 1
        await asyncio.sleep(0.4)
        await client.stop()
        await asyncio.sleep(1.0)
        await client.start()
        await asyncio.sleep(0.3)
        client.judge = lambda _body: (500, {"error": "broker offline"})
        await asyncio.sleep(0.3)
        client.judge = lambda _body: (200, {"success": False})
        await asyncio.sleep(0.3)
        client.judge = lambda _body: None
        own_server.kill()
        await asyncio.sleep(0.3)
        own_server.start()

    async with asyncio.timeout(50):
        await asyncio.gather(come(), go(), fail())
        numbers: list[int] = []
        while len(numbers) < 100:
            await asyncio.sleep(0.05)
            sent = [body["payload"]["n"] for body in client.published if body["topic"].endswith("/response")]
            numbers = list(dict.fromkeys(sent))
    assert numbers == sorted(numbers)
    assert answered == list(range(100))
    assert await taken(rig) == answered


async def test_what_was_published_before_it_was_there(rig: Rig, client: TsClient) -> None:
    """S-169, S-192: success is told when a message is stored, also while nobody is there; it goes out later."""
    await client.stop()
    await until(lambda: not rig.handler.transport.state.connected)
    for number in range(30):
        body = {"topic": f"{BASE}/command/web", "payload": {"n": number}}
        assert (await rig.site.client.post("/mqtt/publish", json=body)).json()["status"] == "stored"
    assert not client.published
    await client.start()
    await until(lambda: len(client.published) == 30)
    assert [body["payload"]["n"] for body in client.published] == list(range(30))
    assert {body["payload"]["deviceId"] for body in client.published} == {"Instance-m1"}


async def test_subscribing_over_http_reaches_the_client_program(rig: Rig, client: TsClient) -> None:
    """S-170, S-171, S-173, S-196: what is subscribed here is subscribed there, and what comes is in the stream."""
    await rig.site.client.post("/mqtt/subscribe", json={"topic": "weather/+"})
    await until(lambda: "weather/+" in client.subscriptions)
    answer = await client.bring("weather/dubai", {"wind": 3})
    assert answer is not None
    assert answer.status_code == 200
    assert (await stored(rig.petal))[0]["payload"] == {"wind": 3}
    told = (await rig.site.client.get("/mqtt/subscriptions")).json()
    assert "weather/+" in told["patterns"]
    await rig.site.client.post("/mqtt/unsubscribe", json={"topic": "weather/+"})
    await until(lambda: "weather/+" not in client.subscriptions)
    assert client.subscriptions.keys() == FILTERS.keys()
