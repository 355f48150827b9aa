"""The motor tests of one vehicle that may be running, and how an emergency stop ends them.

A forced disarm does not end a motor test: the vehicle counts as disarmed while that turns a motor, accepts the disarm,
and lets the motor turn on. So what was tested lately is remembered here; and an ArduPilot that runs one says in its
heartbeats that it is armed (but an ArduPlane does not).

All ends are commands of one kind, and an acknowledgement carries no number. One that may be an older command's, the
test's own or that of another motor's end, proves nothing by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Ack, Command, CommandClient, Target
from petalbus.handlers.mavlink.flight.modes import is_plane
from petalbus.handlers.mavlink.flight.state import Autopilot, VehicleState
from petalbus.handlers.mavlink.flight.steps import Cmd

_LATE_S: Final = 5.0
"""So much later than ordered a motor may still turn: the command may have been slow."""

_LONGEST_S: Final = 600.0
"""ArduCopter turns a motor no longer, whatever is ordered; also where that is no number."""

_MOST_MOTORS: Final = 255.0
_MOST_TESTS: Final = 16
_ONE_S: Final = 0.5
"""How long one motor's end is waited for before it is the next one's turn, or said again."""

_COPY_S: Final = 0.05
"""After an acknowledgement in doubt: that much for a second copy of it, before the next end leaves."""

_NEWS_S: Final = 0.3
"""A heartbeat that came so much later was made later, too, whatever wire it took."""

_SLOW_NEWS_S: Final = 1.2
"""So much later it must come where nothing else tells of a test: what has just been disarmed may be told armed by a
second, slower wire, and to end a test where none runs makes a copter arm its motors for a moment.
"""

_LOOK_S: Final = 2.5
"""A heartbeat comes once a second, and the first one after the slow ones counts."""

_SURE: Final = 3
"""So many acknowledgements of the ends of one motor are its own: an older command's do not come that often."""

_UNSUPPORTED: Final = 3
_FLYING: Final = (4, 6)
"""MAV_STATE: ArduPilot is active when it flies; and an emergency."""

_CRITICAL: Final = 5
"""With a failsafe ArduPilot says this, in the air and on the ground."""

_ON_GROUND: Final = 1
_IN_AIR: Final = (2, 3, 4)
_TOLD_LATELY_S: Final = 5.0

Test = tuple[int, float]
"""The MAV_CMD and the motor."""


