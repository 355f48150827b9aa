"""Missions, fences and rally points, for other programs on the bus.

mavlink.mission.upload, .download, .clear, .count, .current

Items travel as JSON objects, see ``MissionItem.from_json``. ArduPilot's item 0 of a mission is its home: unless they
are asked to leave it in, uploads add it and downloads leave it out, so that items mean the same on every vehicle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from petalbus.handlers.mavlink.missions.items import MissionKind, items_from_json
from petalbus.handlers.mavlink.requests.replying import Desk, Job
from petalbus.handlers.mavlink.requests.wanted import Wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

_AT_ONCE: Final = 4
"""Of each kind, with one vehicle."""


class OfAKind(Wanted):
    """``mavlink.mission.clear`` and ``.count``. ``timeout``: seconds without anything new."""

    kind: Literal["mission", "fence", "rally"] = "mission"
    timeout: Annotated[float, Field(gt=0, le=120)] = 10.0

    @property
    def number(self) -> MissionKind:
        """The kind as MAVLink has it."""
        return MissionKind[self.kind.upper()]


class UploadMission(OfAKind):
    """``mavlink.mission.upload``. ``home_is_first``: on ArduPilot the first item is home already."""

    items: list[dict[str, Any]]
    home_is_first: bool = False
    verify: bool = True


class DownloadMission(OfAKind):
    """``mavlink.mission.download``. ``keep_home``: leave ArduPilot's home in."""

    keep_home: bool = False


class SetCurrent(Wanted):
    """``mavlink.mission.current``: go on with item ``seq``, as the vehicle counts (ArduPilot's home is 0)."""

    seq: Annotated[int, Field(ge=0, le=65535)]
    timeout: Annotated[float, Field(gt=0, le=120)] = 10.0


class MissionRequests(Desk):
    """Answers them."""

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``. What changes something is not run again after a crash."""
        lane = self.lane
        for name, handle in (
            ("download", self.answer(DownloadMission, _download, at_once=_AT_ONCE)),
            ("count", self.answer(OfAKind, _count, at_once=_AT_ONCE)),
        ):
            bus.on(f"mavlink.mission.{name}", concurrency=None, overtakes=lane)(handle)
        for name, handle in (
            ("upload", self.answer(UploadMission, _upload, at_once=_AT_ONCE)),
            ("clear", self.answer(OfAKind, _clear, at_once=_AT_ONCE)),
            ("current", self.answer(SetCurrent, _set_current, at_once=_AT_ONCE)),
        ):
            bus.on(f"mavlink.mission.{name}", redelivery="report", concurrency=None, overtakes=lane)(handle)


async def _upload(job: Job[UploadMission]) -> dict[str, Any]:
    wanted = job.wanted
    items = items_from_json(wanted.items, wanted.number)
    done = await job.unit.missions.upload(
        items,
        wanted.number,
        tell=job.tell,
        timeout=wanted.timeout,
        verify=wanted.verify,
        add_home=not wanted.home_is_first,
    )
    told = {"kind": wanted.kind, "items": len(items), "verified": done.verified, "changed": list(done.changed)}
    return told | {"feasible": done.feasible, "texts": list(done.texts)}


async def _download(job: Job[DownloadMission]) -> dict[str, Any]:
    wanted = job.wanted
    items = await job.unit.missions.download(
        wanted.number, tell=job.tell, timeout=wanted.timeout, drop_home=not wanted.keep_home
    )
    return {"kind": wanted.kind, "items": [item.to_json() for item in items]}


async def _clear(job: Job[OfAKind]) -> dict[str, Any]:
    await job.unit.missions.clear(job.wanted.number, timeout=job.wanted.timeout)
    return {"kind": job.wanted.kind}


async def _count(job: Job[OfAKind]) -> dict[str, Any]:
    wanted = job.wanted
    return {"kind": wanted.kind, "count": await job.unit.missions.count(wanted.number, timeout=wanted.timeout)}


async def _set_current(job: Job[SetCurrent]) -> dict[str, Any]:
    await job.unit.missions.set_current(job.wanted.seq, timeout=job.wanted.timeout)
    return {"current": job.wanted.seq}
