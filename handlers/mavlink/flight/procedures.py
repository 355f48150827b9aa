"""How an order is carried out: the commands that it takes on this autopilot, one after the other.

Each acknowledgement is a step; the last one decides the order. Between two commands an opposite order may have come:
then the rest does not leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from petalbus.handlers.mavlink.errors import (
    CommandOutcomeUnknown,
    NotConnected,
    OrderInvalid,
    OrderNotPossible,
    OrderOvertaken,
)
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Command, CommandClient, Target
from petalbus.handlers.mavlink.flight.downs import Downs, Given
from petalbus.handlers.mavlink.flight.modes import (
    custom_mode_of,
    is_down_mode,
    is_plane,
    mode_numbers,
    plane_hold,
    plane_landing,
    repositions_at_speed,
    takes_off,
)
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.flight.state import Autopilot, VehicleState
from petalbus.handlers.mavlink.flight.steps import Check, Cmd, Step, Steps
from petalbus.handlers.mavlink.flight.stopping import Stopping
from petalbus.handlers.mavlink.wire.dialect import Dialect

__all__ = ["Check", "Cmd", "Procedures", "Step", "Steps"]

_GLOBAL_POSITION_INT: Final = 33
_POSITION_S: Final = 2.0
_POSITION_AGE_S: Final = 5.0
_CUSTOM_MODE: Final = 1
_ON_GROUND: Final = 1
_IN_AIR: Final = (2, 3, 4)
"""MAV_LANDED_STATE: in the air, taking off, landing."""

_LANDED_AGE_S: Final = 5.0
"""What was told of that longer ago counts as unknown."""

_PX4_TAKES_OFF_FROM: Final = (0, 4 << 16 | 2 << 24, 4 << 16 | 3 << 24)
"""PX4's takeoff and hold, in which it arms and waits; and 0, which is what it tells before it has a mode."""

_MODE_AGE_S: Final = 1.5
"""So long after an order that changes the mode a heartbeat may still tell the old one."""

_PATIENCE_S: Final = 1.0
"""How long an order to come down waits for an earlier command of its kind, which may never be answered."""

_PX4_TEST_S: Final = 3.0
_FENCE_S: Final = 0.3
"""PX4 says so within some milliseconds of its acknowledgement, on the same wire. Longer would slow who sends many."""

_FAILED: Final = 4
_NAN: Final = float("nan")
_CHANGE_MODE: Final = 1.0
_AS_IT_FLIES: Final = -1.0
_ABOVE_SEA: Final = 5
_ABOVE_HOME: Final = 6
_PERCENT: Final = 0.0
_AIRSPEED: Final = 0.0
_GROUND_SPEED: Final = 1.0

