"""Tells everybody which vehicles are there: topic ``vehicle.state``, a record at each change and one now and then.

Who wants to know only that need not read the vehicles' frames for it. A record is about one vehicle. After records
about others always comes one about the primary vehicle: who looks only at the newest one sees that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mavlink.params.client import encoding_of

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mavlink.fleet import Fleet, Unit

log = logging.getLogger(__name__)

STATE_TOPIC: Final = "vehicle.state"
STATE_TYPE: Final = "vehicle.state"
ALIVE_EVERY_S: Final = 3.0
"""Between two records while a vehicle is heard and nothing changes."""

_AT_MOST_EVERY_S: Final = 0.2
_LOOK_EVERY_S: Final = 1.0
_REST_S: Final = 0.05
"""Between two looks: each position wakes us, and a vehicle may send hundreds a second."""


def primary_key(bus: Bus) -> str:
    """Where the system id of the primary vehicle is kept."""
    return f"{bus.keys.prefix}mavlink:primary"


async def kept_primary(bus: Bus) -> int | None:
    """The primary vehicle of before; None where there was none, or nobody can say."""
    try:
        told = await bus.ask("GET", primary_key(bus))
        return None if told is None else int(told)
    except (BusError, ServerError, ValueError) as error:
        log.warning("which vehicle was the primary one cannot be read: %s", error)
        return None


class StatePublisher:
    """Publishes the states of the vehicles. ``constant`` is told in each record beside them."""

    def __init__(
        self, bus: Bus, fleet: Fleet, *, constant: dict[str, Any], clock: Callable[[], float] | None = None
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._constant = constant
        self._clock = clock or asyncio.get_running_loop().time
        self._told: dict[Unit, tuple[dict[str, Any], float]] = {}
        self._tried_at = float("-inf")
        self._kept: int | None = None

    async def run(self) -> None:
        """Publish for ever. A bus that is away is told the states when it is back."""
        while True:
            due = self._due()
            if due:
                self._tried_at = self._clock()
                await self._tell(due)
            else:
                await self._fleet.changed(_LOOK_EVERY_S if self._fleet.heard else ALIVE_EVERY_S)
            await asyncio.sleep(max(_REST_S, self._tried_at + _AT_MOST_EVERY_S - self._clock()))

    async def say_gone(self) -> None:
        """The link is closed."""
        with suppress(TimeoutError):  # a bus that is away must not hold up the end
            async with asyncio.timeout(_LOOK_EVERY_S):
                for unit in reversed(self._fleet.units):
                    told, _ = self._told.get(unit, ({"connected": False}, 0.0))
                    if told["connected"]:
                        await self._publish({**told, "connected": False, "heard_s": None})

    def _now(self, unit: Unit) -> tuple[dict[str, Any], float | None]:
        """The state, and the age of the last heartbeat, which changes all the time."""
        state = unit.vehicle.describe()
        known = unit.vehicle.state
        state["encoding"] = None if known is None else encoding_of(known)
        state["primary"] = unit is self._fleet.primary
        return state, state.pop("heard_s", None)

    def _due(self) -> list[Unit]:
        """The vehicles of which something is to be told, the primary one last."""
        units = self._fleet.units
        for forgotten in self._told.keys() - set(units):
            del self._told[forgotten]
        due = [unit for unit in reversed(units) if self._is_due(unit)]
        if due and due[-1] is not self._fleet.primary:
            due.append(self._fleet.primary)
        return due

    def _is_due(self, unit: Unit) -> bool:
        state, _ = self._now(unit)
        told, at = self._told.get(unit, (None, 0.0))
        return state != told or (state["connected"] and self._clock() - at >= ALIVE_EVERY_S)

    async def _tell(self, units: Sequence[Unit]) -> None:
        for unit in units:
            state, heard = self._now(unit)
            if not await self._publish({**state, "heard_s": heard}):
                return
            self._told[unit] = state, self._clock()
        await self._keep_primary()

    async def _keep_primary(self) -> None:
        """A restart must not make another vehicle the one that is meant where nobody is named."""
        system = self._fleet.primary.system
        if system is None or system == self._kept:
            return
        try:
            await self._bus.ask("SET", primary_key(self._bus), system)
        except (BusError, ServerError) as error:
            log.info("which vehicle is the primary one cannot be kept: %s", error)
        else:
            self._kept = system

    async def _publish(self, state: dict[str, Any]) -> bool:
        try:
            await self._bus.publish(STATE_TOPIC, STATE_TYPE, {**state, **self._constant})
        except (BusError, ServerError) as error:
            log.info("the vehicle's state cannot be told: %s", error)
            return False
        return True
