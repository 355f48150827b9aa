"""Reboots the vehicle and makes sure that it did: the acknowledgement, then its heartbeats stop and come back.

The acknowledgement alone proves little: it may get lost, and an autopilot may acknowledge and stay. A boot clock that
jumped back is as good as a gap in the heartbeats, and shows a reboot that was too quick for one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected
from petalbus.handlers.mavlink.flight.commands import Ack, Command, Target
from petalbus.handlers.mavlink.flight.state import VehicleState
from petalbus.handlers.mavlink.flight.vehicle import Vehicle

PREFLIGHT_REBOOT_SHUTDOWN: Final = 246
_ACCEPTED: Final = 0
_DENIED: Final = 2
_CLOCK_BACK_MS: Final = 1000

Tell = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RebootWanted:
    """How to reboot, and how long to wait. Times are seconds."""

    onboard_computer: bool = False
    confirm: bool = True
    """False: an acknowledgement is enough, and only without one the heartbeats are asked."""
    answer: float = 3.0
    attempts: int = 1
    """Sendings while no acknowledgement comes and the vehicle goes on as if nothing had been said."""
    retry_delay: float = 0.5
    drop_window: float = 5.0
    drop_gap: float = 1.5
    return_window: float = 30.0
    accept_denied: bool = False
    """Go on after a denial: somebody restarts a simulation by hand."""


@dataclass(slots=True)
class RebootSeen:
    """What was seen. ``dropped`` and ``returned`` are None where nobody looked."""

    ack_result: int | None = None
    sends: int = 0
    dropped: bool | None = None
    returned: bool | None = None


class Reboot:
    """One reboot of one vehicle."""

    def __init__(
        self, vehicle: Vehicle, wanted: RebootWanted, *, tell: Tell, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``tell`` is called with each stage that is reached."""
        self._vehicle = vehicle
        self._wanted = wanted
        self._tell = tell
        self._clock = clock
        self.seen = RebootSeen()

    async def run(self) -> RebootSeen:
        """Do it. Raises NotConnected when no vehicle is there."""
        state = self._vehicle.heard_lately()
        before = _boot_ms(self._vehicle, state)
        state.quiet = 0.0
        await self._ask(state, before)
        seen, wanted = self.seen, self._wanted
        refused = seen.ack_result not in (None, _ACCEPTED)
        if refused and not (wanted.accept_denied and seen.ack_result == _DENIED):
            return seen
        if seen.ack_result is not None and not wanted.confirm:
            return seen
        await self._tell({"stage": "sent", "ack_result": seen.ack_result, "sends": seen.sends})
        heard = state.heard
        seen.dropped = await self._drops(state, before)
        if not seen.dropped:
            return seen
        await self._tell({"stage": "dropped"})
        if not self._jumped_back(state, before):
            heard = state.heard
        seen.returned = state.quiet >= wanted.drop_gap or await self._returns(state, heard)
        return seen

    async def _ask(self, state: VehicleState, before: int | None) -> None:
        wanted, seen = self._wanted, self.seen
        params = (1.0, 1.0 if wanted.onboard_computer else 0.0)
        command = Command(PREFLIGHT_REBOOT_SHUTDOWN, params, answer=wanted.answer)
        while seen.sends < wanted.attempts:
            seen.sends += 1
            try:
                ack = await self._final(command, state)
            except CommandOutcomeUnknown:
                if await self._fell_silent(state) or self._jumped_back(state, before):
                    return  # it is rebooting, and a second command would make it do so twice
                if seen.sends < wanted.attempts:
                    await asyncio.sleep(wanted.retry_delay)
            except NotConnected:
                if seen.sends == 1:
                    raise
                seen.sends -= 1  # this one did not leave, but one before did: the heartbeats decide
                return
            else:
                seen.ack_result = ack.result
                return

    async def _final(self, command: Command, state: VehicleState) -> Ack:
        async with aclosing(self._vehicle.client.run(command, Target(state.system))) as acks:
            async for ack in acks:
                if ack.final:
                    return ack
        raise AssertionError("a command ended without a final acknowledgement")

    async def _fell_silent(self, state: VehicleState) -> bool:
        """Whether the heartbeats have stopped; waits until that is decided.

        Only one that comes from now on says that they go on: an autopilot may send some more before it obeys.
        """
        gap, since = self._wanted.drop_gap, self._clock()
        while state.quiet < gap and state.heard <= since and (left := state.heard + gap - self._clock()) > 0:
            await self._vehicle.changed(left)
        return self._has_been_silent(state)

    def _has_been_silent(self, state: VehicleState) -> bool:
        return max(state.quiet, self._clock() - state.heard) >= self._wanted.drop_gap

    async def _drops(self, state: VehicleState, before: int | None) -> bool:
        end = self._clock() + self._wanted.drop_window
        while (now := self._clock()) < end:
            if self._has_been_silent(state) or self._jumped_back(state, before):
                return True
            await self._vehicle.changed(min(end, state.heard + self._wanted.drop_gap) - now)
        return False

    async def _returns(self, state: VehicleState, heard: float) -> bool:
        end = self._clock() + self._wanted.return_window
        while state.heard <= heard:
            left = end - self._clock()
            if left <= 0:
                return False
            await self._vehicle.changed(left)
        return True

    def _jumped_back(self, state: VehicleState, before: int | None) -> bool:
        now = _boot_ms(self._vehicle, state)
        return before is not None and now is not None and now < before - _CLOCK_BACK_MS


def _boot_ms(vehicle: Vehicle, state: VehicleState) -> int | None:
    """The vehicle's boot clock as its last position told it; None when it told none."""
    return None if state.position is None else int(vehicle.dialect.fields(state.position)["time_boot_ms"])
