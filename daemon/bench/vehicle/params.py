"""Bulk reading and setting of parameters over a bad wire, as a multiple of the best possible time.

A simulated vehicle in a task of its own, a real UDP link, and a seeded wire between them that loses and delays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from petalbus.daemon.bench.stats import median
from petalbus.daemon.bench.vehicle.best import best_seconds
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.transfer import Item, Limits, Transfer
from petalbus.handlers.mavlink.params.values import ParamType
from petalbus.handlers.mavlink.sim.autopilot import PX4
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.sim.param_sets import more_params
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

NUMBER: Final = 100
WINDOW: Final = 20
LIMITS: Final = Limits(window=WINDOW, resend=1.0, retries=200)
_TIMEOUT_S: Final = 300.0
_AT_ONCE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How bad it is: ``loss`` each way, ``trip`` seconds there and back."""

    loss: float
    trip: float

    @property
    def allowed(self) -> float:
        """The multiple of the best possible time that is the target."""
        return next(most for loss, most in ((0.1, 1.25), (0.2, 1.35), (0.3, 1.5), (1.0, 1.8)) if self.loss <= loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one operation came to. ``sends`` are messages for each parameter."""

    seconds: float
    answered: int
    sends: float


async def measure(wire: Wire, *, what: str, seeds: int) -> dict[str, float]:
    """Medians over the seeds: multiple of the best possible time, sends for each parameter, and the fewest answered."""
    together = max(1, min(seeds, round(wire.trip / _AT_ONCE_S * 2)))  # they wait most of the time
    outcomes: list[Outcome] = []
    for start in range(0, seeds, together):
        batch = range(start, min(seeds, start + together))
        outcomes += await asyncio.gather(*(_once(wire, what=what, seed=seed) for seed in batch))
    best = best_seconds(NUMBER, loss=wire.loss, window=WINDOW, trip=wire.trip)
    least = 1.0 / (1.0 - wire.loss) ** 2
    return {
        "times": median([one.seconds for one in outcomes]) / best,
        "sends": median([one.sends for one in outcomes]) / least,
        "answered": min(one.answered for one in outcomes),
    }


async def _once(wire: Wire, *, what: str, seed: int) -> Outcome:
    async with _vehicle(wire, seed=seed) as (client, names):
        await client.read(names[:WINDOW], limits=LIMITS, timeout=_TIMEOUT_S)  # the round trip is known from here on
        begun = time.monotonic()
        if what == "get":
            transfer = await client.read(names, limits=LIMITS, timeout=_TIMEOUT_S)
        else:
            items = [Item(name, value=float(seed + place), kind=ParamType.REAL32) for place, name in enumerate(names)]
            transfer = await client.write(items, limits=LIMITS, timeout=_TIMEOUT_S)
        return _outcome(transfer, time.monotonic() - begun)


def _outcome(transfer: Transfer, seconds: float) -> Outcome:
    return Outcome(seconds=seconds, answered=len(transfer.values), sends=transfer.sent / NUMBER)


@asynccontextmanager
async def _vehicle(wire: Wire, *, seed: int) -> AsyncIterator[tuple[ParamClient, list[str]]]:
    """A vehicle with parameters enough, heard over the wire."""

    def take(frames: list[Frame], _mono: int) -> None:
        vehicle.on_frames(frames)
        client.on_frames(frames)

    link = Link("udpin:127.0.0.1:0", on_frames=take)  # type: ignore[arg-type]  # a list is what it gives
    vehicle = Vehicle(lambda message, system: link.send(message, system=system), dialect=link.dialect)
    client = ParamClient(
        lambda msgid, payload, system: link.send_payload(msgid, payload, system=system),
        vehicle,
        system=2,
        component=140,
    )
    async with link:
        local: Any = link.transport
        failures = Failures(loss=wire.loss, delay=wire.trip / 2)
        options = SimOptions(
            endpoint=f"udpout:127.0.0.1:{local.local[1]}",
            autopilot=PX4,
            seed=seed,
            failures=failures,
            more_params=NUMBER,
        )
        async with SimVehicle(options) as simulated:
            names = [name for name, _, _ in more_params(NUMBER)]
            flying = asyncio.create_task(simulated.fly(), name="bench.vehicle")
            try:
                if not await vehicle.wait_connected(30.0):
                    raise RuntimeError("the simulated vehicle is not heard")
                yield client, names
            finally:
                flying.cancel()
                await asyncio.gather(flying, return_exceptions=True)
