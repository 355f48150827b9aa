"""One vehicle as seen over a link: is it there, is it armed, and the procedures that make it arm, take off and land.

It knows nothing of the bus. ``on_frames`` must see every frame of the link, or ``on_frame`` those of this vehicle;
``run`` carries out one order and tells each step as an acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

from petalbus.handlers.mavlink.errors import NotConnected, OrderOvertaken
from petalbus.handlers.mavlink.flight.commands import CommandClient, CommandTimes
from petalbus.handlers.mavlink.flight.downs import Given
from petalbus.handlers.mavlink.flight.modes import custom_mode_of, is_down_mode, mode_name
from petalbus.handlers.mavlink.flight.orders import Order
from petalbus.handlers.mavlink.flight.procedures import Procedures
from petalbus.handlers.mavlink.flight.state import VehicleState
from petalbus.handlers.mavlink.flight.steps import FORCE, Check, Cmd, Steps
from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage
from petalbus.handlers.mavlink.wire.framing import Frame

log = logging.getLogger(__name__)

LOST_AFTER_S: Final = 4.0
"""Without a heartbeat for so long (monotonic) a vehicle counts as gone. They come once a second."""

FAINT_AFTER_S: Final = 10.0
"""Until then a vehicle on a bad link may still be asked: what it does not answer harms nobody."""

FORGET_AFTER_S: Final = 30.0
"""After so long without a heartbeat another vehicle may take its place."""

_HEARTBEAT: Final = 0
_GLOBAL_POSITION_INT: Final = 33
_COMMAND_ACK: Final = 77
_AUTOPILOT_VERSION: Final = 148
_EXTENDED_SYS_STATE: Final = 245
_STATUSTEXT: Final = 253
WATCHED: Final = frozenset(
    (_HEARTBEAT, _GLOBAL_POSITION_INT, _COMMAND_ACK, _AUTOPILOT_VERSION, _EXTENDED_SYS_STATE, _STATUSTEXT)
)
"""The ids of the messages that ``on_frame`` looks at."""

_OUTSIDE_FENCE: Final = "Reposition is outside geofence"
"""PX4's words, some milliseconds after it accepted to go there."""

_ALWAYS_DOWN: Final = frozenset(
    (Cmd.NAV_LOITER_UNLIM, Cmd.NAV_RETURN_TO_LAUNCH, Cmd.NAV_LAND, Cmd.NAV_VTOL_LAND, Cmd.DO_FLIGHTTERMINATION)
)
_DOWN_WITH_0: Final = frozenset((Cmd.COMPONENT_ARM_DISARM, Cmd.DO_PAUSE_CONTINUE))
"""MAV_CMD numbers that are orders to come down or to stay: always, and where the first parameter is 0."""

_LANDS: Final = frozenset((Cmd.NAV_LAND, Cmd.NAV_VTOL_LAND))
_TESTS: Final = frozenset((Cmd.DO_MOTOR_TEST, Cmd.ACTUATOR_TEST))
_HARMLESS: Final = frozenset((*range(500, 600), 1000, 1001, *range(2000, 2600)))
"""MAV_CMD numbers that ask for messages, or work cameras and gimbals: an order to come down does not end them."""

