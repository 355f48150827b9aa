"""The vehicle proxy on the real stack: a bus on a real server, the MAVLink handler, a vehicle over UDP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import petalbus
from mavlink.peer import OnMessage, Peer, obedient
from petalbus.handlers.mavlink import MavlinkHandler
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.options import MavlinkOptions
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

from support.procs import Child, Children
from support.servers import RealServer

SIM = "petalbus.handlers.mavlink.sim"
QUICK = CommandTimes(answer=0.5, progress=1.0, whole=5.0, repeat=0.2, confirm=0.5, doubt=0.5)


class Rig:
    """A running handler, and what is connected to it."""

    def __init__(self, handler: MavlinkHandler, server: RealServer, bus_name: str, stack: AsyncExitStack) -> None:
        self.handler = handler
        self.server = server
        self.bus_name = bus_name
        self._stack = stack

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.handler.link.transport.local  # type: ignore[attr-defined]  # UDP's
        return address

    async def sim(self, children: Children, *arguments: str) -> Child:
        """A simulated vehicle, heard."""
        endpoint = f"udpout:127.0.0.1:{self.address[1]}"
        child = await children.module(SIM, "--endpoint", endpoint, "--journal", "-", *arguments)
        assert await self.handler.vehicle.wait_connected(15.0)
        return child

    async def scripted(self, on_message: OnMessage = obedient, **heartbeat: Any) -> Peer:
        """A vehicle that does what a function says, heard."""
        peer = await self._stack.enter_async_context(Peer(remote=self.address, on_message=on_message))
        peer.heartbeat(**heartbeat)
        assert await self.handler.vehicle.wait_connected(5.0)
        return peer

    async def proxy(self, *, ready: bool = True, **settings: Any) -> MavLinkExternalProxy:
        """A started proxy, ready unless told otherwise."""
        proxy = MavLinkExternalProxy(url=self.server.url, bus=self.bus_name, **settings)
        self._stack.push_async_callback(proxy.stop)
        await proxy.start()
        if ready:
            assert await proxy.wait_until_ready(10.0), proxy.reason
        return proxy


@asynccontextmanager
async def rig(server: RealServer, bus_name: str, *, times: CommandTimes = QUICK, **settings: Any) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(petalbus.connect(server.url, app="vehicle", bus=bus_name))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="pb-transfers-")))
        options = MavlinkOptions(times=times, transfers=folder, **settings)
        made = MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0", options=options)
        handler = await stack.enter_async_context(made)
        yield Rig(handler, server, bus_name, await stack.enter_async_context(AsyncExitStack()))


class Heard:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._news = asyncio.Event()

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)
        self._news.set()

    async def until(self, condition: Callable[[], Any], *, timeout: float = 10.0) -> Any:
        async with asyncio.timeout(timeout):
            while not (result := condition()):
                self._news.clear()
                await self._news.wait()
        return result

    async def some(self, number: int = 1, *, timeout: float = 10.0) -> list[Any]:
        await self.until(lambda: len(self.messages) >= number, timeout=timeout)
        return self.messages


async def commands(sim: Child, pattern: str) -> dict[str, Any]:
    """The next line of the simulated vehicle's journal with that in it."""
    entry: dict[str, Any] = json.loads(await sim.line(pattern))
    return entry
