"""The emergency stop: the motors are cut, whatever happens, and a motor test that may be running is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, MavlinkError
from petalbus.handlers.mavlink.flight.commands import ACCEPTED, Ack, Command, CommandClient, Target
from petalbus.handlers.mavlink.flight.motor_tests import MotorTests
from petalbus.handlers.mavlink.flight.state import VehicleState
from petalbus.handlers.mavlink.flight.steps import FORCE, Cmd, Step, Steps

_SURE: Final = 3
"""So many refusals of a stop are its own: an older command's acknowledgement does not come that often."""


class Stopping:
    """The stops of one vehicle. ``changed(seconds)`` waits until something new is known of it, at most so long."""

    def __init__(
        self,
        client: CommandClient,
        *,
        changed: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._clock = clock
        self._tests = MotorTests(client, changed=changed, clock=clock)

    def note_test(self, number: int, params: Sequence[float]) -> None:
        """A motor test leaves now, ours or another program's: ``number`` is its MAV_CMD."""
        self._tests.note(number, params)

    async def stop(self, state: VehicleState) -> Steps:
        """Cut the motors. The forced disarm leaves first; the end of a motor test follows it at once."""
        running, accepted = self._tests.running(), asyncio.Event()
        end = self._tests.end(running, state) if running else self._tests.end_unknown(state, accepted)
        ending = asyncio.create_task(end, name="mavlink.motors")
        try:
            try:
                async with aclosing(self._cut(state, accepted)) as steps:
                    async for step in steps:
                        ended = not (step.last and (running or accepted.is_set())) or await ending
                        if not ended and step.ack.result == ACCEPTED:
                            raise _turning()
                        yield step
            except MavlinkError:
                if running or accepted.is_set():
                    await ending  # nothing is known of the disarm: a motor that turns on is to be ended all the more
                raise
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _cut(self, state: VehicleState, accepted: asyncio.Event) -> Steps:
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
                    if ack.result == ACCEPTED:
                        accepted.set()
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


def _turning() -> CommandOutcomeUnknown:
    return CommandOutcomeUnknown(
        "emergency_stop: the disarm was accepted, but a motor test may still be running, and nothing proves its end: "
        "the motor may turn for as long as was ordered. Keep away from it, or take its power"
    )
