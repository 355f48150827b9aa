"""The emergency stop: the motors are cut, whatever happens, and a motor test that may be running is ended.

A forced disarm does not end a motor test: the vehicle counts as disarmed while that turns a motor, accepts the
disarm, and lets the motor turn on. So what was tested lately is remembered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, MavlinkError, NotConnected
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Ack, Command, CommandClient, Target
from petalbus.handlers.mavlink.flight.state import VehicleState
from petalbus.handlers.mavlink.flight.steps import FORCE, Cmd, Step, Steps

_LATE_S: Final = 5.0
"""So much later than ordered a motor may still turn: the command may have been slow."""

_MOST_TESTS: Final = 16
_ONE_S: Final = 0.5
"""How long one motor's end is waited for before the next one's turn."""

_SURE: Final = 3
"""So many refusals of a stop are its own: an older command's acknowledgement does not come that often."""

_Test = tuple[int, float]
"""The MAV_CMD and the motor."""


class Stopping:
    """The stops of one vehicle, and what it knows of motor tests."""

    def __init__(self, client: CommandClient, *, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._tests: dict[_Test, float] = {}

    def note_test(self, number: int, params: Sequence[float]) -> None:
        """A motor test leaves now, ours or another program's: ``number`` is its MAV_CMD."""
        values = [*params, *([0.0] * 7)][:7]
        motor, seconds = (values[0], values[3]) if number == Cmd.DO_MOTOR_TEST else (values[4], values[1])
        test = number, motor
        self._tests.pop(test, None)
        if seconds > 0.0:  # 0 ends it, and NaN is nothing
            self._tests[test] = self._clock() + seconds + _LATE_S
        while len(self._tests) > _MOST_TESTS:
            del self._tests[next(iter(self._tests))]

    async def stop(self, state: VehicleState) -> Steps:
        """Cut the motors. The forced disarm leaves first; the end of a motor test follows it at once."""
        running = self._running()
        if not running:
            async with aclosing(self._cut(state)) as steps:
                async for step in steps:
                    yield step
            return
        ending = asyncio.create_task(self._end(running, state), name="mavlink.motors")
        try:
            try:
                async with aclosing(self._cut(state)) as steps:
                    async for step in steps:
                        if step.last and not await ending and step.ack.result == ACCEPTED:
                            raise _turning()
                        yield step
            except MavlinkError:
                await ending  # nothing is known of the disarm: a motor that turns on is to be ended all the more
                raise
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _cut(self, state: VehicleState) -> Steps:
        """The forced disarm. Repeating it does no harm, so it is repeated until it is answered.

        When an arm or disarm was under way or answered lately, the first acknowledgement may be that one's: then a
        heartbeat that comes after an acceptance must say "disarmed" too.
        """
        command = Command(Cmd.COMPONENT_ARM_DISARM, (0.0, FORCE), idempotent=True, urgent=True)
        accepted_at: float | None = None
        refusals: list[Ack] = []
        try:
            async with aclosing(self._client.run(command, Target(state.system))) as acks:
                async for ack in acks:
                    if not ack.doubtful or not ack.final:
                        if ack.result == ACCEPTED:
                            state.believe_armed(armed=False)
                        yield Step("emergency_stop", ack, ack.final)
                    elif ack.result != ACCEPTED:
                        refusals.append(ack)
                    elif accepted_at is None:
                        accepted_at = self._clock()
                    elif state.heard > accepted_at and not state.armed:
                        yield Step("emergency_stop", ack._replace(doubtful=False), last=True)
                        return
        except CommandOutcomeUnknown:
            if accepted_at is not None or len(refusals) < _SURE:
                raise
            yield Step("emergency_stop", refusals[-1]._replace(doubtful=False), last=True)

    def _running(self) -> dict[_Test, float]:
        """The motor tests that may be running, and until when; the newest first."""
        now = self._clock()
        return {test: until for test, until in reversed(self._tests.items()) if until > now}

    async def _end(self, running: dict[_Test, float], state: VehicleState) -> bool:
        """Say the ends again and again until each is answered; False when one is not, in time.

        A refusal is an answer: only where no such test is running the vehicle refuses it.
        """
        target, loop = Target(state.system), asyncio.get_running_loop()
        limit = loop.time() + self._client.times.answer
        # ArduPilot runs one test at a time, whichever motor is named: ending a second one would begin it anew
        newest = next((test for test in running if test[0] == Cmd.DO_MOTOR_TEST), None)
        ends = [test for test in running if test[0] != Cmd.DO_MOTOR_TEST or test == newest]
        for test in ends[1:]:
            self._client.say(_end_of(*test), target)  # all at once: none waits for another one's answer
        while ends and loop.time() < limit:
            test, began = ends.pop(0), loop.time()
            if not await self._say_end(_end_of(*test), target):
                ends.append(test)
                await asyncio.sleep(began + _ONE_S - loop.time())  # another stop's end may have overtaken it at once
        if not ends:
            self._tests = {test: until for test, until in self._tests.items() if running.get(test) != until}
        return not ends

    async def _say_end(self, command: Command, target: Target) -> bool:
        with suppress(CommandOutcomeUnknown, NotConnected):
            async with aclosing(self._client.run(command, target)) as acks:
                async for ack in acks:
                    if ack.final:
                        return True
        return False


def _end_of(number: int, motor: float) -> Command:
    """ArduPilot: no throttle, for no time; PX4: no time gives the output back."""
    params = (motor,) if number == Cmd.DO_MOTOR_TEST else (0.0, 0.0, 0.0, 0.0, motor)
    return Command(number, params, idempotent=True, urgent=True, answer=_ONE_S)


def _turning() -> CommandOutcomeUnknown:
    return CommandOutcomeUnknown(
        "emergency_stop: the vehicle is disarmed, but a motor test may still be running, and its end was not "
        "acknowledged: the motor may turn for as long as was ordered"
    )
