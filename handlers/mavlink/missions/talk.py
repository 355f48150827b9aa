"""The ground's half of a mission exchange: what is heard of it, what is said, and when to say it again.

An acknowledgement carries neither a number nor the question that it answers. So a refusal counts only when the vehicle
does not go on all the same: it may be the answer to a repetition, or belong to an earlier exchange.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected
from petalbus.handlers.mavlink.missions.items import MissionKind
from petalbus.handlers.mavlink.missions.list_ids import ListIds
from petalbus.handlers.mavlink.missions.trip import SteadyTrip
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox
from petalbus.handlers.mavlink.wire.framing import Frame

ITEM: Final = 39
REQUEST: Final = 40
CURRENT: Final = 42
COUNT: Final = 44
ACK: Final = 47
REQUEST_INT: Final = 51
ITEM_INT: Final = 73
ACCEPTED: Final = 0
TELL_EVERY_S: Final = 0.2

_SYSTEM_TIME: Final = 2
_GLOBAL_POSITION_INT: Final = 33
_CLOCKS: Final = {_SYSTEM_TIME: 8, _GLOBAL_POSITION_INT: 0}
HEARD: Final = frozenset((ITEM, REQUEST, COUNT, ACK, REQUEST_INT, ITEM_INT, *_CLOCKS))
"""What a conversation listens to."""

_CLOCK_BACK_MS: Final = 1000
_ID_AT: Final = {COUNT: 5, ACK: 4}
_BUSY_S: Final = 9.0
_BUSY_AGAIN_S: Final = 0.3
_CONFIRM_PATIENCES: Final = 3.0

Tell = Callable[[int, int], Awaitable[None]]
"""Told now and then: items done, and of how many."""


class Result(IntEnum):
    """MAV_MISSION_RESULT, where it makes a difference."""

    ERROR = 1
    INVALID_SEQUENCE = 13
    DENIED = 14
    OPERATION_CANCELLED = 15


MAYBE: Final = frozenset((Result.ERROR, Result.INVALID_SEQUENCE, Result.DENIED))
"""Also said to repetitions, and by a vehicle that is busy."""


class VehicleHas(StrEnum):
    """What the vehicle has after an upload that failed."""

    OLD = "old"
    """Its list of before."""
    MIXED = "mixed"
    """New items up to some number, and old ones from there on."""
    UNKNOWN = "unknown"
    """One or the other."""


_HAS: Final = {
    VehicleHas.OLD: "The vehicle keeps the list that it had",
    VehicleHas.MIXED: "The vehicle has new items mixed with old ones now: upload anew, or clear, before it flies",
    VehicleHas.UNKNOWN: "What the vehicle has now is not known: upload anew, or look, before it flies",
}


class MissionFailed(MavlinkError):
    """An exchange failed. ``vehicle_has``: what is there now, where an upload failed and that is known."""

    vehicle_has: VehicleHas | None = None

    def leaves(self, has: VehicleHas) -> None:
        """Say so, also in the text."""
        if self.vehicle_has is None:
            self.vehicle_has = has
            self.args = (f"{self.args[0]}. {_HAS[has]}",)

    def _left(self) -> dict[str, Any]:
        return {} if self.vehicle_has is None else {"vehicle_has": self.vehicle_has.value}


class MissionTimeout(MissionFailed):
    """The vehicle went quiet. ``done`` of ``total`` items were exchanged (None: it never told how many)."""

    code = "MISSION_TIMEOUT"

    def __init__(self, what: str, done: int, total: int | None, timeout: float) -> None:
        self.done = done
        self.total = total
        super().__init__(
            f"{what}: {done} of {'?' if total is None else total} items were exchanged, then nothing new came for "
            f"{timeout:g} s. Check the link, then begin again"
        )

    @property
    def detail(self) -> dict[str, Any]:
        """How far it came."""
        return {"done": self.done, "total": self.total, **self._left()}


class MissionRefused(MissionFailed):
    """The vehicle refuses. ``result`` is the name of its MAV_MISSION_RESULT (or MAV_RESULT), ``done`` items came by."""

    code = "MISSION_REFUSED"

    def __init__(self, what: str, result: str, *, done: int = 0, total: int | None = None) -> None:
        self.result = result
        self.done = done
        self.total = total
        of = "" if total is None else f" after {done} of {total} items"
        super().__init__(f"{what}: the vehicle refuses{of} with {result}")

    @property
    def detail(self) -> dict[str, Any]:
        """The vehicle's word, and how far it came."""
        return {"result": self.result, "done": self.done, "total": self.total, **self._left()}


class MissionInterrupted(MissionFailed):
    """The vehicle started again, or its items changed, in the middle of an exchange; what came was thrown away."""

    code = "MISSION_INTERRUPTED"

    @property
    def detail(self) -> dict[str, Any]:
        """What the vehicle has, where that is known."""
        return self._left()


class Heard(NamedTuple):
    """A message of the exchange, for us. ``list_id``: MAVLink's opaque_id, 0 where there is none."""

    msgid: int
    fields: dict[str, Any]
    list_id: int
    new_id: bool
    """``list_id`` was never heard before of this vehicle."""

    @property
    def refusal(self) -> int | None:
        """The result of an acknowledgement that is none."""
        result = self.fields["type"] if self.msgid == ACK else ACCEPTED
        return None if result == ACCEPTED else result


