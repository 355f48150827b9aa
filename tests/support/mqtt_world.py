"""The link to a broker, played by a client of the bus, with the dispatch of commands and a proxy, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.transport import Incoming
from petalbus.handlers.mqtt.words import base_topic
from petalbus.petals.base import Petal
from petalbus.petals.proxies.mqtt import MQTTProxy
from petalbus.schemas.record import Record

from support.servers import RealServer

BASE = base_topic("ORG1", "Instance-m1")


@dataclass
class Organization:
    """What the proxy asks an OrganizationManager for."""

    organization_id: str | None = "ORG1"
    machine_id: str | None = "m1"


@dataclass
class World:
    """The link, the dispatch, and a petal's process."""

    server: RealServer
    bus_name: str
    link: Bus
    proxy: MQTTProxy
    organization: Organization
    ingress: Ingress
    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    async def arrive(self, suffix: str, payload: Any) -> None:
        """A message from the broker, as the link stores it."""
        await self.ingress.received(Incoming(f"{BASE}/{suffix}", orjson.dumps(payload)))

    async def next(self) -> dict[str, Any]:
        """What is to be published next."""
        async with asyncio.timeout(5):
            return await self.sent.get()

    async def petal(self, petal: Petal) -> Petal:
        """Start a petal's MQTT part as the runtime does."""
        petal.inject_proxies({"mqtt": self.proxy})
        petal._bus = Bus(self.server.url, app=petal.name, bus=self.bus_name, options=BusOptions(presence=False))
        await petal._bus.start()
        assert await petal._setup_mqtt_actions() is not None
        await self.proxy._commands.settled()
        return petal


@contextlib.asynccontextmanager
async def mqtt_world(server: RealServer, bus_name: str) -> AsyncIterator[World]:
    """A world, until the end of the block."""
    async with contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(Bus(server.url, app="mqtt", bus=bus_name))
        telemetry = await stack.enter_async_context(Bus(server.url, app="mqtt.telemetry", bus=bus_name))
        organization = Organization()
        proxy = MQTTProxy(url=server.url, bus=bus_name, app_id="petals.mqtt", organization=organization)

        async def publish(record: Record) -> None:
            made.sent.put_nowait(record.data)

        async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
            told = {"topic": f"{device}/response", "payload": {"messageId": message_id, **data}}
            await link.send("mqtt", "mqtt.publish", told)

        ingress = Ingress(link, MqttOptions(), respond=respond)
        made = World(server, bus_name, link, proxy, organization, ingress)

        for kind in ("mqtt.publish", "mqtt.publish_later"):
            link.on(kind, concurrency=None)(publish)
            telemetry.on(kind, concurrency=None)(publish)

        await proxy.start()
        stack.push_async_callback(proxy.stop)
        dispatch = CommandDispatch(link, respond=respond, installed=lambda: ("example",))
        dispatch.register()
        running = asyncio.create_task(dispatch.run(), name="dispatch")
        try:
            yield made
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
