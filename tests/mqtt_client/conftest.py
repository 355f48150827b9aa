"""A client program, our HTTP server, and the link between them, on a real bus."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx
import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.mqtt import mqtt_router
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.server import Server, address_of, tcp_listener
from petalbus.handlers.mqtt.client.callback_routes import callback_router
from petalbus.handlers.mqtt.client.callbacks import Callbacks
from petalbus.handlers.mqtt.client.transport import ClientTransport
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import ClientOptions, MqttOptions
from petalbus.handlers.mqtt.transport import Identity, Incoming, LinkLost, LinkState, Outgoing
from petalbus.handlers.mqtt.words import TOPIC

from support.ts_client import TsClient, ts_client

BASE = "org/ORG1/device/Instance-m1"
FILTERS = {f"{BASE}/{end}": 1 for end in ("command/edge", "command", "response")}
IDENTITY = Identity("ORG1", "Instance-m1")
QUICK: dict[str, Any] = {
    "retry_first": 0.02,
    "retry_most": 0.2,
    "probe_interval": 0.1,
    "probe_timeout": 2.0,
    "request_timeout": 5.0,
    "subscribe_timeout": 2.0,
}


class Taker:
    """Who takes what the transport brings, and remembers its states. ``store`` is what really stores."""

    def __init__(self, store: Ingress | None = None) -> None:
        self.store = store
        self.states: list[LinkState] = []

    async def received(self, message: Incoming) -> None:
        if self.store is not None:
            await self.store.received(message)

    async def invalid(self, topic: str, raw: bytes, reason: str) -> None:
        if self.store is not None:
            await self.store.invalid(topic, raw, reason)

    def link_changed(self, state: LinkState) -> None:
        self.states.append(state)


@dataclass
class Link:
    """A running transport."""

    transport: ClientTransport
    taker: Taker
    running: asyncio.Task[None]

    async def connected(self) -> None:
        """Wait until it is."""
        await until(lambda: self.transport.state.connected)

    async def send(self, *messages: Outgoing) -> None:
        """Send as the outbox does: the oldest first, again what was not confirmed, until all are."""
        waiting = list(enumerate(messages))
        left, wake = len(messages), asyncio.Event()
        failed: list[BaseException] = []

        def ended(entry: tuple[int, Outgoing], future: asyncio.Future[int]) -> None:
            nonlocal left
            wake.set()
            error = future.exception()
            if isinstance(error, LinkLost):
                bisect.insort(waiting, entry, key=lambda one: one[0])
                return
            left -= 1
            if error is not None:
                failed.append(error)
            else:
                assert future.result() == 0

        while left and not failed:
            if not waiting:
                wake.clear()
                await wake.wait()
                continue
            await self.transport.room()
            entry = waiting.pop(0)
            self.transport.submit(entry[1]).add_done_callback(partial(ended, entry))
        if failed:
            raise failed[0]


@pytest.fixture
async def client() -> AsyncIterator[TsClient]:
    """A client program that is there."""
    async with ts_client() as made:
        yield made


RunLink = Callable[..., Awaitable[Link]]


@pytest.fixture
async def run_link(client: TsClient) -> AsyncIterator[RunLink]:
    """Start a transport: ``await run_link(taker=..., callbacks=..., probe_interval=...)``."""
    running: list[asyncio.Task[None]] = []

    async def start(
        taker: Taker | None = None, *, filters: dict[str, int] | None = None, callbacks: Any = None, **changes: Any
    ) -> Link:
        options = ClientOptions(host="127.0.0.1", port=client.port, **{**QUICK, **changes})
        transport = ClientTransport(options, callbacks)
        taker = taker or Taker()
        transport.want(FILTERS if filters is None else filters, IDENTITY)
        task = asyncio.create_task(transport.run(taker), name="transport")
        running.append(task)
        return Link(transport, taker, task)

    yield start
    for task in running:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Site:
    """Our HTTP server."""

    def __init__(self, url: str, server: Server) -> None:
        self.url = url
        self.server = server
        self.client = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.callback_url = f"{url}/mqtt-callback/callback"

    async def bring(self, topic: str, payload: Any, **options: Any) -> httpx.Response:
        """A callback as the client program makes it."""
        return await self.client.post("/mqtt-callback/callback", json={"topic": topic, "payload": payload}, **options)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    """Serve callbacks, and the routes of /mqtt where a bus is given."""
    async with AsyncExitStack() as stack:

        async def start(callbacks: Callbacks | None = None, bus: Callable[[], Bus | None] | None = None) -> Site:
            options = HttpOptions(port=0)
            app = HttpApp(PetalMounts(options), options=options)
            if callbacks is not None:
                app.include(lambda: callback_router(callbacks))
            if bus is not None:
                shown = {"ts_client_host": "localhost", "ts_client_port": 3004, "enable_callbacks": True}
                app.include(lambda: mqtt_router(bus, configuration=shown, machine=lambda: "m1"))
            await asyncio.to_thread(app.build)
            server = Server(app, await tcp_listener(options.host, 0), options=options, calls=app.calls)
            await server.start()
            stack.push_async_callback(server.stop, timeout=1)
            site = Site(address_of(server.listener), server)
            stack.push_async_callback(site.client.aclose)
            return site

        yield start


def ingress(bus: Bus) -> Ingress:
    """The real one. It answers nobody here."""

    async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        return

    return Ingress(bus, replace(MqttOptions()), respond=respond)


async def stored(bus: Bus, topic: str = TOPIC) -> list[Any]:
    """The data of all records of a topic, in their order."""
    client = bus.subscribe(topic, start="oldest")
    count = await bus.call("XLEN", bus.keys.topic(topic))
    found: list[Any] = []
    async with client as records, asyncio.timeout(10):
        if count:
            async for record in records:
                found.append(record.data)
                if len(found) == count:
                    break
    return found


def outgoing(number: int, end: str = "response", **more: Any) -> Outgoing:
    """A message with a number."""
    return Outgoing(f"id-{end}-{number}", f"{BASE}/{end}", b'{"n":%d}' % number, **more)


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
