"""Missions, fences and rally points of a vehicle: upload, download, clear, and which item it flies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.flight.commands import Ack, Command, Target
from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.missions.compare import compare
from petalbus.handlers.mavlink.missions.download import MOST_AT_ONCE, Download
from petalbus.handlers.mavlink.missions.items import MissionItem, MissionKind, check_items, with_home, without_home
from petalbus.handlers.mavlink.missions.list_ids import ListIds
from petalbus.handlers.mavlink.missions.talk import (
    ACCEPTED,
    ACK,
    COUNT,
    CURRENT,
    HEARD,
    MissionInterrupted,
    MissionRefused,
    MissionTimeout,
    Result,
    Talk,
    Tell,
)
from petalbus.handlers.mavlink.missions.trip import SteadyTrip
from petalbus.handlers.mavlink.missions.upload import Sent, Upload
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.dialect import Dialect
from petalbus.handlers.mavlink.wire.framing import Frame

__all__ = [
    "MissionBusy",
    "MissionClient",
    "MissionDiffers",
    "MissionInterrupted",
    "MissionProgress",
    "MissionRefused",
    "MissionTimeout",
    "Uploaded",
]

log = logging.getLogger(__name__)

_ITEM_REACHED: Final = 46
_DO_SET_MISSION_CURRENT: Final = 224
_UNSUPPORTED: Final = 3
_NOT_KNOWN: Final = 0xFFFF
_SET_AGAIN_S: Final = 0.5
_ID_BEFORE_S: Final = 3.0


class MissionBusy(MavlinkError):
    """Another exchange with this vehicle did not end in the time allowed; nothing was sent."""

    code = "MISSION_BUSY"


class MissionDiffers(MavlinkError):
    """The vehicle took the items, but has others now. ``differences`` says which, as text."""

    code = "MISSION_DIFFERS"

    def __init__(self, what: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        super().__init__(f"{what}: the vehicle accepted it, but has something else: {'; '.join(self.differences[:5])}")

    @property
    def detail(self) -> dict[str, Any]:
        """The differences."""
        return {"differences": list(self.differences)}


class Uploaded(NamedTuple):
    """An upload that the vehicle accepted."""

    sent: int
    """Items sent, ArduPilot's home among them."""
    list_id: int
    """MAVLink's opaque_id of the list; 0: the vehicle has none."""
    verified: str | None
    """"opaque_id" or "download": how it was made sure of; None: it was not."""
    changed: tuple[str, ...] = ()
    """What the vehicle keeps in another way, where that was looked at."""


class MissionProgress:
    """Which item is flown, and which was reached last; ``on_frame`` must see MISSION_CURRENT and MISSION_ITEM_REACHED.

    Numbers are as the vehicle counts. Times are monotonic seconds.
    """

    msgids = frozenset((CURRENT, _ITEM_REACHED))

    def __init__(self, dialect: Dialect, system: Callable[[], int | None]) -> None:
        """``system()`` is the vehicle's, None while there is none."""
        self._dialect = dialect
        self._system = system
        self.forget()

    def forget(self) -> None:
        """Know nothing again: another mission is there."""
        self.current: int | None = None
        self.current_at = 0.0
        self.total: int | None = None
        self.state = 0
        """MISSION_STATE: 0 not known, 1 no mission, 2 not started, 3 active, 4 paused, 5 complete."""
        self.reached: int | None = None
        self.reached_at = 0.0

    def on_frame(self, frame: Frame) -> None:
        """Look at one frame; others than these two are passed by."""
        if frame.msgid not in self.msgids or frame.compid != 1 or frame.sysid != self._system():
            return
        fields = self._dialect.fields(frame)
        if frame.msgid == _ITEM_REACHED:
            self.reached, self.reached_at = fields["seq"], time.monotonic()
            return
        self.current, self.current_at = fields["seq"], time.monotonic()
        self.total = fields.get("total") or None
        if self.total == _NOT_KNOWN:
            self.total = 0  # PX4 without a mission
        self.state = fields.get("mission_state", 0)

    def describe(self) -> dict[str, Any]:
        """For a person or a status record; ``current_age_s`` is the age of the last news."""
        age = None if self.current is None else round(time.monotonic() - self.current_at, 3)
        return {
            "current": self.current,
            "total": self.total,
            "state": self.state,
            "reached": self.reached,
            "current_age_s": age,
        }


