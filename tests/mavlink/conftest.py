"""Fixtures for the MAVLink tests: a link with a vehicle behind it, over real UDP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mavlink.ground import Ground, flying
from mavlink.peer import OnMessage, Peer, obedient
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.sim.autopilot import Autopilot
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.wire.link import Link

SHORT = CommandTimes(answer=0.4, progress=0.6, whole=3.0, repeat=0.1, confirm=0.4, doubt=5.0)
"""Waiting times that keep the tests quick."""


class Station:
    """A link, the vehicle seen over it, and where it listens."""

    def __init__(self, link: Link, vehicle: Vehicle) -> None:
        self.link = link
        self.vehicle = vehicle

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.link.transport.local  # type: ignore[attr-defined]
        return address


@pytest.fixture
async def open_station() -> AsyncIterator[Callable[..., Any]]:
    """Opens stations: ``await open_station(times=..., target_system=...)``; closes them at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(endpoint: str = "udpin:127.0.0.1:0", **settings: Any) -> Station:
            times = settings.pop("times", SHORT)
            link = Link(endpoint, on_frames=lambda frames, _mono: vehicle.on_frames(frames))
            vehicle = Vehicle(
                lambda message, system: link.send(message, system=system), dialect=link.dialect, times=times, **settings
            )
            return Station(await stack.enter_async_context(link), vehicle)

        yield open_one


@pytest.fixture
async def open_peer() -> AsyncIterator[Callable[..., Any]]:
    """Opens peers: ``await open_peer(remote=..., on_message=...)``."""
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> Peer:
            return await stack.enter_async_context(Peer(**settings))

        yield open_one


@pytest.fixture
async def connected(open_station: Callable[..., Any], open_peer: Callable[..., Any]) -> Callable[..., Any]:
    """``station, peer = await connected(on_message=...)``: a station that has heard a vehicle, and the vehicle."""

    async def connect(
        *, on_message: OnMessage = obedient, heartbeat: dict[str, Any] | None = None, **settings: Any
    ) -> Any:
        station = await open_station(**settings)
        peer = await open_peer(remote=station.address, on_message=on_message)
        peer.heartbeat(**(heartbeat or {}))
        peer.position()
        assert await station.vehicle.wait_connected(5.0)
        return station, peer

    return connect


@pytest.fixture
async def open_ground() -> AsyncIterator[Callable[..., Any]]:
    """``ground, sim = await open_ground(PX4, Failures(...), seed=2)``; without an autopilot nobody is there."""
    async with AsyncExitStack() as stack:

        async def open_one(autopilot: Autopilot | None = None, *failures: Failures, **options: Any) -> Any:
            ground = Ground()
            await stack.enter_async_context(ground.link)
            if autopilot is None:
                return ground
            vehicle = await stack.enter_async_context(flying(ground, autopilot, *failures, **options))
            return ground, vehicle.sim

        yield open_one
