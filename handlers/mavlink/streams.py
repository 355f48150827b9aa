"""Asks each vehicle for the messages that are needed and that it does not send by itself.

An ArduPilot whose link has no stream rates set sends heartbeats and little more. When a vehicle connects it is listened
to for a few seconds; what does not come is asked for, once in a connection: who sets other rates later is left alone.
What comes already, however often, is not touched, nor what is set to come and has nothing to say yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, MavlinkError
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Command, Target
from petalbus.handlers.mavlink.flight.listening import Listening
from petalbus.handlers.mavlink.flight.vehicle import AUTOPILOT_COMPONENT
from petalbus.handlers.mavlink.ingest import read_rates

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.fleet import Fleet, Unit
    from petalbus.handlers.mavlink.wire.calls import Calls
    from petalbus.handlers.mavlink.wire.framing import Frame

log = logging.getLogger(__name__)

MOST_HERTZ: Final = 100.0

_GET_INTERVAL: Final = 510
_SET_INTERVAL: Final = 511
_MESSAGE_INTERVAL: Final = 244
_TEMPORARILY_REJECTED: Final = 1
_UNSUPPORTED: Final = 3
_ANSWER_S: Final = 1.0
_REPORT_S: Final = 0.3
_CLOCKS: Final = frozenset((2, 30, 33))  # SYSTEM_TIME, ATTITUDE, GLOBAL_POSITION_INT: they tell time_boot_ms
_GROUPS: Final = {
    1: frozenset((27, 29, 26, 105, 116, 129)),
    2: frozenset((1, 24, 42, 62, 125, 152, 162)),
    3: frozenset((36, 65)),
    6: frozenset((32, 33)),
    10: frozenset((30, 163, 165, 178)),
    11: frozenset((74,)),
    12: frozenset((2, 147, 241, 136, 193)),
}
"""MAV_DATA_STREAM -> ids of messages that ArduPilot has in it, as far as somebody may wish for them."""

_GROUPED: Final = frozenset().union(*_GROUPS.values())


def read_streams(text: str) -> dict[str, float]:
    """``GLOBAL_POSITION_INT=4, ATTITUDE=10`` -> messages a second; ``off``: none. Raises ValueError."""
    if text.strip().lower() in ("", "off"):
        return {}
    wishes = {name: rate for name, rate in read_rates(text).items() if rate > 0}
    for name, rate in wishes.items():
        if rate > MOST_HERTZ:
            raise ValueError(f"{name}={rate:g}: at most {MOST_HERTZ:g} messages a second can be asked for")
    return wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """Seconds."""

    pauses: tuple[float, ...] = (3.0, 5.0, 15.0)
    """Before each round of asking: the first is for listening, the others come only where no answer came."""
    patience: float = 6.0
    """Without any of the streams that were there, until they count as ended."""
    look: float = 0.5
    """Between two looks at the vehicles."""


class _Watched:
    """One vehicle, and who is asking it."""

    def __init__(self, listening: Listening) -> None:
        self.listening = listening
        self.clock: Frame | None = None
        self.asking: asyncio.Task[None] | None = None
        self.asked: set[str] = set()
        self.refused: set[str] = set()


class Streams:
    """Looks after the vehicles of a fleet. ``on_frames`` must see every frame of the link."""

    def __init__(
        self, fleet: Fleet, calls: Calls, wishes: Mapping[str, float], *, times: StreamTimes | None = None
    ) -> None:
        """``wishes``: message -> messages a second. What the dialect does not know is left out, and logged."""
        self._fleet = fleet
        self._calls = calls
        self._times = times or StreamTimes()
        self._wishes: dict[int, float] = {}
        for name, hertz in wishes.items():
            msgid = int(name) if name.isdigit() else calls.dialect.ids.get(name)
            if msgid is None:
                log.warning("%s cannot be asked for: it is not in the dialect %r", name, calls.dialect.name)
            else:
                self._wishes[msgid] = hertz
        self._looked_at = _CLOCKS | _GROUPED | self._wishes.keys()
        self._watched: dict[int, _Watched] = {}

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Note what comes; most frames cost a set look-up."""
        if not self._watched:
            return
        now = asyncio.get_running_loop().time()
        for frame in frames:
            if frame.msgid in self._looked_at and frame.compid == AUTOPILOT_COMPONENT:
                watched = self._watched.get(frame.sysid)
                if watched is not None:
                    watched.listening.note(frame.msgid, now)
                    if frame.msgid in _CLOCKS:
                        watched.clock = frame

    async def run(self) -> None:
        """Look after them until cancelled; at once over where nothing is wished for."""
        try:
            while self._wishes:
                self._look()
                await asyncio.sleep(self._times.look)
        finally:
            tasks = [one.asking for one in self._watched.values() if one.asking is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def describe(self) -> dict[str, Any]:
        """For each vehicle what was asked for in this connection, and what it refused."""
        return {
            str(system): {"asked": sorted(one.asked), "refused": sorted(one.refused)}
            for system, one in self._watched.items()
        }

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        units = {unit.system: unit for unit in self._fleet.units if unit.system is not None}
        for gone in self._watched.keys() - units.keys():
            _end(self._watched.pop(gone))
        for system, unit in units.items():
            watched = self._watched.get(system)
            if watched is None:
                watched = self._watched[system] = _Watched(Listening(self._wishes, patience=self._times.patience))
            clock = watched.clock
            boot_ms = None if clock is None else int(self._calls.dialect.fields(clock)["time_boot_ms"])
            if watched.listening.begins(now, connected=unit.vehicle.connected, boot_ms=boot_ms):
                _end(watched)
                watched.asked.clear()
                watched.refused.clear()
                watched.asking = asyncio.create_task(self._ask(unit, watched), name=f"mavlink.streams.{system}")
                watched.asking.add_done_callback(_told)

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _ask(self, unit: Unit, watched: _Watched) -> None:
        """Listen, ask, and ask again where no answer came."""
        settled: set[int] = set()
        for pause in self._times.pauses:
            await asyncio.sleep(pause)
            groups: set[int] = set()
            for msgid in watched.listening.missing():
                if not unit.vehicle.connected:
                    return  # it is asked when it is back
                if msgid in settled or msgid in watched.listening.heard:
                    continue
                try:
                    if await self._ask_one(unit, watched, msgid, groups):
                        settled.add(msgid)
                except MavlinkError as error:
                    log.info("%s of vehicle %s: %s", self._name(msgid), unit.system, error)
            if settled.issuperset(watched.listening.missing()):
                return

    async def _ask_one(self, unit: Unit, watched: _Watched, msgid: int, groups: set[int]) -> bool:
        """Ask for one message; whether that is settled. ``groups``: those that were asked for in this round."""
        hertz, name = self._wishes[msgid], self._name(msgid)
        interval = await self._interval(unit, msgid)
        if 0 < interval <= 1.1e6 / hertz:
            return True  # it is set, and there is nothing to tell yet, such as a position
        result = await self._obey(unit, Command(_SET_INTERVAL, (msgid, 1e6 / hertz), answer=_ANSWER_S))
        if result == ACCEPTED:
            log.info("vehicle %s did not send %s; it was asked for %g a second", unit.system, name, hertz)
            watched.asked.add(name)
        elif result == _UNSUPPORTED and (group := _group_of(msgid)) is not None:
            return self._ask_group(unit, watched, group, groups)
        elif result != _TEMPORARILY_REJECTED:
            log.info("vehicle %s does not send %s, and refuses to (MAV_RESULT %d)", unit.system, name, result)
            watched.refused.add(name)
        return result != _TEMPORARILY_REJECTED

    async def _interval(self, unit: Unit, msgid: int) -> int:
        """What is set for a message, microseconds; 0 where that is not known."""
        assert unit.system is not None
        with self._calls.listen({_MESSAGE_INTERVAL}, unit.system, most=16) as inbox:
            try:
                await self._obey(unit, Command(_GET_INTERVAL, (msgid,), answer=_ANSWER_S))
            except CommandOutcomeUnknown:
                return 0
            # PX4 reports before it acknowledges, ArduPilot afterwards; who refused reports nothing
            while (frame := await inbox.get(_REPORT_S)) is not None:
                fields = self._calls.dialect.fields(frame)
                if fields["message_id"] == msgid:
                    return int(fields["interval_us"])
        return 0

    async def _obey(self, unit: Unit, command: Command) -> int:
        """The MAV_RESULT of a command. Raises NotConnected, CommandOutcomeUnknown."""
        assert unit.system is not None
        async with aclosing(unit.vehicle.client.run(command, Target(unit.system))) as acks:
            async for ack in acks:
                if ack.final:
                    return ack.result
        raise AssertionError("a command ended without a final acknowledgement")

    def _ask_group(self, unit: Unit, watched: _Watched, group: int, groups: set[int]) -> bool:
        """The old way: a group of messages at one rate. Where one of the group comes, its rate is left alone.

        Nothing acknowledges it, so it is settled only when it is heard, or when there is nothing more to be done.
        """
        assert unit.system is not None
        if group in groups:
            return False
        if _GROUPS[group] & watched.listening.heard.keys():
            return True
        groups.add(group)
        wished = [msgid for msgid in self._wishes if msgid in _GROUPS[group]]
        rate = math.ceil(max(self._wishes[msgid] for msgid in wished))
        self._calls.send(
            "REQUEST_DATA_STREAM",
            unit.system,
            target_system=unit.system,
            target_component=AUTOPILOT_COMPONENT,
            req_stream_id=group,
            req_message_rate=rate,
            start_stop=1,
        )
        watched.asked |= {self._name(msgid) for msgid in wished}
        return False

    def _name(self, msgid: int) -> str:
        return self._calls.dialect.names.get(msgid, str(msgid))


def _group_of(msgid: int) -> int | None:
    return next((group for group, ids in _GROUPS.items() if msgid in ids), None)


def _end(watched: _Watched) -> None:
    if watched.asking is not None:
        watched.asking.cancel()


def _told(task: asyncio.Task[None]) -> None:
    """Streams are a help; what goes wrong with them harms nothing else."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a vehicle could not be asked for its streams", exc_info=error)