class MissionClient:
    """Exchanges items with the vehicle that is heard; one exchange at a time.

    ``timeout`` is seconds without anything new, so that a large mission on a bad link is not cut off. All methods raise
    NotConnected, MissionBusy, MissionRefused, MissionTimeout and MissionInterrupted.
    """

    def __init__(self, calls: Calls, vehicle: Vehicle) -> None:
        self._calls = calls
        self._vehicle = vehicle
        self._free = asyncio.Lock()
        self._trip = SteadyTrip()
        self._trip_system = 0
        self._ids = ListIds()
        self.progress = MissionProgress(calls.dialect, lambda: vehicle.state.system if vehicle.state else None)

    async def upload(
        self,
        items: Sequence[MissionItem],
        kind: MissionKind = MissionKind.MISSION,
        *,
        tell: Tell | None = None,
        timeout: float = 10.0,
        verify: bool = True,
        add_home: bool = False,
    ) -> Uploaded:
        """Replace the vehicle's list by ``items``, numbered as the vehicle counts.

        On ArduPilot item 0 of a mission is home, whatever it says; ``add_home`` puts one in there (and only there), so
        that all items given are flown. ``verify`` makes sure that the vehicle has it: by the list's id where it has
        one, else by fetching it. Raises also MissionInvalid (nothing was sent) and MissionDiffers.
        """
        check_items(items, kind)
        autopilot = self._vehicle.heard_lately().autopilot
        own_first = kind is MissionKind.MISSION and autopilot == Autopilot.ARDUPILOT
        if add_home and own_first and items:
            items = with_home(items)
            check_items(items, kind)
        async with self._talk(kind, timeout) as talk:
            by_id = verify and await self._knows_id_before(talk, autopilot, timeout)
            self._ids.changing(kind)
            ahead = autopilot in (Autopilot.ARDUPILOT, Autopilot.PX4)
            sent = await Upload(talk, items, ahead=ahead, tell=tell, timeout=timeout).run()
            if kind is MissionKind.MISSION:
                self.progress.forget()
            if sent.accepted and not verify:
                return Uploaded(len(items), sent.list_id, None)
            return await self._verify(talk, items, sent, timeout, from_item=int(own_first), by_id=by_id)

    async def download(
        self,
        kind: MissionKind = MissionKind.MISSION,
        *,
        tell: Tell | None = None,
        timeout: float = 10.0,
        drop_home: bool = False,
    ) -> list[MissionItem]:
        """What the vehicle has. ``drop_home`` leaves out ArduPilot's item 0 of a mission, and numbers the rest anew."""
        ardupilot = self._vehicle.heard_lately().autopilot == Autopilot.ARDUPILOT
        async with self._talk(kind, timeout) as talk:
            items = await self._fetch(talk, timeout, tell)
        return without_home(items) if drop_home and ardupilot and kind is MissionKind.MISSION else items

    async def clear(self, kind: MissionKind = MissionKind.MISSION, *, timeout: float = 10.0) -> None:
        """Remove all items of a kind, and make sure of it."""
        what = f"removal of {kind.name.lower()} items"
        async with self._talk(kind, timeout) as talk:
            end = time.monotonic() + timeout
            self._ids.changing(kind)
            while True:
                await talk.ask(what, "MISSION_CLEAR_ALL", ACK, max(0.5, end - time.monotonic()))
                left, _ = await self._count(talk, timeout)
                # ArduPilot may keep its home; with any other the acknowledgement was of something earlier
                own = kind is MissionKind.MISSION and self._vehicle.heard_lately().autopilot == Autopilot.ARDUPILOT
                if left <= (1 if own else 0):
                    break
                if time.monotonic() >= end:
                    raise MissionTimeout(what, 0, left, timeout)
            if kind is MissionKind.MISSION:
                self.progress.forget()

    async def count(self, kind: MissionKind = MissionKind.MISSION, *, timeout: float = 10.0) -> int:
        """How many items the vehicle has (ArduPilot's home among them)."""
        async with self._talk(kind, timeout) as talk:
            return (await self._count(talk, timeout))[0]

    async def set_current(self, seq: int, *, timeout: float = 10.0) -> None:
        """Go on with this item, numbered as the vehicle counts.

        By command; to a vehicle that does not know it, by MISSION_SET_CURRENT, which has no refusal: it counts when
        MISSION_CURRENT says so. Raises also CommandOutcomeUnknown.
        """
        what = f"set the current item to {seq}"
        async with self._talk(MissionKind.MISSION, timeout) as talk:
            ack = await self._command(Command(_DO_SET_MISSION_CURRENT, (float(seq),), idempotent=True), talk.system)
            if ack.result not in (ACCEPTED, _UNSUPPORTED):
                raise MissionRefused(what, self._calls.dialect.enum_name("MAV_RESULT", ack.result))
            if ack.result == _UNSUPPORTED:
                await self._set_by_message(what, seq, talk.system, timeout)

    async def _command(self, command: Command, system: int) -> Ack:
        async with aclosing(self._vehicle.client.run(command, Target(system))) as acks:
            async for ack in acks:
                if ack.final:
                    return ack
        raise AssertionError("a command ended without a final acknowledgement")

    async def _set_by_message(self, what: str, seq: int, system: int, timeout: float) -> None:
        end = time.monotonic() + timeout
        total: int | None = None
        with self._calls.listen({CURRENT}, system) as inbox:
            while (now := time.monotonic()) < end:
                self._calls.send("MISSION_SET_CURRENT", system, target_system=system, target_component=1, seq=seq)
                until = min(end, now + _SET_AGAIN_S)
                while (frame := await inbox.get(until - time.monotonic())) is not None:
                    fields = self._calls.dialect.fields(frame)
                    total = fields.get("total") or total
                    if fields["seq"] == seq:
                        return
        raise MissionTimeout(f"{what} (is there such an item?)", 0, total, timeout)

    async def _knows_id_before(self, talk: Talk, autopilot: int, timeout: float) -> bool:
        """Whether the id of the list that the vehicle has now is known, so that another one says that it is gone.

        Where lists have ids it is asked for. Without an answer the upload goes on, and what is then there is
        fetched.
        """
        if not self._ids.knows_current(talk.kind) and (autopilot == Autopilot.PX4 or self._ids.used):
            with suppress(MissionRefused, MissionTimeout):
                await self._count(talk, min(timeout, _ID_BEFORE_S))
        return self._ids.knows_current(talk.kind)

    async def _verify(
        self,
        talk: Talk,
        items: Sequence[MissionItem],
        sent: Sent,
        timeout: float,
        *,
        from_item: int,
        by_id: bool,
    ) -> Uploaded:
        """Make sure of an upload; after a doubtful one this decides. ``by_id``: a new id is a proof."""
        what = f"upload of {len(items)} {talk.kind.name.lower()} items"
        if sent.accepted and sent.new_id and by_id:
            # an id that was known before may belong to a late acknowledgement of that earlier list
            total, list_id = await self._count(talk, timeout)
            if (total, list_id) == (len(items), sent.list_id):
                return Uploaded(len(items), list_id, "opaque_id")
        kept = await self._fetch(talk, timeout, None)
        compared = compare(items, kept, from_item=from_item, strictly=not sent.accepted)
        if compared.different and sent.accepted:
            raise MissionDiffers(what, compared.different)
        if compared.different:
            if sent.refusal is None:
                raise MissionTimeout(what, len(items), len(items), timeout)
            raise talk.refused(what, sent.refusal, done=len(items), total=len(items))
        if compared.changed:
            log.warning("vehicle %d keeps some items otherwise: %s", talk.system, "; ".join(compared.changed))
        return Uploaded(len(items), sent.list_id, "download", compared.changed)

    async def _fetch(self, talk: Talk, timeout: float, tell: Tell | None) -> list[MissionItem]:
        at_once = MOST_AT_ONCE if self._vehicle.heard_lately().autopilot == Autopilot.ARDUPILOT else 1
        items = await Download(talk, at_once=at_once, tell=tell, timeout=timeout).run()
        self._ids.counted(talk.kind)
        return items

    async def _count(self, talk: Talk, timeout: float) -> tuple[int, int]:
        """How many items there are, and the list's id."""
        try:
            heard = await talk.ask(f"count of {talk.kind.name.lower()} items", "MISSION_REQUEST_LIST", COUNT, timeout)
        finally:
            talk.end(Result.OPERATION_CANCELLED)
        self._ids.counted(talk.kind)
        return heard.fields["count"], heard.list_id

    @asynccontextmanager
    async def _talk(self, kind: MissionKind, timeout: float) -> AsyncIterator[Talk]:
        system = self._vehicle.heard_lately().system
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError:
            raise MissionBusy(
                f"another exchange of items with vehicle {system} is under way and did not end within {timeout:g} s"
            ) from None
        try:
            if system != self._trip_system:
                self._trip, self._ids, self._trip_system = SteadyTrip(), ListIds(), system
            with self._calls.listen(HEARD, system) as inbox:
                yield Talk(self._calls, inbox, system, kind, self._trip, self._ids)
        finally:
            self._free.release()