DOWN: Final = frozenset((Verb.LAND, Verb.RETURN, Verb.HOLD, Verb.DISARM, Verb.EMERGENCY_STOP))
"""Orders to come down or to stay; a takeoff or a goto that one overtakes must not go on."""


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
        self.downs = Downs(clock)
        self._stopping = Stopping(client, changed=changed, clock=clock)

    def run(self, order: Order, state: VehicleState, *, check: Check = None, given: Given | None = None) -> Steps:
        """Carry out ``order``. ``check`` may raise just before each command leaves; ``given``: see ``Downs``. Raises
        OrderNotPossible, OrderOvertaken, and what the commands raise.
        """
        if self._is_down(order, state):
            return self._procedure(state, order, self._down(order, check, given))
        overtaken = self.downs.since(given)

        def still_wanted() -> None:
            if overtaken():
                raise OrderOvertaken(f"{order.verb} was given up: an order to come down or to stay overtook it")
            if order.verb is Verb.GOTO and not state.armed:
                raise OrderNotPossible("goto was not sent: the vehicle is not armed; order a takeoff first")
            if order.verb is Verb.MOTOR_TEST and state.armed:
                raise OrderNotPossible("motor_test was not sent: the vehicle is armed")
            if check is not None:
                check()

        return self._procedure(state, order, still_wanted)

    def _down(self, order: Order, check: Check, given: Given | None) -> Check:
        """Note an order to come down; what it asks before it leaves. No other one ends a stop or a disarm."""
        self.downs.note(None if order.verb is Verb.EMERGENCY_STOP else given)
        if order.verb in (Verb.DISARM, Verb.EMERGENCY_STOP):
            return check
        leaving = self.downs.way(order.verb, given, lands=order.verb is Verb.LAND)

        def still_wanted() -> None:
            if check is not None:
                check()
            leaving()

        return still_wanted

    def note_test(self, number: int, params: Sequence[float]) -> None:
        """A motor test leaves, also past us: an emergency stop must end it."""
        self._stopping.note_test(number, params)

    def _is_down(self, order: Order, state: VehicleState) -> bool:
        """Whether an order makes the vehicle come down, or stay where it is."""
        if order.verb is not Verb.MODE or order.mode is None:
            return order.verb in DOWN
        try:
            numbers = mode_numbers(order.mode, state.autopilot, state.kind, self._dialect)
        except OrderInvalid:
            return False  # it is refused when it is carried out
        custom = custom_mode_of(state.autopilot, *numbers)
        return custom is not None and is_down_mode(state.autopilot, state.kind, custom, self._dialect)

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
                return self._land(state, check)
            case Verb.RETURN:
                home = Command(Cmd.NAV_RETURN_TO_LAUNCH, patience=_PATIENCE_S)
                return self._do("return", home, state, check=check)
            case Verb.HOLD:
                return self._change_mode("hold", self._holding(state), state, check)
            case Verb.MODE:
                assert order.mode is not None
                mode = self._mode(state, order.mode, patience=_PATIENCE_S if self._is_down(order, state) else None)
                return self._change_mode("mode", mode, state, check)
            case Verb.GOTO:
                return self._goto(state, order, check)
            case Verb.MOTOR_TEST:
                return self._test_motor(state, order, check)
            case Verb.EMERGENCY_STOP:
                return self._stopping.stop(state)

    def _mode(self, state: VehicleState, name: str, *, patience: float | None = None) -> Command:
        numbers = mode_numbers(name, state.autopilot, state.kind, self._dialect)
        return Command(Cmd.DO_SET_MODE, (_CUSTOM_MODE, *numbers), patience=patience)

    async def _change_mode(self, stage: str, command: Command, state: VehicleState, check: Check) -> Steps:
        """A change of mode as an order of its own. Where it did not wait for an earlier one, a heartbeat decides."""
        wanted = custom_mode_of(state.autopilot, *command.params[1:3])
        async with aclosing(self._do(stage, command, state, check=check)) as steps:
            async for step in steps:
                if step.ack.doubtful and command.patience is not None and step.ack.result == ACCEPTED:
                    await self._confirm(stage, state, lambda: state.custom_mode == wanted, "in that mode")
                yield step

    def _land(self, state: VehicleState, check: Check) -> Steps:
        if not is_plane(state.autopilot, state.kind):
            return self._do("land", Command(Cmd.NAV_LAND, patience=_PATIENCE_S), state, check=check)
        mode = plane_landing(state.kind, state.custom_mode)
        if mode is None:
            raise OrderNotPossible(
                "land was not sent: this is a fixed-wing ArduPlane, which cannot land where it is. Order return, or "
                "the mode autoland (from ArduPlane 4.7 on), or a mission that lands"
            )
        command = Command(Cmd.DO_SET_MODE, (_CUSTOM_MODE, mode, 0.0), patience=_PATIENCE_S)
        return self._change_mode("land", command, state, check)

    def _holding(self, state: VehicleState) -> Command:
        mode = plane_hold(state.custom_mode) if is_plane(state.autopilot, state.kind) else None
        if mode is None:
            return self._mode(state, "hold", patience=_PATIENCE_S)
        return Command(Cmd.DO_SET_MODE, (_CUSTOM_MODE, mode, 0.0), patience=_PATIENCE_S)

    def _test_motor(self, state: VehicleState, order: Order, check: Check) -> Steps:
        """One motor. Never while it may fly: a test of a motor takes it away from the others."""
        number: Cmd
        params: tuple[float, ...]
        if state.autopilot == Autopilot.ARDUPILOT:
            number, params = Cmd.DO_MOTOR_TEST, (float(order.motor), _PERCENT, order.throttle * 100.0, order.seconds)
        elif order.seconds > _PX4_TEST_S:
            raise OrderInvalid("parameters.seconds", f"is {order.seconds:g}", limit="0.1 to 3 (s) on PX4")
        else:
            number, params = Cmd.ACTUATOR_TEST, (order.throttle, order.seconds, 0.0, 0.0, float(order.motor))

        def leaving() -> None:
            if check is not None:
                check()
            self.note_test(number, params)

        return self._do("motor_test", Command(number, params), state, check=leaving)

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
        apart = order.speed is not None and not repositions_at_speed(state.autopilot, state.kind)
        asked = self._clock()
        async with aclosing(self._do("goto", command, state, last=not apart, check=check)) as steps:
            async for step in steps:
                yield await self._within_fence(step, state, asked) if step.last else step
                if step.last:
                    return
        if apart:
            async with aclosing(self._set_speed(state, speed, check)) as steps:
                async for step in steps:
                    yield step

    async def _within_fence(self, step: Step, state: VehicleState, asked: float) -> Step:
        """PX4 accepts a goto to beyond its geofence, and says a moment later that it does not go there."""
        if state.autopilot != Autopilot.PX4 or step.ack.result != ACCEPTED:
            return step
        end = self._clock() + _FENCE_S
        while state.outside_fence_at < asked and (left := end - self._clock()) > 0:
            await self._changed(left)
        if state.outside_fence_at < asked:
            return step
        return Step("fence", step.ack._replace(result=_FAILED), last=True)

    async def _set_speed(self, state: VehicleState, speed: float, check: Check) -> Steps:
        """ArduPilot's second command for a goto with a speed, in the mode to which the first one changed."""
        kind = _AIRSPEED if is_plane(state.autopilot, state.kind) else _GROUND_SPEED
        command = Command(Cmd.DO_CHANGE_SPEED, (kind, speed, -1.0))
        try:
            async with aclosing(self._do("speed", command, state, check=check)) as steps:
                async for step in steps:
                    yield step
        except CommandOutcomeUnknown as error:
            raise CommandOutcomeUnknown(
                f"the goto was accepted and is flown, perhaps not at its speed: {error}", sent=error.sent
            ) from error

    async def _do(
        self, stage: str, command: Command, state: VehicleState, *, last: bool = True, check: Check = None
    ) -> Steps:
        """One command; its refusal ends the order, its acceptance only when it is the last."""
        async with aclosing(self._client.run(command, Target(state.system), check=check)) as acks:
            async for ack in acks:
                yield Step(stage, ack, ack.final and (last or ack.result != ACCEPTED))

    async def _takeoff(self, state: VehicleState, altitude: float, check: Check) -> Steps:
        def first() -> None:
            self._check_takeoff(state)
            if check is not None:
                check()

        first()  # before anything is asked; once more before the first command leaves
        stages: list[tuple[str, Command | None]] = []
        # everybody but ArduPilot takes the altitude above the sea here, and NaN for "where you are"
        if state.autopilot == Autopilot.ARDUPILOT:
            params = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, altitude)
        else:
            params = (_NAN, 0.0, 0.0, _NAN, _NAN, _NAN, await self._ground(state) + altitude)
        mode = self._takeoff_mode(state)
        if mode is not None:
            stages.append(("mode", mode))
        if not state.armed:
            stages.append(("arm", None))
        stages.append(("takeoff", Command(Cmd.NAV_TAKEOFF, params)))
        for number, (name, command) in enumerate(stages):
            may = check if number else first
            if command is None:
                stage = self._set_armed(name, state, armed=True, last=False, check=may)
            else:
                stage = self._do(name, command, state, last=name == "takeoff", check=may)
            async with aclosing(stage) as steps:
                async for step in steps:
                    yield step
                    if step.last:
                        return

    def _check_takeoff(self, state: VehicleState) -> None:
        """Raises OrderNotPossible where the vehicle flies already, or is of a kind that takes no such order."""
        if not takes_off(state.autopilot, state.kind):
            raise OrderNotPossible(
                "takeoff was not sent: ArduPilot takes it for copters, and for planes that say in their heartbeat "
                "that they can hover (Q_MAV_TYPE). A fixed-wing plane takes off in a mission, or in the mode takeoff"
            )
        told = state.landed_state if self._clock() - state.landed_at < _LANDED_AGE_S else 0
        if state.armed and told in _IN_AIR:
            raise OrderNotPossible(
                "takeoff was not sent: the vehicle is in the air already; it would leave what it is about. "
                "Order a goto to fly to another height"
            )

    def _takeoff_mode(self, state: VehicleState) -> Command | None:
        """The change of mode that a takeoff needs first. ArduPilot takes off in guided only; PX4 does not arm in a mode
        to come down, and arms in a pilot's mode, in which it must not stand when the takeoff is refused.
        """
        stale = state.heard < self.downs.at + _MODE_AGE_S
        if state.autopilot == Autopilot.ARDUPILOT:
            guided = self._mode(state, "guided")
            return guided if stale or state.custom_mode != guided.params[1] else None
        if state.autopilot != Autopilot.PX4 or state.armed:
            return None
        return self._mode(state, "hold") if stale or state.custom_mode not in _PX4_TAKES_OFF_FROM else None

    async def _set_armed(
        self, stage: str, state: VehicleState, *, armed: bool, last: bool, check: Check = None
    ) -> Steps:
        patience = None if armed else _PATIENCE_S
        command = Command(Cmd.COMPONENT_ARM_DISARM, (1.0 if armed else 0.0,), patience=patience)
        async with aclosing(self._do(stage, command, state, last=last, check=check)) as steps:
            async for step in steps:
                if step.ack.doubtful and step.ack.result == ACCEPTED:
                    word = "armed" if armed else "disarmed"
                    await self._confirm(stage, state, lambda: state.armed is armed, word)
                if step.ack.result == ACCEPTED:
                    state.believe_armed(armed=armed)
                yield step

    async def _confirm(self, stage: str, state: VehicleState, is_so: Callable[[], bool], word: str) -> None:
        """Wait for a heartbeat that arrives from now on and says so. Raises CommandOutcomeUnknown."""
        since = state.heard
        try:
            async with asyncio.timeout(self._client.times.confirm):
                while state.heard == since or not is_so():
                    await self._changed(_POSITION_S)
        except TimeoutError:
            raise CommandOutcomeUnknown(
                f"{stage}: an acknowledgement came, but it may belong to an earlier command, and the vehicle did not "
                f"report to be {word}"
            ) from None

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
