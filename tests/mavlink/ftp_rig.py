"""A file client on a link, and simulated vehicles at its other end, over real UDP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.ftp_talk import FtpTimes
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.ftp import FtpServer
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

AUTOPILOTS = {"px4": PX4, "ardupilot": ARDUPILOT}


class Ground:
    """Our side."""

    def __init__(self) -> None:
        self.link = Link("udpin:127.0.0.1:0", on_frames=self._on_frames)
        self.vehicle = Vehicle(self._send, dialect=self.link.dialect)
        self.calls = Calls(
            self._send,
            lambda msgid, payload, system: self.link.send_payload(msgid, payload, system=system),
            dialect=self.link.dialect,
            system=2,
            component=140,
        )

    def _send(self, message: Any, system: int) -> int:
        return self.link.send(message, system=system)

    def _on_frames(self, frames: list[Frame], _mono: int) -> None:
        self.vehicle.on_frames(frames)
        self.calls.on_frames(frames)

    def client(self, **times: float) -> FtpClient:
        return FtpClient(self.calls, self.vehicle, times=FtpTimes(**times))


class Flying:
    """The vehicle's side. ``log`` is the path of the largest of its files, ``data`` what is in it."""

    def __init__(self, sim: SimVehicle, task: asyncio.Task[None]) -> None:
        self.sim = sim
        self.task = task
        self.files = sim.disk.files
        self.server: FtpServer = next(service for service in sim.services if isinstance(service, FtpServer))
        self.log = sim.disk.logs[-1].path

    @property
    def data(self) -> bytes:
        return bytes(self.files[self.log])

    def put(self, path: str, data: bytes) -> bytes:
        self.files[path] = bytearray(data)
        return data


@asynccontextmanager
async def flying(ground: Ground, autopilot: Autopilot = PX4, **failures: float) -> AsyncIterator[Flying]:
    """A vehicle that is there until the end of the block."""
    port = ground.link.transport.local[1]  # type: ignore[attr-defined]
    options = SimOptions(endpoint=f"udpout:127.0.0.1:{port}", autopilot=autopilot, failures=Failures(**failures))
    async with SimVehicle(options) as sim:
        task = asyncio.create_task(sim.fly(), name="test.sim")
        try:
            before = ground.vehicle.state.heard if ground.vehicle.state is not None else 0.0
            async with asyncio.timeout(15):
                while ground.vehicle.state is None or ground.vehicle.state.heard <= before:
                    assert not task.done(), f"the simulated vehicle ended: {task.exception()}"
                    await ground.vehicle.changed(0.5)
            yield Flying(sim, task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def rig(
    autopilot: Autopilot = PX4, *, times: dict[str, float] | None = None, **failures: float
) -> AsyncIterator[tuple[FtpClient, Flying, Ground]]:
    """A client, a vehicle, and the ground that connects them."""
    ground = Ground()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(ground.link)
        vehicle = await stack.enter_async_context(flying(ground, autopilot, **failures))
        yield ground.client(**(times or {})), vehicle, ground
