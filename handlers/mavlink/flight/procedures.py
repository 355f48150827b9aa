"""How an order is carried out: the commands that it takes on this autopilot, one after the other.

Each acknowledgement is a step; the last one decides the order. Between two commands an opposite order may have come:
then the rest does not leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from enum import IntEnum
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.errors import (
    CommandOutcomeUnknown,
    NotConnected,
    OrderNotPossible,
    OrderOvertaken,
)
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Ack, Command, CommandClient, Target
from petalbus.handlers.mavlink.flight.modes import mode_numbers
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.flight.state import Autopilot, VehicleState
from petalbus.handlers.mavlink.wire.dialect import Dialect

_GLOBAL_POSITION_INT: Final = 33
_POSITION_S: Final = 2.0
_POSITION_AGE_S: Final = 5.0
_CUSTOM_MODE: Final = 1
_ARDUCOPTER_GUIDED: Final = 4
_ON_GROUND: Final = 1
_FORCE: Final = 21196.0
_NAN: Final = float("nan")
_CHANGE_MODE: Final = 1.0
_AS_IT_FLIES: Final = -1.0
_ABOVE_SEA: Final = 5
_ABOVE_HOME: Final = 6
_PERCENT: Final = 0.0

DOWN: Final = frozenset((Verb.LAND, Verb.RETURN, Verb.HOLD, Verb.DISARM, Verb.EMERGENCY_STOP))
"""Orders to come down or to stay; a takeoff or a goto that one overtakes must not go on."""

_DOWN_MODES: Final = frozenset(
    ("land", "return", "rtl", "smart_rtl", "auto_rtl", "qland", "qrtl", "precision_land", "hold", "brake")
)


class Cmd(IntEnum):
    """MAV_CMD, as far as it is used here."""

    NAV_RETURN_TO_LAUNCH = 20
    NAV_LAND = 21
    NAV_TAKEOFF = 22
    DO_SET_MODE = 176
    DO_REPOSITION = 192
    DO_MOTOR_TEST = 209
    ACTUATOR_TEST = 310
    COMPONENT_ARM_DISARM = 400
    REQUEST_MESSAGE = 512


class Step(NamedTuple):
    """One acknowledgement on the way. ``last`` when it decides the order's outcome."""

    stage: str
    ack: Ack
    last: bool


Steps = AsyncGenerator[Step, None]
Check = Callable[[], None] | None


