"""Our side of a link with all its clients, and simulated vehicles at the other end, over real UDP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.ftp_talk import FtpTimes
from petalbus.handlers.mavlink.files.logs import LogClient
from petalbus.handlers.mavlink.files.shell import Shell
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.missions.client import MissionClient
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.listing import ParamLister
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot
from petalbus.handlers.mavlink.sim.failures import PERFECT_WIRE, Failures
from petalbus.handlers.mavlink.sim.ftp import FtpServer
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

BOTH = pytest.mark.parametrize("autopilot", [PX4, ARDUPILOT], ids=["px4", "ardupilot"])
SYSTEM, COMPONENT = 2, 140  # ours
HEARD_SECONDS = 20.0


class Ground:
    """A link that listens, with everything above it, and the journal of the simulated vehicle."""

    def __init__(self) -> None:
        self.link = Link("udpin:127.0.0.1:0", on_frames=self._on_frames)
        self.vehicle = Vehicle(self._send, dialect=self.link.dialect)
        self.calls = Calls(
            self._send, self._send_payload, dialect=self.link.dialect, system=SYSTEM, component=COMPONENT
        )
        self.params = ParamClient(self._send_payload, self.vehicle, system=SYSTEM, component=COMPONENT)
        self.lister = ParamLister(self.params, self.ftp(), self.vehicle)
        self.missions = MissionClient(self.calls, self.vehicle)
        self.logs = LogClient(self.calls, self.vehicle)
        self.shell = Shell(self.calls, self.vehicle)
        self.journal: list[dict[str, Any]] = []
        self.flying: asyncio.Task[None] | None = None

    def ftp(self, **times: float) -> FtpClient:
        """A file client of its own."""
        return FtpClient(self.calls, self.vehicle, times=FtpTimes(**times))

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the simulated vehicle's journal has under that name."""
        return [entry for entry in self.journal if entry["event"] == name]

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        address: tuple[str, int] = self.link.transport.local  # type: ignore[attr-defined]  # UDP's
        return address

    def _send(self, message: Any, system: int) -> int:
        return self.link.send(message, system=system)

    def _send_payload(self, msgid: int, payload: bytes, system: int) -> int:
        return self.link.send_payload(msgid, payload, system=system)

    def _on_frames(self, frames: Sequence[Frame], _mono: int) -> None:
        self.vehicle.on_frames(frames)
        self.params.on_frames(frames)
        self.calls.on_frames(frames)
        for frame in frames:
            self.missions.progress.on_frame(frame)


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
async def flying(
    ground: Ground, autopilot: Autopilot = PX4, failures: Failures = PERFECT_WIRE, **options: Any
) -> AsyncIterator[Flying]:
    """A vehicle that is there, and heard, until the end of the block. ``options`` are those of SimOptions."""
    endpoint = f"udpout:127.0.0.1:{ground.address[1]}"
    chosen = SimOptions(endpoint=endpoint, autopilot=autopilot, failures=failures, **options)
    async with SimVehicle(chosen, journal=ground.journal.append) as sim:
        task = ground.flying = asyncio.create_task(sim.fly(), name="test.sim")
        try:
            before = ground.vehicle.state.heard if ground.vehicle.state is not None else 0.0
            async with asyncio.timeout(HEARD_SECONDS):
                while ground.vehicle.state is None or ground.vehicle.state.heard <= before:
                    assert not task.done(), f"the simulated vehicle ended: {task.exception()}"
                    await ground.vehicle.changed(0.5)
            yield Flying(sim, task)
        finally:
            await stop(task)


@asynccontextmanager
async def ftp_rig(
    autopilot: Autopilot = PX4, *, times: dict[str, float] | None = None, **failures: float
) -> AsyncIterator[tuple[FtpClient, Flying, Ground]]:
    """A file client, a vehicle, and the ground that connects them."""
    ground = Ground()
    async with ground.link, flying(ground, autopilot, Failures(**failures)) as vehicle:
        yield ground.ftp(**(times or {})), vehicle, ground


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.01)
