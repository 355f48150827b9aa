"""What the tests of missions share: a ground station with a simulated vehicle, and missions to exchange."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.missions.client import MissionClient
from petalbus.handlers.mavlink.missions.items import MissionItem, MissionKind
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.failures import PERFECT_WIRE, Failures
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.link import Link

MISSION, FENCE, RALLY = MissionKind.MISSION, MissionKind.FENCE, MissionKind.RALLY
BOTH = pytest.mark.parametrize("autopilot", [PX4, ARDUPILOT], ids=["px4", "ardupilot"])
PROTOCOL = frozenset((39, 40, 43, 44, 45, 47, 51, 73))


class Ground:
    """A link that listens, with everything above it that a mission client needs."""

    def __init__(self) -> None:
        self.link = Link("udpin:127.0.0.1:0", on_frames=self._on_frames)
        send, payload = self.link.send, self.link.send_payload
        self.vehicle = Vehicle(lambda message, system: send(message, system=system), dialect=self.link.dialect)
        self.sent: list[str] = []
        self.heard: list[int] = []
        self.calls = Calls(
            self._send,
            lambda msgid, data, system: payload(msgid, data, system=system),
            dialect=self.link.dialect,
            system=2,
            component=140,
        )
        self.missions = MissionClient(self.calls, self.vehicle)
        self.journal: list[dict[str, Any]] = []
        self.flying: asyncio.Task[None] | None = None

    def _send(self, message: Any, system: int) -> int:
        self.sent.append(message.get_type())
        return self.link.send(message, system=system)

    def _on_frames(self, frames: Any, _mono: int) -> None:
        self.vehicle.on_frames(frames)
        self.calls.on_frames(frames)
        for frame in frames:
            self.missions.progress.on_frame(frame)
            if frame.msgid in PROTOCOL:
                self.heard.append(frame.msgid)

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.link.transport.local  # type: ignore[attr-defined]
        return address


@asynccontextmanager
async def opener() -> AsyncIterator[Callable[..., Any]]:
    """``ground, sim = await open_ground(PX4, Failures(...), seed=...)``; without an autopilot nobody is there yet."""
    async with AsyncExitStack() as stack:

        async def open_one(autopilot: Any = None, failures: Failures = PERFECT_WIRE, seed: int = 1) -> Any:
            ground = Ground()
            await stack.enter_async_context(ground.link)
            if autopilot is None:
                return ground
            options = SimOptions(
                endpoint=f"udpout:127.0.0.1:{ground.address[1]}", autopilot=autopilot, failures=failures, seed=seed
            )
            sim = await stack.enter_async_context(SimVehicle(options, journal=ground.journal.append))
            ground.flying = asyncio.create_task(sim.fly())
            stack.push_async_callback(stop, ground.flying)
            assert await ground.vehicle.wait_connected(20.0)
            return ground, sim

        yield open_one


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.01)


def onboard(sim: SimVehicle) -> Missions:
    return next(service for service in sim.services if isinstance(service, Missions))


def mission(number: int, *, step: int = 100) -> list[MissionItem]:
    place = {"x": 473977430, "y": 85455943, "z": 15.0}
    items = [MissionItem(seq, 3, 16, param4=math.nan, **place) for seq in range(number)]  # type: ignore[arg-type]
    return [MissionItem(**{**item.fields(), "x": item.x + step * item.seq}) for item in items]


FENCE_ITEMS = [
    *(MissionItem(seq, 0, 5001, param1=3.0, x=470000000 + seq * seq, y=80000000 + seq) for seq in range(3)),
    MissionItem(3, 0, 5004, param1=25.0, x=471000000, y=81000000),
]
RALLY_ITEMS = [MissionItem(seq, 3, 5100, x=470000000 + seq, y=80000000, z=20.0) for seq in range(3)]
OF_KIND = {MISSION: mission(6), FENCE: FENCE_ITEMS, RALLY: RALLY_ITEMS}


def places(items: Sequence[MissionItem], first: int = 0) -> list[tuple[int, ...]]:
    return [(item.seq, item.command, item.x, item.y) for item in items[first:]]
