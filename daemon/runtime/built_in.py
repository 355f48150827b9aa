"""The commands that the daemon itself answers when the cloud sends them: ``get_status`` and ``restart``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from petalbus._version import __version__
from petalbus.handlers.mqtt.words import refusal

_PAUSE_S: Final = 1.0
"""Between the answer and the restart, so that the answer may still leave. It is stored in any case."""


class BuiltIns:
    """``uptime()`` in seconds, ``vehicle()`` as the MAVLink handler describes it, ``restart()`` begins to stop."""

    def __init__(
        self, *, uptime: Callable[[], float], vehicle: Callable[[], Mapping[str, Any]], restart: Callable[[], None]
    ) -> None:
        self._uptime = uptime
        self._vehicle = vehicle
        self._restart = restart

    @property
    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]]:
        """By name."""
        return {"get_status": self.get_status, "restart": self.restart}

    async def get_status(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        """Whether it works, for how long (seconds), which version, and the vehicle."""
        told = {"success": True, "status": "operational", "uptime": round(self._uptime(), 3), "version": __version__}
        vehicle = self._vehicle()
        if vehicle:
            told["vehicle"] = {name: vehicle.get(name) for name in ("connected", "armed", "mode")}
        return told

    async def restart(self, _message: Mapping[str, Any]) -> dict[str, Any]:
        """Restart the daemon, but not under a vehicle that may be flying."""
        vehicle = self._vehicle()
        if vehicle.get("armed"):
            text = "the vehicle is armed: the bus is not restarted under it; disarm first"
            return refusal(text, "VEHICLE_ARMED")
        asyncio.get_running_loop().call_later(_PAUSE_S, self._restart)
        return {"success": True, "status": "restarting"}
