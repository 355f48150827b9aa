"""Tells everybody whether a vehicle is there: topic ``vehicle.state``, a record at each change and one now and then.

Who wants to know only that need not read the vehicle's frames for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mavlink.params.client import encoding_of

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mavlink.flight.vehicle import Vehicle

log = logging.getLogger(__name__)

STATE_TOPIC: Final = "vehicle.state"
STATE_TYPE: Final = "vehicle.state"
ALIVE_EVERY_S: Final = 3.0
"""Between two records while a vehicle is heard and nothing changes."""

_AT_MOST_EVERY_S: Final = 0.2
_LOOK_EVERY_S: Final = 1.0


class StatePublisher:
    """Publishes the state of a vehicle. ``constant`` is told in each record beside it."""

    def __init__(
        self, bus: Bus, vehicle: Vehicle, *, constant: dict[str, Any], clock: Callable[[], float] | None = None
    ) -> None:
        self._bus = bus
        self._vehicle = vehicle
        self._constant = constant
        self._clock = clock or asyncio.get_running_loop().time
        self._told: dict[str, Any] | None = None
        self._told_at = self._tried_at = float("-inf")

    async def run(self) -> None:
        """Publish for ever. A bus that is away is told the state when it is back."""
        while True:
            await self._tell_if_due()
            if self._now()[0] == self._told:
                await self._vehicle.changed(_LOOK_EVERY_S if self._vehicle.connected else ALIVE_EVERY_S)
            await asyncio.sleep(max(0.0, self._tried_at + _AT_MOST_EVERY_S - self._clock()))

    async def say_gone(self) -> None:
        """The link is closed."""
        if self._told is not None and self._told["connected"]:
            with suppress(TimeoutError):  # a bus that is away must not hold up the end
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._publish({**self._told, "connected": False, "heard_s": None})

    def _now(self) -> tuple[dict[str, Any], float | None]:
        """The state, and the age of the last heartbeat, which changes all the time."""
        state = self._vehicle.describe()
        known = self._vehicle.state
        state["encoding"] = None if known is None else encoding_of(known)
        return state, state.pop("heard_s", None)

    async def _tell_if_due(self) -> None:
        state, heard = self._now()
        alive = state["connected"] and self._clock() - self._told_at >= ALIVE_EVERY_S
        if state == self._told and not alive:
            return
        self._tried_at = self._clock()
        if await self._publish({**state, "heard_s": heard}):
            self._told, self._told_at = state, self._clock()

    async def _publish(self, state: dict[str, Any]) -> bool:
        try:
            await self._bus.publish(STATE_TOPIC, STATE_TYPE, {**state, **self._constant})
        except BusError as error:
            log.info("the vehicle's state cannot be told: %s", error)
            return False
        return True
