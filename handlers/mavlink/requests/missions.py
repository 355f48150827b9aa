"""Missions, fences and rally points, for other programs on the bus.

mavlink.mission.upload, .download, .clear, .count, .current

Items travel as JSON objects, see ``MissionItem.from_json``. ArduPilot's item 0 of a mission is its home: unless they
are asked to leave it in, uploads add it and downloads leave it out, so that items mean the same on every vehicle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from petalbus.handlers.mavlink.missions.client import MissionClient
from petalbus.handlers.mavlink.missions.items import MissionKind, items_from_json
from petalbus.handlers.mavlink.requests.replying import teller, told
from petalbus.handlers.mavlink.requests.wanted import Wanted, read_wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.flight.vehicle import Vehicle
    from petalbus.handlers.mavlink.wire.calls import Calls
    from petalbus.handlers.mavlink.wire.framing import Frame
    from petalbus.schemas.record import Record

_AT_ONCE = 2


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


class MissionRequests:
    """Answers them for one vehicle."""

    def __init__(self, calls: Calls, vehicle: Vehicle) -> None:
        self.client = MissionClient(calls, vehicle)

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """All frames: which item is flown, and which was reached."""
        progress = self.client.progress
        for frame in frames:
            if frame.msgid in progress.msgids:
                progress.on_frame(frame)

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``. What changes something is not run again after a crash."""
        for name, work in (("download", self._download), ("count", self._count)):
            bus.on(f"mavlink.mission.{name}", concurrency=_AT_ONCE)(told(work))
        for name, work in (("upload", self._upload), ("clear", self._clear), ("current", self._set_current)):
            bus.on(f"mavlink.mission.{name}", redelivery="report", concurrency=_AT_ONCE)(told(work))

    async def _upload(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(UploadMission, record.data)
        items = items_from_json(wanted.items, wanted.number)
        done = await self.client.upload(
            items,
            wanted.number,
            tell=teller(context),
            timeout=wanted.timeout,
            verify=wanted.verify,
            add_home=not wanted.home_is_first,
        )
        return {"kind": wanted.kind, "items": len(items), "verified": done.verified, "changed": list(done.changed)}

    async def _download(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(DownloadMission, record.data)
        items = await self.client.download(
            wanted.number, tell=teller(context), timeout=wanted.timeout, drop_home=not wanted.keep_home
        )
        return {"kind": wanted.kind, "items": [item.to_json() for item in items]}

    async def _clear(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OfAKind, record.data)
        await self.client.clear(wanted.number, timeout=wanted.timeout)
        return {"kind": wanted.kind}

    async def _count(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OfAKind, record.data)
        return {"kind": wanted.kind, "count": await self.client.count(wanted.number, timeout=wanted.timeout)}

    async def _set_current(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(SetCurrent, record.data)
        await self.client.set_current(wanted.seq, timeout=wanted.timeout)
        return {"current": wanted.seq}
