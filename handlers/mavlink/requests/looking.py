"""What may be asked of a vehicle without troubling it: how it is, and the latest of each of its messages.

mavlink.status -> the vehicle, its mode, the link     mavlink.latest -> messages, decoded
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from petalbus.daemon.bus.errors import HandlerError
from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.requests.wanted import Wanted, read_wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mavlink.fleet import Fleet
    from petalbus.handlers.mavlink.ingest import Latest
    from petalbus.schemas.record import Record

_SHOWN = ("SYS_STATUS", "BATTERY_STATUS", "GPS_RAW_INT", "GLOBAL_POSITION_INT", "LOCAL_POSITION_NED", "VFR_HUD")


class AskStatus(Wanted):
    """``mavlink.status``: of one ``system``, else of the primary vehicle; all are listed either way."""


class AskLatest(Wanted):
    """``mavlink.latest``: ``messages`` by name, all when none is named; of one ``system``, or of all.
    (A system that is no vehicle may be named too.)
    """

    messages: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=512, strict=False)] = ()


class Looking:
    """Answers them. ``statistics``: what the handler tells of itself; ``fleet``: its vehicles."""

    def __init__(self, latest: Latest, fleet: Fleet, statistics: Callable[[], dict[str, Any]]) -> None:
        self._latest = latest
        self._fleet = fleet
        self._statistics = statistics

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        bus.on("mavlink.status", concurrency=None)(self._status)
        bus.on("mavlink.latest", concurrency=None)(self._tell_latest)

    async def _status(self, record: Record) -> dict[str, Any]:
        try:
            system = read_wanted(AskStatus, record.data).system
            unit = self._fleet.primary if system is None else self._fleet.unit(system)
        except MavlinkError as error:
            raise HandlerError(str(error), error_code=error.code, data=error.detail) from error
        told = self._statistics()
        told["vehicles"] = [{**one, "messages": self._messages(one["system"])} for one in told["vehicles"]]
        told |= {"vehicle": unit.vehicle.describe(), "mission": unit.missions.progress.describe()}
        return {**told, "system": unit.system, "messages": self._messages(unit.system)}

    def _messages(self, system: int | None) -> dict[str, Any]:
        """The latest of the vehicle's messages that a person wants to see."""
        latest = {} if system is None else self._latest.told(_SHOWN, system)
        return {key.rpartition("/")[2]: one["message"] for key, one in latest.items() if f"{system}/1/" in key}

    async def _tell_latest(self, record: Record) -> dict[str, Any]:
        try:
            wanted = read_wanted(AskLatest, record.data)
        except MavlinkError as error:
            raise HandlerError(str(error), error_code=error.code, data=error.detail) from error
        return {"messages": self._latest.told(wanted.messages, wanted.system)}