class Refusal(NamedTuple):
    """A result that counts from ``until`` (monotonic seconds) on, if the vehicle does not go on before."""

    result: int
    until: float


class Talk:
    """One conversation with one vehicle about one kind of items."""

    def __init__(
        self, calls: Calls, inbox: Inbox, system: int, kind: MissionKind, trip: SteadyTrip, ids: ListIds
    ) -> None:
        """``inbox`` listens to ``HEARD``; ``trip`` and ``ids``: what is known of the way, and of its lists."""
        self.kind = kind
        self.system = system
        self.trip = trip
        self.repeated = False
        """Something had to be said twice."""
        self._calls = calls
        self._inbox = inbox
        self._ids = ids
        self._booted_ms: int | None = None
        self._spoke = False

    async def next(self, until: float) -> Heard | None:
        """The next message for us; None when none came until then. Raises MissionInterrupted after a reboot."""
        while True:
            frame = await self._inbox.get(until - time.monotonic())
            if frame is None:
                return None
            if frame.msgid in _CLOCKS:
                self._look_at_clock(frame)
                continue
            fields = self._calls.dialect.fields(frame)
            target = fields["target_system"], fields["target_component"]
            if self._calls.is_for_us(*target) and fields["mission_type"] == self.kind:
                list_id = _list_id(frame)
                return Heard(frame.msgid, fields, list_id, self._ids.hear(list_id))

    def send(self, name: str, **fields: Any) -> None:
        """Say something about this kind of items. Raises NotConnected when nothing ever left.

        Later on a wire that is full, or gone for a moment, has lost a message like any other.
        """
        fields = {"target_system": self.system, "target_component": 1, "mission_type": self.kind, **fields}
        with suppress(NotConnected) if self._spoke else nullcontext():
            self._calls.send(name, self.system, **fields)
            self._spoke = True

    def end(self, result: int = ACCEPTED) -> None:
        """Our acknowledgement; thrice on a bad link: PX4 does nothing else for 5 s when it misses it."""
        with suppress(NotConnected):
            for _ in range(3 if self.repeated else 1):
                self.send("MISSION_ACK", type=result)

    def patience(self) -> float:
        """Seconds within which an answer should come."""
        return self.trip.patience()

    def soon(self) -> float:
        """Seconds within which nothing that was heard can be the answer to what was just said."""
        return min(0.1, (self.trip.smooth or 0.0) / 2)

    def refusal(self, before: Refusal | None, result: int, grace: float) -> Refusal:
        """Take note of a refusal; one that says what is wrong is better than an earlier "error"."""
        now = time.monotonic()
        if result not in MAYBE:
            return Refusal(result, now + _CONFIRM_PATIENCES * self.patience())
        return before or Refusal(result, now + grace)

    def refused(self, what: str, refusal: Refusal, *, done: int = 0, total: int | None = None) -> MissionRefused:
        """The error for it."""
        name = self._calls.dialect.enum_name("MAV_MISSION_RESULT", refusal.result)
        return MissionRefused(what, name, done=done, total=total)

    async def ask(self, what: str, question: str, answer: int, timeout: float) -> Heard:
        """Say ``question`` until ``answer`` comes. Raises MissionRefused and MissionTimeout.

        A vehicle that is busy with somebody else is asked for some seconds.
        """
        began = now = time.monotonic()
        end = began + timeout
        due = began
        said_at: list[float] = []
        refusal: Refusal | None = None
        while now < end:
            if refusal is not None and now >= refusal.until:
                raise self.refused(what, refusal)
            if now >= due:
                self.send(question)
                said_at.append(now)
                self.repeated = self.repeated or len(said_at) > 1
                due = now + self.trip.pause(len(said_at))
            heard = await self.next(min(due, end, refusal.until if refusal else end))
            now = time.monotonic()
            if heard is None:
                continue
            if heard.refusal is not None:
                refusal = self.refusal(refusal, heard.refusal, min(_BUSY_S, timeout))
                due = max(due, now + _BUSY_AGAIN_S)
            elif heard.msgid == answer:
                self.trip.answered(said_at, now)
                return heard
        if refusal is not None:
            raise self.refused(what, refusal)
        raise MissionTimeout(what, 0, None, timeout)

    def _look_at_clock(self, frame: Frame) -> None:
        at = _CLOCKS[frame.msgid]
        ms = int.from_bytes(frame.payload[at : at + 4], "little")
        before = self._booted_ms
        if before is not None and ms < before - _CLOCK_BACK_MS:
            raise MissionInterrupted(
                f"vehicle {self.system} started again in the middle (its clock went from {before} to {ms} ms); what it "
                "now has is not known. Begin again"
            )
        self._booted_ms = max(ms, before or 0)


class Teller:
    """Tells how far it came, five times a second at most."""

    def __init__(self, tell: Tell | None, total: int) -> None:
        self._tell = tell
        self._total = total
        self._told_at = float("-inf")

    async def tell(self, done: int) -> None:
        """``done`` items are exchanged; all of them is always told."""
        now = time.monotonic()
        if self._tell is not None and (done == self._total or now - self._told_at >= TELL_EVERY_S):
            self._told_at = now
            await self._tell(done, self._total)


def _list_id(frame: Frame) -> int:
    """MISSION_COUNT's and MISSION_ACK's opaque_id, which is not in pymavlink's dialects yet."""
    at = _ID_AT.get(frame.msgid)
    return 0 if at is None else int.from_bytes(frame.payload[at : at + 4], "little")
