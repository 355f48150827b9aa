"""One vehicle as seen over a link: is it there, is it armed, and the procedures that make it arm, take off and land.

It knows nothing of the bus. ``on_frames`` must see every frame of the link; ``run`` carries out one order and tells
each step as an acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.commands import ACCEPTED, Ack, Command, CommandClient, CommandTimes, Target
from petalbus.handlers.mavlink.dialect import Dialect, MavMessage
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected, OrderOvertaken
from petalbus.handlers.mavlink.framing import Frame
from petalbus.handlers.mavlink.orders import Order, Verb

log = logging.getLogger(__name__)

LOST_AFTER_S: Final = 4.0
"""Without a heartbeat for so long (monotonic) a vehicle counts as gone. They come once a second."""

FAINT_AFTER_S: Final = 10.0
"""Until then a vehicle on a bad link may still be asked: what it does not answer harms nobody."""

_FORGET_AFTER_S: Final = 30.0
_POSITION_S: Final = 2.0
_POSITION_AGE_S: Final = 5.0

_HEARTBEAT: Final = 0
_GLOBAL_POSITION_INT: Final = 33
_COMMAND_ACK: Final = 77
_AUTOPILOT_VERSION: Final = 148
_EXTENDED_SYS_STATE: Final = 245
_WATCHED: Final = frozenset((_HEARTBEAT, _GLOBAL_POSITION_INT, _COMMAND_ACK, _AUTOPILOT_VERSION, _EXTENDED_SYS_STATE))

_AUTOPILOT_COMPONENT: Final = 1
_NO_AUTOPILOT: Final = 8
_CUSTOM_MODE: Final = 1
_ARMED_FLAG: Final = 128
_ARDUCOPTER_GUIDED: Final = 4
_IN_THE_AIR: Final = (2, 3, 4)
_FORCE: Final = 21196.0
_NAN: Final = float("nan")


class Autopilot(IntEnum):
    """MAV_AUTOPILOT, where it makes a difference."""

    ARDUPILOT = 3
    PX4 = 12


class Cmd(IntEnum):
    """MAV_CMD, as far as it is used here."""

    NAV_LAND = 21
    NAV_TAKEOFF = 22
    DO_SET_MODE = 176
    COMPONENT_ARM_DISARM = 400
    REQUEST_MESSAGE = 512


@dataclass(slots=True)
class VehicleState:
    """What the heartbeats say. ``heard`` is monotonic seconds."""

    system: int
    autopilot: int
    kind: int
    base_mode: int
    custom_mode: int
    heard: float
    quiet: float = 0.0
    """The longest time without a heartbeat, seconds, since somebody set it to 0."""
    landed_state: int = 0
    position: Frame | None = None
    """The last GLOBAL_POSITION_INT."""
    position_at: float = 0.0
    """When it came, monotonic seconds."""
    capabilities: int | None = None
    """MAV_PROTOCOL_CAPABILITY bits, once it told its AUTOPILOT_VERSION."""

    @property
    def armed(self) -> bool:
        """True while the motors may turn."""
        return bool(self.base_mode & _ARMED_FLAG)

    def believe_armed(self, *, armed: bool) -> None:
        """What an acknowledgement says already, up to a second before the next heartbeat does."""
        self.base_mode = self.base_mode | _ARMED_FLAG if armed else self.base_mode & ~_ARMED_FLAG


class Step(NamedTuple):
    """One acknowledgement on the way. ``last`` when it decides the order's outcome."""

    stage: str
    ack: Ack
    last: bool


Steps = AsyncGenerator[Step, None]
Check = Callable[[], None] | None


