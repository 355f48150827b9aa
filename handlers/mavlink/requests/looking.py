"""What may be asked of a vehicle without troubling it: how it is, and the latest of each of its messages.

mavlink.status -> the vehicle, its mode, the link     mavlink.latest -> messages, decoded
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from petalbus.handlers.mavlink.requests.replying import told
from petalbus.handlers.mavlink.requests.wanted import Wanted, read_wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.ingest import Latest
    from petalbus.schemas.record import Record

_SHOWN = ("SYS_STATUS", "BATTERY_STATUS", "GPS_RAW_INT", "GLOBAL_POSITION_INT", "LOCAL_POSITION_NED", "VFR_HUD")


class AskStatus(Wanted):
    """``mavlink.status``: nothing to say."""


class AskLatest(Wanted):
    """``mavlink.latest``: ``messages`` by name, all when none is named; of one ``system`` or of all."""

    messages: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=512, strict=False)] = ()
    system: Annotated[int, Field(ge=1, le=255)] | None = None


class Looking:
    """Answers them. ``statistics``: what the handler tells of itself."""

    def __init__(self, latest: Latest, statistics: Callable[[], dict[str, Any]]) -> None:
        self._latest = latest
        self._statistics = statistics

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        bus.on("mavlink.status", concurrency=None)(told(self._status))
        bus.on("mavlink.latest", concurrency=None)(told(self._tell_latest))

    async def _status(self, record: Record, _context: Context) -> dict[str, Any]:
        read_wanted(AskStatus, record.data)
        statistics = self._statistics()
        vehicle = statistics["vehicle"]
        system = vehicle["system"]
        latest = {} if system is None else self._latest.told(_SHOWN, system)
        messages = {key.rpartition("/")[2]: one["message"] for key, one in latest.items() if f"{system}/1/" in key}
        return {**statistics, "messages": messages}

    async def _tell_latest(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(AskLatest, record.data)
        return {"messages": self._latest.told(wanted.messages, wanted.system)}
