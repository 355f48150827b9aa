"""The commands that the daemon itself answers when the cloud sends them: ``get_status`` and ``restart``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from petalbus._version import __version__
from petalbus.handlers.mqtt.words import refusal

log = logging.getLogger(__name__)

_PAUSE_S: Final = 1.0
"""Between the answer and the restart, so that the answer may still leave. It is stored in any case."""

Vehicles = Callable[[], Sequence[Mapping[str, Any]] | None]
"""The vehicles as the MAVLink handler describes them; None where there may be some, and nothing is known of them."""


class BuiltIns:
    """``uptime()`` in seconds; ``restart()`` begins to stop, to be started again."""

    def __init__(self, *, uptime: Callable[[], float], vehicles: Vehicles, restart: Callable[[], None]) -> None:
        self._uptime = uptime
        self._vehicles = vehicles
        self._restart = restart

    @property
    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]]:
        """By name."""
        return {"get_status": self.get_status, "restart": self.restart}

    async def get_status(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        """Whether it works, for how long (seconds), which version, and the vehicle."""
        told = {"success": True, "status": "operational", "uptime": round(self._uptime(), 3), "version": __version__}
        if vehicles := self._vehicles():
            told["vehicle"] = {name: vehicles[0].get(name) for name in ("connected", "armed", "mode")}
        return told

    async def restart(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        """Restart the daemon, but not under a vehicle that may be flying."""
        if (refused := self._why_not()) is not None:
            return refused
        asyncio.get_running_loop().call_later(_PAUSE_S, self._restart_now)
        return {"success": True, "status": "restarting"}

    def _why_not(self) -> dict[str, Any] | None:
        vehicles = self._vehicles()
        if vehicles is None:
            text = "nothing is known of the vehicle, which may be flying: the bus is not restarted under it"
            return refusal(text, "VEHICLE_UNKNOWN")
        if any(vehicle.get("armed") for vehicle in vehicles):
            text = "a vehicle is armed: the bus is not restarted under it; disarm first"
            return refusal(text, "VEHICLE_ARMED")
        return None

    def _restart_now(self) -> None:
        if (refused := self._why_not()) is not None:
            log.warning("the restart that was ordered is given up: %s", refused["error"])
            return
        self._restart()
