"""Our side of a link with its clients, and a simulated vehicle at the other end of a wire as bad as is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.logs import LogClient
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.listing import ParamLister
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.failures import PERFECT_WIRE, Failures
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

_SYSTEM = 2
_COMPONENT = 140
_HEARD_S = 30.0


class Ground:
    """A link that listens, and the clients on it."""

    def __init__(self) -> None:
        self.link = Link("udpin:127.0.0.1:0", on_frames=self._on_frames)
        self.vehicle = Vehicle(self._send, dialect=self.link.dialect)
        self.calls = Calls(
            self._send, self._send_payload, dialect=self.link.dialect, system=_SYSTEM, component=_COMPONENT
        )
        self.params = ParamClient(self._send_payload, self.vehicle, system=_SYSTEM, component=_COMPONENT)
        self.ftp = FtpClient(self.calls, self.vehicle)
        self.logs = LogClient(self.calls, self.vehicle)
        self.lister = ParamLister(self.params, self.ftp, self.vehicle)

    def _send(self, message: Any, system: int) -> int:
        return self.link.send(message, system=system)

    def _send_payload(self, msgid: int, payload: bytes, system: int) -> int:
        return self.link.send_payload(msgid, payload, system=system)

    def _on_frames(self, frames: Sequence[Frame], _mono_ns: int) -> None:
        self.vehicle.on_frames(frames)
        self.params.on_frames(frames)
        self.calls.on_frames(frames)


@asynccontextmanager
async def flying(
    *, autopilot: Autopilot = PX4, failures: Failures = PERFECT_WIRE, seed: int = 1, more_params: int = 0
) -> AsyncIterator[tuple[Ground, SimVehicle]]:
    """A vehicle that is heard. Raises RuntimeError when it is not."""
    ground = Ground()
    async with ground.link:
        local: Any = ground.link.transport
        options = SimOptions(
            endpoint=f"udpout:127.0.0.1:{local.local[1]}",
            autopilot=autopilot,
            seed=seed,
            failures=failures,
            more_params=more_params,
        )
        async with SimVehicle(options) as simulated, _live(simulated):
            if not await ground.vehicle.wait_connected(_HEARD_S):
                raise RuntimeError("the simulated vehicle is not heard")
            yield ground, simulated


@asynccontextmanager
async def _live(simulated: SimVehicle) -> AsyncIterator[None]:
    task = asyncio.create_task(simulated.fly(), name="bench.vehicle")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
