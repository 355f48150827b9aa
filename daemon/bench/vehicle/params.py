"""Bulk reading and setting of parameters over a bad wire, as a multiple of the best possible time.

A simulated vehicle in a task of its own, a real UDP link, and a seeded wire between them that loses and delays.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from petalbus.daemon.bench.stats import median
from petalbus.daemon.bench.vehicle.best import best_seconds
from petalbus.daemon.bench.vehicle.rig import flying
from petalbus.handlers.mavlink.params.transfer import Item, Limits, Transfer
from petalbus.handlers.mavlink.params.values import ParamType
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.param_sets import more_params

NUMBER: Final = 100
WINDOW: Final = 20
LIMITS: Final = Limits(window=WINDOW, resend=1.0, retries=200)
_TIMEOUT_S: Final = 300.0
_SIDE_BY_SIDE: Final = ((0.3, 10), (0.08, 4), (0.0, 1))
"""From so many seconds of round trip on so many runs go side by side: they wait most of the time."""


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
    together = next(number for trip, number in _SIDE_BY_SIDE if wire.trip >= trip)
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
    failures = Failures(loss=wire.loss, delay=wire.trip / 2)
    async with flying(failures=failures, seed=seed, more_params=NUMBER) as (ground, _):
        client, names = ground.params, [name for name, _, _ in more_params(NUMBER)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A value that its parameter cannot take, on one of the two autopilots."""

    autopilot: Autopilot
    name: str
    value: float
    kind: ParamType | None


_WRONG: Final = (
    Wrong(autopilot=PX4, name="MAV_TYPE", value=2.5, kind=ParamType.REAL32),  # refused by the vehicle
    Wrong(autopilot=PX4, name="MAV_TYPE", value=2.5, kind=None),  # does not fit the type that is known
    Wrong(autopilot=PX4, name="BAT1_N_CELLS", value=2.5, kind=None),  # does not fit the type that is asked for
    Wrong(autopilot=ARDUPILOT, name="RTL_ALT", value=2.5, kind=ParamType.REAL32),  # another value comes back
)


async def wrong_type_seconds() -> float:
    """Seconds until a value that does not fit is reported: the longest of all ways. Raises RuntimeError without one."""
    longest = 0.0
    for autopilot in (PX4, ARDUPILOT):
        async with flying(autopilot=autopilot) as (ground, _):
            for wrong in _WRONG:
                if wrong.autopilot is autopilot:
                    item = Item(wrong.name, value=wrong.value, kind=wrong.kind)
                    begun = time.monotonic()
                    transfer = await ground.params.write([item], limits=LIMITS, timeout=10.0)
                    longest = max(longest, time.monotonic() - begun)
                    if wrong.name not in transfer.refusals:
                        raise RuntimeError(f"{wrong} was not reported")
    return longest