class MotorTests:
    """What may be running, and its ends. ``changed(seconds)`` waits until something new is known of the vehicle."""

    def __init__(
        self,
        client: CommandClient,
        *,
        changed: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._changed = changed
        self._clock = clock
        self._tests: dict[Test, float] = {}

    def note(self, number: int, params: Sequence[float]) -> None:
        """A motor test leaves now, ours or another program's: ``number`` is its MAV_CMD."""
        values = [*params, *([0.0] * 7)][:7]
        motor, seconds, count = values[4], values[1], 1.0
        if number == Cmd.DO_MOTOR_TEST:
            motor, seconds, count = values[0], values[3], min(values[4], _MOST_MOTORS) if values[4] > 1.0 else 1.0
        if seconds == 0.0:
            return  # it ends one; but it may be lost
        if not 0.0 < seconds <= _LONGEST_S:
            seconds = _LONGEST_S
        whole = seconds * (1.5 * count - 0.5)  # one motor after the other, and half of the time between two
        test = number, motor
        self._tests[test] = max(self._clock() + whole + _LATE_S, self._tests.pop(test, 0.0))
        while len(self._tests) > _MOST_TESTS:
            del self._tests[next(iter(self._tests))]

    def running(self) -> dict[Test, float]:
        """Those that may be running, and until when; the newest first."""
        now = self._clock()
        return {test: until for test, until in reversed(self._tests.items()) if until > now}

    async def end(self, running: dict[Test, float], state: VehicleState) -> bool:
        """Say the ends again and again until each is sure to have been heard; False when one is not, in time."""
        # ArduPilot runs one test at a time, whichever motor is named: ending a second one would begin it anew
        newest = next((test for test in running if test[0] == Cmd.DO_MOTOR_TEST), None)
        ends = [test for test in running if test[0] != Cmd.DO_MOTOR_TEST]
        if newest is not None and state.autopilot != Autopilot.ARDUPILOT:
            ends.append(newest)
        target = Target(state.system)
        for test in ends[1:]:
            self._client.say(_end_of(*test), target)  # all at once: none waits for another one's answer
        both = [self._end_each(ends, target)]
        if newest is not None and state.autopilot == Autopilot.ARDUPILOT:
            both.append(self._end_ardupilot(newest[1], state))
        ended = all(await asyncio.gather(*both))
        if ended:
            self._tests = {test: until for test, until in self._tests.items() if running.get(test) != until}
        return ended

    async def end_unknown(self, state: VehicleState, accepted: asyncio.Event) -> bool:
        """After the stop was ``accepted``: end what ArduPilot's heartbeats tell of, and nobody else; a ground station
        beside us began it, or we did before a restart. False when they go on to tell it.
        """
        await accepted.wait()
        if not _may_test(state):
            return True
        since = self._clock()
        while (left := since + _LOOK_S - self._clock()) > 0:
            await self._changed(left)
            if state.disarmed_at > since:
                return True
            if state.heard > since + _SLOW_NEWS_S:
                return await self._end_ardupilot(1.0, state, known=False)
        return True  # nobody tells anything: the acknowledgement stands

    async def _end_each(self, ends: list[Test], target: Target) -> bool:
        """One after the other, so that each has a time of its own in which its acknowledgement comes.

        A refusal is an answer: where such a test is running the vehicle does not refuse it.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._client.times.answer
        longest = limit + self._client.times.confirm
        left, heard = [*ends], dict.fromkeys(ends, 0)
        while left and loop.time() < limit:
            test, began = left.pop(0), loop.time()
            ack = await self._ask(_end_of(*test), target)
            if ack is not None:
                limit = longest  # it hears us, and each motor needs its time: the way there and back, three times
                heard[test] += 1
            if ack is not None and (not ack.doubtful or heard[test] >= _SURE):
                continue
            left.append(test)
            # without an answer: another stop's end may have overtaken it at once
            await asyncio.sleep(_COPY_S if ack is not None else began + _ONE_S - loop.time())
        return not left

    async def _end_ardupilot(self, motor: float, state: VehicleState, *, known: bool = True) -> bool:
        """A clear acceptance is enough where the test is ``known``, and so are many in doubt, unless a heartbeat says
        that it is armed. Else a heartbeat must say that the motors stand. An ArduPlane's does not tell that; and it
        refuses an end while the test runs.
        """
        loop, target = asyncio.get_running_loop(), Target(state.system)
        limit = loop.time() + self._client.times.answer
        longest = limit + self._client.times.confirm
        accepted, answered = 0, float("inf")
        while loop.time() < limit:
            began = loop.time()
            ack = await self._ask(_end_of(Cmd.DO_MOTOR_TEST, motor), target)
            if ack is not None:
                limit = longest
                answered = min(answered, self._clock())
                right = ack.result in (ACCEPTED, _UNSUPPORTED)
                accepted += right
                denied = state.told_armed and state.heard > answered + _NEWS_S
                if known and right and (not ack.doubtful or (accepted >= _SURE and not denied)):
                    return True
            while (left := min(began + _ONE_S, limit) - loop.time()) > 0:
                await self._changed(left)
                if _stands(state, answered + _NEWS_S):
                    return True
        return False

    async def _ask(self, command: Command, target: Target) -> Ack | None:
        with suppress(CommandOutcomeUnknown, NotConnected):
            async with aclosing(self._client.run(command, target)) as acks:
                async for ack in acks:
                    if ack.final:
                        return ack
        return None


def _kind(state: VehicleState) -> tuple[int, int]:
    return state.autopilot, state.kind


def _stands(state: VehicleState, since: float) -> bool:
    """Whether a heartbeat that came after ``since`` says that no motor turns."""
    return not is_plane(*_kind(state)) and state.heard > since and not state.told_armed


def _may_test(state: VehicleState) -> bool:
    """Whether the newest heartbeat may come from an ArduPilot that tests a motor: armed, but not flying."""
    if state.autopilot != Autopilot.ARDUPILOT or is_plane(*_kind(state)) or not state.told_armed:
        return False
    told = state.landed_state if state.heard - state.landed_at < _TOLD_LATELY_S else 0
    if state.status == _CRITICAL:
        return told == _ON_GROUND
    return told not in _IN_AIR and state.status not in _FLYING


def _end_of(number: int, motor: float) -> Command:
    """ArduPilot: no throttle, for no time; PX4: no time gives the output back."""
    params = (motor,) if number == Cmd.DO_MOTOR_TEST else (0.0, 0.0, 0.0, 0.0, motor)
    return Command(number, params, idempotent=True, urgent=True, answer=_ONE_S)
