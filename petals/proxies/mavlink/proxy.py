"""MavLinkExternalProxy: the vehicle, for petals."""

from __future__ import annotations

import time
from typing import Any, Final

from petalbus.petals.proxies.mavlink.builders import Builders
from petalbus.petals.proxies.mavlink.logs import FlightLogs
from petalbus.petals.proxies.mavlink.parameters import Parameters
from petalbus.petals.proxies.mavlink.reboot import Upkeep
from petalbus.petals.proxies.mavlink.seen import LOST_AFTER_S
from petalbus.petals.proxies.mavlink.waiting import Waiting

APP: Final = "petal-app-manager"
_GCS, _NO_AUTOPILOT, _ACTIVE = 6, 8, 4


class MavLinkExternalProxy(Builders, Waiting, Parameters, Upkeep, FlightLogs):
    """Messages from the vehicle and to it, its parameters, its logs, and what is done to its autopilot.

    It is ready while the vehicle is heard. The link itself belongs to the MAVLink handler of the daemon; several
    proxies, in any number of processes, share it.
    """

    kind = "vehicle"

    def __init__(
        self,
        endpoint: str | None = None,
        baud: int = 115200,
        source_system_id: int = 2,
        source_component_id: int = 140,
        maxlen: int = 200,
        mavlink_worker_sleep_ms: float = 1.0,  # noqa: ARG002  # petals' own signature; nothing polls here
        mavlink_heartbeat_send_frequency: float = 5.0,
        root_sd_path: str = "fs/microsd/log",
        *,
        url: str | None = None,
        bus: str | None = None,
        app: str = APP,
        dialect: str = "all",
    ) -> None:
        """``endpoint``, ``baud`` and the heartbeat's frequency tell what the daemon's link is; they open nothing.

        ``maxlen``: messages that may wait for one handler. ``url`` and ``bus``: the bus; by default the running one is
        found. ``app``: as whom requests are made. ``dialect``: a pymavlink dialect, the link's own.
        """
        source = source_system_id, source_component_id
        super().__init__(maxlen, source=source, url=url, bus=bus, app=app, dialect=dialect)
        self.endpoint = endpoint
        self.baud = baud
        self.mavlink_heartbeat_send_frequency = mavlink_heartbeat_send_frequency
        self.root_sd_path = root_sd_path

    async def send_heartbeat(self) -> None:
        """Send one heartbeat beside those of the link. Raises RuntimeError without a vehicle."""
        self._require_connected()
        self.send("mav", self.master.mav.heartbeat_encode(_GCS, _NO_AUTOPILOT, 0, 0, _ACTIVE))

    async def health_check(self) -> dict[str, Any]:
        """State, the vehicle's last heartbeat (seconds), who is who, and counters."""
        silent = self._seen.silent_for(self._now())
        heard = silent != float("inf")
        return {
            **await super().health_check(),
            "connection": {"endpoint": self.endpoint or "", "baud": self.baud, "connected": self.connected},
            "px4_heartbeat": {
                "connected": self.connected,
                "last_received": time.time() - silent if heard else 0.0,
                "seconds_since_last": round(silent, 3) if heard else None,
                "timeout_threshold": LOST_AFTER_S,
            },
            "mavlink_info": {
                "target_system": self.target_system,
                "target_component": self.target_component,
                "source_system": self.source_system_id,
                "source_component": self.source_component_id,
            },
            "statistics": self.statistics(),
        }

    def statistics(self) -> dict[str, Any]:
        """Counters of what came, went, and was dropped, for each handler."""
        return {
            "frames": 0 if self._frames is None else self._frames.entries,
            "foreign": 0 if self._reader is None else self._reader.foreign,
            "outgoing": self._outgoing.statistics(),
            "handlers": self._handlers.statistics(),
        }