class Vehicle:
    """The vehicle at the other end: the first autopilot heard, or the one named."""

    def __init__(
        self,
        send: Callable[[MavMessage, int], int],
        *,
        dialect: Dialect,
        system: int = 2,
        component: int = 140,
        target_system: int | None = None,
        times: CommandTimes | None = None,
        lost_after: float = LOST_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``send(message, system)`` sends to a vehicle and returns to how many peers it left. ``system``/``component``
        is who we are, ``target_system`` whom we obey to command (default: the first autopilot heard).
        """
        self.client = CommandClient(send, dialect=dialect, system=system, component=component, times=times)
        self.state: VehicleState | None = None
        self.dialect = dialect
        self._target_system = target_system
        self._lost_after = lost_after
        self._clock = clock
        self._changed = asyncio.Event()
        self._down = 0  # counts orders to come down; a takeoff that one overtakes must not go on

    @property
    def connected(self) -> bool:
        """True when a heartbeat came lately."""
        return self.state is not None and self._clock() - self.state.heard < self._lost_after

    def heard_lately(self) -> VehicleState:
        """The vehicle, where a heartbeat came within ten seconds. Raises NotConnected."""
        state = self.state
        if state is None or self._clock() - state.heard >= FAINT_AFTER_S:
            raise NotConnected("no vehicle is heard on the MAVLink link; nothing was sent")
        return state

    async def wait_connected(self, timeout: float) -> bool:
        """Wait until a vehicle is there, at most ``timeout`` seconds; False when there is none."""
        try:
            async with asyncio.timeout(timeout):
                while not self.connected:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def changed(self, timeout: float) -> None:
        """Wait until a frame told something about the vehicle, ``timeout`` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                await self._changed.wait()

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Look at what came; almost all frames are none of its business and cost a set look-up."""
        for frame in frames:
            if frame.msgid in _WATCHED:
                self._on_watched(frame)

    def _on_watched(self, frame: Frame) -> None:
        if frame.msgid == _COMMAND_ACK:
            self.client.on_frame(frame)
        elif frame.compid != _AUTOPILOT_COMPONENT:
            return
        elif frame.msgid == _HEARTBEAT:
            self._on_heartbeat(frame)
        elif self.state is not None and frame.sysid == self.state.system:
            if frame.msgid == _GLOBAL_POSITION_INT:
                self.state.position = frame
                self.state.position_at = self._clock()
            elif frame.msgid == _AUTOPILOT_VERSION:
                self.state.capabilities = self.dialect.fields(frame)["capabilities"]
            else:
                self.state.landed_state = self.dialect.fields(frame)["landed_state"]
            self._wake()

    def _on_heartbeat(self, frame: Frame) -> None:
        fields = self.dialect.fields(frame)
        if fields["autopilot"] == _NO_AUTOPILOT or self._target_system not in (None, frame.sysid):
            return
        now = self._clock()
        state = self.state
        if state is None or state.system != frame.sysid:
            if state is not None and now - state.heard < _FORGET_AFTER_S:
                return  # another vehicle: commands must not change their target between two heartbeats
            log.info("vehicle %d: autopilot %d, type %d", frame.sysid, fields["autopilot"], fields["type"])
            state = self.state = VehicleState(frame.sysid, 0, 0, 0, 0, now)
        state.autopilot = fields["autopilot"]
        state.kind = fields["type"]
        state.base_mode = fields["base_mode"]
        state.custom_mode = fields["custom_mode"]
        state.quiet = max(state.quiet, now - state.heard)
        state.heard = now
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def run(self, order: Order) -> Steps:
        """Carry out ``order``; the last step decides it. Use it with ``contextlib.aclosing``.

        Raises NotConnected at once when no vehicle is there (an emergency stop is sent all the same to one that was
        there), CommandOutcomeUnknown when an answer stays away.
        """
        state = self.state
        if state is None:
            raise NotConnected("no vehicle was heard on the MAVLink link; nothing was sent")
        if not self.connected and not order.urgent:
            raise NotConnected(
                f"vehicle {state.system} was last heard {self._clock() - state.heard:.1f} s ago; nothing was sent. "
                "Check the link, or wait for its heartbeat"
            )
        if order.verb in (Verb.LAND, Verb.DISARM, Verb.EMERGENCY_STOP):
            self._down += 1
        async with aclosing(self._procedure(state, order)) as steps:
            async for step in steps:
                yield step

    def _procedure(self, state: VehicleState, order: Order) -> Steps:
        match order.verb:
            case Verb.ARM:
                return self._set_armed("arm", state, armed=True, last=True)
            case Verb.DISARM:
                return self._set_armed("disarm", state, armed=False, last=True)
            case Verb.TAKEOFF:
                assert order.altitude is not None
                return self._takeoff(state, order.altitude)
            case Verb.LAND:
                return self._do("land", Command(Cmd.NAV_LAND), state)
            case Verb.EMERGENCY_STOP:
                return self._stop(state)

    async def _do(
        self, stage: str, command: Command, state: VehicleState, *, last: bool = True, check: Check = None
    ) -> Steps:
        """One command; its refusal ends the order, its acceptance only when it is the last."""
        async with aclosing(self.client.run(command, Target(state.system), check=check)) as acks:
            async for ack in acks:
                yield Step(stage, ack, ack.final and (last or ack.result != ACCEPTED))

    async def _takeoff(self, state: VehicleState, altitude: float) -> Steps:
        stages: list[Steps] = []
        down = self._down

        def check() -> None:
            if self._down != down:
                raise OrderOvertaken("takeoff was given up half-way: an order to come down overtook it")

        if state.autopilot == Autopilot.ARDUPILOT:
            params = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, altitude)
            if state.custom_mode != _ARDUCOPTER_GUIDED:
                mode = Command(Cmd.DO_SET_MODE, (_CUSTOM_MODE, _ARDUCOPTER_GUIDED))
                stages.append(self._do("mode", mode, state, last=False, check=check))
        else:
            # everybody but ArduPilot takes the altitude above the sea here, and NaN for "where you are"
            params = (_NAN, 0.0, 0.0, _NAN, _NAN, _NAN, await self._ground(state) + altitude)
        if not state.armed:
            stages.append(self._set_armed("arm", state, armed=True, last=False, check=check))
        stages.append(self._do("takeoff", Command(Cmd.NAV_TAKEOFF, params), state, check=check))
        for stage in stages:
            async with aclosing(stage) as steps:
                async for step in steps:
                    yield step
                    if step.last:
                        return

    async def _set_armed(
        self, stage: str, state: VehicleState, *, armed: bool, last: bool, check: Check = None
    ) -> Steps:
        command = Command(Cmd.COMPONENT_ARM_DISARM, (1.0 if armed else 0.0,))
        async with aclosing(self._do(stage, command, state, last=last, check=check)) as steps:
            async for step in steps:
                if step.ack.doubtful and step.ack.result == ACCEPTED and not await self._becomes(state, armed=armed):
                    raise CommandOutcomeUnknown(
                        f"{stage}: an acknowledgement came, but it may belong to an earlier command that was never "
                        f"answered, and the vehicle did not report to be {'armed' if armed else 'disarmed'}"
                    )
                if step.ack.result == ACCEPTED:
                    state.believe_armed(armed=armed)
                yield step

    async def _becomes(self, state: VehicleState, *, armed: bool) -> bool:
        """Wait for a heartbeat that arrives from now on and says so."""
        since = state.heard
        try:
            async with asyncio.timeout(self.client.times.confirm):
                while state.heard == since or state.armed is not armed:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _stop(self, state: VehicleState) -> Steps:
        """Cut the motors, whatever happens. Repeating it does no harm, so it is repeated until it is answered.

        When an arm or disarm was under way, the first acknowledgement may be that one's: then a heartbeat that comes
        after an acceptance must say "disarmed" too.
        """
        command = Command(Cmd.COMPONENT_ARM_DISARM, (0.0, _FORCE), idempotent=True, urgent=True)
        accepted_at: float | None = None
        async with aclosing(self.client.run(command, Target(state.system))) as acks:
            async for ack in acks:
                if not ack.doubtful or not ack.final:
                    if ack.result == ACCEPTED:
                        state.believe_armed(armed=False)
                    yield Step("emergency_stop", ack, ack.final)
                elif ack.result == ACCEPTED:
                    if accepted_at is None:
                        accepted_at = self._clock()
                    elif state.heard > accepted_at and not state.armed:
                        yield Step("emergency_stop", ack._replace(doubtful=False), last=True)
                        return

    async def _ground(self, state: VehicleState) -> float:
        """The take-off place's altitude above the sea, in metres; asks the vehicle when it did not say yet."""
        if self._clock() - state.position_at > _POSITION_AGE_S:
            state.position = None
        if state.position is None:
            ask = Command(Cmd.REQUEST_MESSAGE, (_GLOBAL_POSITION_INT,), idempotent=True)
            async with aclosing(self.client.run(ask, Target(state.system))) as acks:
                async for _ in acks:
                    break
        try:
            async with asyncio.timeout(_POSITION_S):
                while state.position is None:
                    await self._changed.wait()
        except TimeoutError:
            raise NotConnected(
                f"vehicle {state.system} did not tell its position (GLOBAL_POSITION_INT), so the altitude to climb to "
                "is unknown; nothing was sent. Wait until it has a position"
            ) from None
        fields = self.dialect.fields(state.position)
        altitude: float = fields["alt"] / 1000
        above_home: float = fields["relative_alt"] / 1000
        return altitude - above_home if state.armed and state.landed_state in _IN_THE_AIR else altitude

    def describe(self) -> dict[str, Any]:
        """The vehicle for a person or a status record; ``heard_s`` is the age of the last heartbeat."""
        state = self.state
        if state is None:
            return {"connected": False, "system": None}
        return {
            "connected": self.connected,
            "system": state.system,
            "autopilot": self.dialect.enum_name("MAV_AUTOPILOT", state.autopilot),
            "type": self.dialect.enum_name("MAV_TYPE", state.kind),
            "armed": state.armed,
            "custom_mode": state.custom_mode,
            "landed_state": self.dialect.enum_name("MAV_LANDED_STATE", state.landed_state),
            "heard_s": round(self._clock() - state.heard, 3),
        }
