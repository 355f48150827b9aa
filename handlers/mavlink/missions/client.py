"""Missions, fences and rally points of a vehicle: upload, download, clear, and which item it flies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.flight.commands import Ack, Command, Target
from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.missions.compare import compare
from petalbus.handlers.mavlink.missions.download import MOST_AT_ONCE, Download
from petalbus.handlers.mavlink.missions.items import (
    MissionItem,
    MissionKind,
    begun,
    check_items,
    with_home,
    without_home,
)
from petalbus.handlers.mavlink.missions.list_ids import ListIds
from petalbus.handlers.mavlink.missions.progress import MissionProgress
from petalbus.handlers.mavlink.missions.talk import (
    ACCEPTED,
    ACK,
    COUNT,
    CURRENT,
    HEARD,
    MissionFailed,
    MissionInterrupted,
    MissionRefused,
    MissionTimeout,
    Result,
    Talk,
    Tell,
    VehicleHas,
)
from petalbus.handlers.mavlink.missions.trip import SteadyTrip
from petalbus.handlers.mavlink.missions.upload import Sent, Upload
from petalbus.handlers.mavlink.missions.verdict import Verdict, listen
from petalbus.handlers.mavlink.wire.calls import Calls

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

_DO_SET_MISSION_CURRENT: Final = 224
_UNSUPPORTED: Final = 3
_SET_AGAIN_S: Final = 0.5
_ID_BEFORE_S: Final = 3.0
_CLEAR_AGAIN_S: Final = 1.5
_SAME_LIST: Final = "the vehicle had this very mission: its current item stays, which may be the last one"


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
    feasible: bool | None = None
    """False: PX4 says that it will not fly the mission that it has now, as things are. None: it did not say.

    After a fence, too: that may stand in the mission's way.
    """
    texts: tuple[str, ...] = ()
    """The warnings that came with that."""


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
        self._ended_at = float("-inf")
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
        that all items given are flown. PX4 begins a mission at the item marked ``current``, the first one if none is,
        also while it flies another one. ``verify`` makes sure that the vehicle has it: by the list's id where it has
        one, else by fetching it. Raises also MissionInvalid (nothing was sent) and MissionDiffers.
        """
        check_items(items, kind)
        autopilot = self._vehicle.heard_lately().autopilot
        own_first = kind is MissionKind.MISSION and autopilot == Autopilot.ARDUPILOT
        if add_home and own_first and items:
            items = with_home(items)
            check_items(items, kind)
        px4_mission = kind is MissionKind.MISSION and autopilot == Autopilot.PX4
        if px4_mission:
            items = begun(items)
        judged = verify and bool(items) and autopilot == Autopilot.PX4 and kind is not MissionKind.RALLY
        async with self._talk(kind, timeout) as talk, self._verdict(talk, wanted=judged) as verdict:
            by_id = await self._look_before(talk, items, autopilot, timeout, verify=verify)
            before = self._list_before(kind)
            self._ids.changing(kind)
            ahead = autopilot in (Autopilot.ARDUPILOT, Autopilot.PX4)
            sending = Upload(talk, items, ahead=ahead, tell=tell, timeout=timeout, on_last=verdict.begin)
            try:
                sent = await sending.run()
            except MissionFailed as error:
                _say_what_is_there(error, sending, kind, autopilot)
                raise
            taken_at, same = time.monotonic(), sent.list_id != 0 and sent.list_id == before
            if kind is MissionKind.MISSION and not same:
                self.progress.forget()
            if sent.accepted and not verify:
                done = Uploaded(len(items), sent.list_id, None)
            else:
                done = await self._verify(talk, items, sent, timeout, from_item=int(own_first), by_id=by_id)
            if kind is MissionKind.MISSION:
                told = _SAME_LIST if same else _begins_at(items) if px4_mission else None
                done = done._replace(changed=(*done.changed, told) if told else done.changed)
            return await self._judge(done, verdict, kind, taken_at) if judged else done

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
        """Remove all items of a kind, and make sure of it.

        Some versions of PX4 acknowledge that to the station that asked for a list before. So we ask for one first, and
        what is there afterwards decides.
        """
        what = f"removal of {kind.name.lower()} items"
        async with self._talk(kind, timeout) as talk:
            end = time.monotonic() + timeout
            left, _ = await self._count(talk, timeout)
            self._ids.changing(kind)
            while True:
                patience = min(_CLEAR_AGAIN_S, end - time.monotonic())
                with suppress(MissionTimeout):
                    await talk.ask(what, "MISSION_CLEAR_ALL", ACK, max(0.5, patience))
                left, _ = await self._count(talk, max(0.5, end - time.monotonic()))
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

    async def _look_before(
        self, talk: Talk, items: Sequence[MissionItem], autopilot: int, timeout: float, *, verify: bool
    ) -> bool:
        """Whether the id of the list that the vehicle has now is known, so that another one says that it is gone.

        Where lists have ids it is asked for, if the vehicle did not tell it by itself just now. Without an answer the
        upload goes on, and what is then there is fetched.

        Some versions of PX4 acknowledge an empty list to the station that asked for a list before; so we ask, too.
        """
        px4 = autopilot == Autopilot.PX4
        wanted = verify and not self._ids.knows_current(talk.kind) and (px4 or self._ids.used)
        if items and wanted and px4 and self._told_by_itself(talk.kind):
            self._ids.counted(talk.kind, self.progress.list_ids[talk.kind])
        elif wanted or (px4 and not items):
            with suppress(MissionRefused, MissionTimeout):
                await self._count(talk, min(timeout, _ID_BEFORE_S))
        return verify and self._ids.knows_current(talk.kind)

    def _told_by_itself(self, kind: MissionKind) -> bool:
        """MISSION_CURRENT said lately which list there is, or that there is no mission.

        Asking would do harm where an upload of before just began: PX4 then takes no other one for a long time.
        """
        ids = self._ids_told()
        return ids is not None and (any(ids) or (kind is MissionKind.MISSION and self.progress.total == 0))

    def _ids_told(self) -> tuple[int, int, int] | None:
        """The ids that MISSION_CURRENT said lately, and after our last exchange."""
        progress = self.progress
        fresh = progress.is_fresh(time.monotonic()) and progress.current_at > self._ended_at
        return progress.list_ids if fresh else None

    def _list_before(self, kind: MissionKind) -> int:
        """The id of the list that an upload replaces; 0: none, or not known."""
        ids = self._ids_told()
        return self._ids.current(kind) if ids is None else ids[kind]

    def _verdict(self, talk: Talk, *, wanted: bool) -> AbstractAsyncContextManager[Verdict]:
        return listen(self._calls, self._vehicle, talk.system, self.progress, wanted=wanted)

    async def _judge(self, done: Uploaded, verdict: Verdict, kind: MissionKind, taken_at: float) -> Uploaded:
        """Add what PX4 says of its mission, which is this one, or the one that this fence may stand in the way of."""
        own = done.list_id or self._ids.current(kind)
        mission = own if kind is MissionKind.MISSION else self.progress.list_ids[MissionKind.MISSION]
        feasible = await verdict.feasible(mission, taken_at, items=done.sent)
        return done._replace(feasible=feasible, texts=verdict.texts if feasible is False else ())

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
        try:
            kept = await self._fetch(talk, timeout, None)
        except MissionFailed as error:
            error.leaves(VehicleHas.UNKNOWN)
            raise
        state, strictly = self._vehicle.heard_lately(), not sent.accepted
        compared = compare(
            items, kept, from_item=from_item, strictly=strictly, autopilot=state.autopilot, vehicle=state.kind
        )
        if compared.different and sent.accepted:
            raise MissionDiffers(what, compared.different)
        if compared.different:
            failed: MissionFailed = MissionTimeout(what, len(items), len(items), timeout)
            if sent.refusal is not None:
                failed = talk.refused(what, sent.refusal, done=len(items), total=len(items))
            _say_what_is_there(failed, None, talk.kind, state.autopilot)
            raise failed
        if compared.changed:
            log.info("vehicle %d keeps some items otherwise: %s", talk.system, "; ".join(compared.changed))
        return Uploaded(len(items), sent.list_id, "download", compared.changed)

    async def _fetch(self, talk: Talk, timeout: float, tell: Tell | None) -> list[MissionItem]:
        at_once = MOST_AT_ONCE if self._vehicle.heard_lately().autopilot == Autopilot.ARDUPILOT else 1
        download = Download(talk, at_once=at_once, tell=tell, timeout=timeout)
        items = await download.run()
        self._ids.counted(talk.kind, download.list_id)
        return items

    async def _count(self, talk: Talk, timeout: float) -> tuple[int, int]:
        """How many items there are, and the list's id."""
        try:
            heard = await talk.ask(f"count of {talk.kind.name.lower()} items", "MISSION_REQUEST_LIST", COUNT, timeout)
        finally:
            talk.end(Result.OPERATION_CANCELLED)
        self._ids.counted(talk.kind, heard.list_id)
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
            self._ended_at = time.monotonic()
            self._free.release()


def _begins_at(items: Sequence[MissionItem]) -> str | None:
    """Where, when that is not the first item."""
    first = max((item.seq for item in items if item.current), default=0)
    return f"item {first} is marked current: the mission begins there, not at item 0" if first else None


def _say_what_is_there(error: MissionFailed, sending: Upload | None, kind: MissionKind, autopilot: int) -> None:
    """Where that is known. PX4 takes a list as a whole. ArduPilot takes missions and rally points item by item.

    Without ``sending`` all items were sent, and what is there is another list.
    """
    if sending is not None and sending.all_sent and not isinstance(error, MissionRefused):
        error.leaves(VehicleHas.UNKNOWN)
    elif autopilot == Autopilot.PX4 or (autopilot == Autopilot.ARDUPILOT and kind is MissionKind.FENCE):
        error.leaves(VehicleHas.OLD)
    elif autopilot == Autopilot.ARDUPILOT and (sending is None or sending.begun):
        error.leaves(VehicleHas.MIXED)
    elif autopilot == Autopilot.ARDUPILOT:
        # it shortens its list before it asks for the first item; what it refuses at once leaves the list alone
        error.leaves(VehicleHas.OLD if isinstance(error, MissionRefused) else VehicleHas.UNKNOWN)