AUTOPILOT_COMPONENT: Final = 1
NO_AUTOPILOT: Final = 8


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
        self._procedures = Procedures(self.client, dialect=dialect, changed=self.changed, clock=clock)

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
            if frame.msgid in WATCHED:
                self.on_frame(frame)

    def on_frame(self, frame: Frame) -> None:
        """Look at one frame of those in ``WATCHED``."""
        if frame.msgid == _COMMAND_ACK:
            self.client.on_frame(frame)
        elif frame.compid != AUTOPILOT_COMPONENT:
            return
        elif frame.msgid == _HEARTBEAT:
            self._on_heartbeat(frame)
        elif self.state is not None and frame.sysid == self.state.system and self.dialect.definition(frame.msgid):
            if frame.msgid == _GLOBAL_POSITION_INT:
                self.state.position = frame
                self.state.position_at = self._clock()
            elif frame.msgid == _AUTOPILOT_VERSION:
                self.state.capabilities = self.dialect.fields(frame)["capabilities"]
            elif frame.msgid == _STATUSTEXT:
                if not str(self.dialect.fields(frame)["text"]).startswith(_OUTSIDE_FENCE):
                    return
                self.state.outside_fence_at = self._clock()
            else:
                self.state.landed_state = self.dialect.fields(frame)["landed_state"]
                self.state.landed_at = self._clock()
            self._wake()

    def _on_heartbeat(self, frame: Frame) -> None:
        fields = self.dialect.fields(frame)
        if fields["autopilot"] == NO_AUTOPILOT or self._target_system not in (None, frame.sysid):
            return
        now = self._clock()
        state = self.state
        if state is None or state.system != frame.sysid:
            if state is not None and now - state.heard < FORGET_AFTER_S:
                return  # another vehicle: commands must not change their target between two heartbeats
            log.info("vehicle %d: autopilot %d, type %d", frame.sysid, fields["autopilot"], fields["type"])
            state = self.state = VehicleState(frame.sysid, 0, 0, 0, 0, now)
        state.autopilot = fields["autopilot"]
        state.kind = fields["type"]
        state.base_mode = fields["base_mode"]
        state.told_armed = state.armed
        if not state.armed:
            state.disarmed_at = now
        state.status = fields["system_status"]
        state.custom_mode = fields["custom_mode"]
        state.quiet = max(state.quiet, now - state.heard)
        state.heard = now
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def foreign_command(
        self, number: int, params: Sequence[float], *, given: Given | None = None
    ) -> Callable[[], None]:
        """Another program is about to send a command past us: one to come down or to stay ends, from now on, what was
        given before it and has not left. ``given``: see ``Downs``.

        Call what is returned just before the command leaves: it raises OrderOvertaken where an order to come down came
        since (to one that says how to fly: where a later one has left), and remembers a motor test, which an emergency
        stop must end.
        """
        downs = self._procedures.downs
        if self._comes_down(number, params):
            cuts = number == Cmd.DO_FLIGHTTERMINATION or (number == Cmd.COMPONENT_ARM_DISARM and FORCE in params[1:2])
            downs.note(None if cuts else given)
            if cuts or number == Cmd.COMPONENT_ARM_DISARM:
                return lambda: None
            return downs.way(self.dialect.enum_name("MAV_CMD", number), given, lands=number in _LANDS)
        overtaken = downs.since(given)

        def leaving() -> None:
            if number not in _HARMLESS and overtaken():
                name = self.dialect.enum_name("MAV_CMD", number)
                raise OrderOvertaken(f"{name} was given up: an order to come down or to stay came after it was given")
            if number in _TESTS:
                self._procedures.note_test(number, params)

        return leaving

    def foreign_mode(self, custom_mode: int, *, given: Given | None = None) -> None:
        """Another program changes the mode past us now; ``custom_mode`` as heartbeats tell it. Raises OrderOvertaken,
        as above.
        """
        downs = self._procedures.downs
        if self._is_down_mode(custom_mode):
            downs.note(given)
            downs.way("SET_MODE", given)()
        elif downs.since(given)():
            raise OrderOvertaken("SET_MODE was given up: an order to come down or to stay came after it was given")

    def _comes_down(self, number: int, params: Sequence[float]) -> bool:
        first, second, third = [*params, 0.0, 0.0, 0.0][:3]
        if number == Cmd.DO_SET_MODE and self.state is not None:
            custom_mode = custom_mode_of(self.state.autopilot, second, third)
            return custom_mode is not None and self._is_down_mode(custom_mode)
        return number in _ALWAYS_DOWN or (number in _DOWN_WITH_0 and not first)

    def _is_down_mode(self, custom_mode: int) -> bool:
        state = self.state
        return state is not None and is_down_mode(state.autopilot, state.kind, custom_mode, self.dialect)

    async def run(self, order: Order, *, check: Check = None, given: Given | None = None) -> Steps:
        """Carry out ``order``; the last step decides it. Use it with ``contextlib.aclosing``. ``check`` may raise just
        before a command leaves; ``given``: when the order was given, see ``Downs``.

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
        async with aclosing(self._procedures.run(order, state, check=check, given=given)) as steps:
            async for step in steps:
                yield step

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
            "mode": mode_name(state.autopilot, state.kind, state.custom_mode, self.dialect),
            "landed_state": self.dialect.enum_name("MAV_LANDED_STATE", state.landed_state),
            "heard_s": round(self._clock() - state.heard, 3),
        }