class Procedures:
    """The orders of one vehicle. ``changed(seconds)`` waits until something new is known of it, at most so long."""

    def __init__(
        self,
        client: CommandClient,
        *,
        dialect: Dialect,
        changed: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._dialect = dialect
        self._changed = changed
        self._clock = clock
        self._down = 0  # counts orders to come down

    def run(self, order: Order, state: VehicleState, *, check: Check = None) -> Steps:
        """Carry out ``order``. ``check`` may raise just before each command leaves. Raises OrderNotPossible, and what
        the commands raise.
        """
        if is_down(order):
            self.note_down()
            return self._procedure(state, order, check)
        down = self._down

        def still_wanted() -> None:
            if self._down != down:
                raise OrderOvertaken(f"{order.verb} was given up: an order to come down or to stay overtook it")
            if order.verb is Verb.GOTO and not state.armed:
                raise OrderNotPossible("goto was not sent: the vehicle is not armed; order a takeoff first")
            if order.verb is Verb.MOTOR_TEST and state.armed:
                raise OrderNotPossible("motor_test was not sent: the vehicle is armed")
            if check is not None:
                check()

        return self._procedure(state, order, still_wanted)

    def note_down(self) -> None:
        """An order to come down was given, also past us: what has not left yet of earlier orders does not leave."""
        self._down += 1

    def _procedure(self, state: VehicleState, order: Order, check: Check) -> Steps:  # noqa: PLR0911  # one for each kind of order
        match order.verb:
            case Verb.ARM:
                return self._set_armed("arm", state, armed=True, last=True, check=check)
            case Verb.DISARM:
                return self._set_armed("disarm", state, armed=False, last=True, check=check)
            case Verb.TAKEOFF:
                assert order.altitude is not None
                return self._takeoff(state, order.altitude, check)
            case Verb.LAND:
                return self._do("land", Command(Cmd.NAV_LAND), state, check=check)
            case Verb.RETURN:
                return self._do("return", Command(Cmd.NAV_RETURN_TO_LAUNCH), state, check=check)
            case Verb.HOLD:
                return self._do("hold", self._mode(state, "hold"), state, check=check)
            case Verb.MODE:
                assert order.mode is not None
                return self._do("mode", self._mode(state, order.mode), state, check=check)
            case Verb.GOTO:
                return self._goto(state, order, check)
            case Verb.MOTOR_TEST:
                return self._do("motor_test", self._motor(state, order), state, check=check)
            case Verb.EMERGENCY_STOP:
                return self._stop(state)

    def _mode(self, state: VehicleState, name: str) -> Command:
        numbers = mode_numbers(name, state.autopilot, state.kind, self._dialect)
        return Command(Cmd.DO_SET_MODE, (_CUSTOM_MODE, *numbers))

    def _motor(self, state: VehicleState, order: Order) -> Command:
        """One motor. Never while it may fly: a test of a motor takes it away from the others."""
        if state.autopilot == Autopilot.ARDUPILOT:
            return Command(Cmd.DO_MOTOR_TEST, (float(order.motor), _PERCENT, order.throttle * 100.0, order.seconds))
        return Command(Cmd.ACTUATOR_TEST, (order.throttle, order.seconds, 0.0, 0.0, float(order.motor)))

    async def _goto(self, state: VehicleState, order: Order, check: Check) -> Steps:
        if check is not None:
            check()  # before anything is asked; once more before it leaves
        assert order.latitude is not None
        assert order.longitude is not None
        assert order.altitude is not None
        place = round(order.latitude * 1e7), round(order.longitude * 1e7)
        frame, height = _ABOVE_HOME, order.altitude
        if state.autopilot != Autopilot.ARDUPILOT:  # everybody else takes the altitude above the sea here
            frame, height = _ABOVE_SEA, await self._ground(state) + order.altitude
        speed = _AS_IT_FLIES if order.speed is None else order.speed
        command = Command(Cmd.DO_REPOSITION, (speed, _CHANGE_MODE, 0.0, _NAN, *place, height), frame=frame)
        async with aclosing(self._do("goto", command, state, check=check)) as steps:
            async for step in steps:
                yield step

    async def _do(
        self, stage: str, command: Command, state: VehicleState, *, last: bool = True, check: Check = None
    ) -> Steps:
        """One command; its refusal ends the order, its acceptance only when it is the last."""
        async with aclosing(self._client.run(command, Target(state.system), check=check)) as acks:
            async for ack in acks:
                yield Step(stage, ack, ack.final and (last or ack.result != ACCEPTED))

    async def _takeoff(self, state: VehicleState, altitude: float, check: Check) -> Steps:
        stages: list[Steps] = []
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
            async with asyncio.timeout(self._client.times.confirm):
                while state.heard == since or state.armed is not armed:
                    await self._changed(_POSITION_S)
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
        async with aclosing(self._client.run(command, Target(state.system))) as acks:
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
            async with aclosing(self._client.run(ask, Target(state.system))) as acks:
                async for _ in acks:
                    break
        try:
            async with asyncio.timeout(_POSITION_S):
                while state.position is None:
                    await self._changed(_POSITION_S)
        except TimeoutError:
            raise NotConnected(
                f"vehicle {state.system} did not tell its position (GLOBAL_POSITION_INT), so the altitude to climb to "
                "is unknown; nothing was sent. Wait until it has a position"
            ) from None
        fields = self._dialect.fields(state.position)
        altitude: float = fields["alt"] / 1000
        above_home: float = fields["relative_alt"] / 1000
        # on the ground the height above home may be that above yesterday's home; where nobody says that it stands
        # there, an armed vehicle may be in the air, and its own height must not count as ground
        return altitude if not state.armed or state.landed_state == _ON_GROUND else altitude - above_home


def is_down(order: Order) -> bool:
    """Whether an order makes the vehicle come down, or stay where it is."""
    mode = (order.mode or "").strip().lower().replace(" ", "_").replace("-", "_")
    return order.verb in DOWN or (order.verb is Verb.MODE and mode in _DOWN_MODES)
