"""Whether PX4 will fly the mission that it has taken, which it looks at only afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected
from petalbus.handlers.mavlink.flight.commands import Command, Target
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.missions.progress import NO_MISSION, NOT_KNOWN, MissionProgress
from petalbus.handlers.mavlink.missions.talk import CURRENT
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox

_REQUEST_MESSAGE: Final = 512
_HOME_POSITION: Final = 242
_STATUSTEXT: Final = 253
_ANSWER_S: Final = 1.0  # nobody else who asks for a message waits longer
_ASK_AGAIN_S: Final = 0.5
_SETTLES_S: Final = 1.0
_ITEM_S: Final = 0.002
_LONGER_S: Final = 1.5
_WARNING: Final = 4
_MOST_WAITING: Final = 64
_MOST_TEXTS: Final = 10
_FINAL: Final = ("mission rejected", "geofence violation")
"""How the texts begin with which PX4 says that it looked at a mission and will not fly it."""


class Verdict:
    """What PX4 says of a mission after it has accepted it, or after another fence.

    A mission that cannot be flown stays there, and MISSION_CURRENT tells that there is none. PX4 looks only when it has
    a home position; until then MISSION_CURRENT tells what was found of an earlier mission, or that there is none.
    """

    def __init__(self, calls: Calls, news: Inbox, texts: Inbox, homes: Inbox, progress: MissionProgress) -> None:
        """``texts`` and ``homes`` listen to one message each, ``news`` to all that matter, to wake up.

        ``progress`` is as it was before the upload.
        """
        self._calls = calls
        self._news = news
        self._waiting = texts
        self._homes = homes
        self._progress = progress
        self._before = progress.state
        self._told_before = progress.is_fresh(time.monotonic())
        self._home = self._rejected = False
        self.texts: tuple[str, ...] = ()
        """Warnings and errors that the vehicle told meanwhile."""

    def begin(self) -> None:
        """The last item leaves: what the vehicle said before it was about something else."""
        self._waiting.clear()

    def knows_home(self) -> bool:
        """The vehicle told its home position since this began."""
        self._home = self._home or self._homes.take() is not None
        return self._home

    async def feasible(self, list_id: int, accepted_at: float, *, items: int) -> bool | None:
        """Whether the mission with this id will be flown, as things are now; None when the vehicle does not say.

        Waits until 2.5 s after ``accepted_at`` (monotonic seconds), longer for very many items, and not where it did
        not tell its progress before. A state that is told within the first second may be that of the mission before,
        but for one that shows that there is a mission now and was none, and one that comes with the reason.
        """
        settled_at = accepted_at + _SETTLES_S + items * _ITEM_S
        if not list_id or not self._told_before:
            return None
        while True:
            self._hear()
            progress = self._progress
            if progress.current_at > accepted_at and progress.list_ids[0] == list_id:
                known = self._judge(settled=progress.current_at >= settled_at)
                if known is not None:
                    return known
            left = settled_at + _LONGER_S - time.monotonic()
            if left <= 0:
                return None
            await self._news.get(left)

    def _judge(self, *, settled: bool) -> bool | None:
        """What MISSION_CURRENT of this mission means; None: nothing yet."""
        state, current = self._progress.state, self._progress.current
        if state == NO_MISSION and self._rejected:
            return False
        if not state or current == NOT_KNOWN or not self.knows_home():
            return None
        if state == NO_MISSION:
            # at a later item "no mission" may be left over from before: PX4 tells "not started" at the first one alone
            return False if settled and current == 0 else None
        return True if settled or self._before == NO_MISSION else None

    def _hear(self) -> None:
        while (frame := self._waiting.take()) is not None:
            fields = self._calls.dialect.fields(frame)
            text = str(fields["text"]).strip()
            if fields["severity"] <= _WARNING:
                self.texts = (*self.texts, text)[-_MOST_TEXTS:]
                self._rejected = self._rejected or text.lower().startswith(_FINAL)


@asynccontextmanager
async def listen(
    calls: Calls, vehicle: Vehicle, system: int, progress: MissionProgress, *, wanted: bool
) -> AsyncIterator[Verdict]:
    """Hear from the beginning of an upload on what tells; where a verdict is ``wanted``, the home is asked for."""
    with (
        calls.listen({CURRENT, _STATUSTEXT, _HOME_POSITION}, system, most=1) as news,
        calls.listen({_STATUSTEXT}, system, most=_MOST_WAITING) as texts,
        calls.listen({_HOME_POSITION}, system, most=1) as homes,
    ):
        verdict = Verdict(calls, news, texts, homes, progress)
        if not wanted:
            yield verdict
            return
        asking = asyncio.create_task(_ask_for_home(vehicle, system, verdict), name="mavlink.mission.home")
        try:
            yield verdict
        finally:
            asking.cancel()
            await asyncio.wait([asking])  # unlike awaiting it, this swallows no cancellation of our own


async def _ask_for_home(vehicle: Vehicle, system: int, verdict: Verdict) -> None:
    """Until it is told; a vehicle without one does not tell it."""
    ask = Command(_REQUEST_MESSAGE, (float(_HOME_POSITION),), idempotent=True, answer=_ANSWER_S)
    while not verdict.knows_home():
        with suppress(NotConnected, CommandOutcomeUnknown):
            async with aclosing(vehicle.client.run(ask, Target(system))) as acks:
                async for ack in acks:
                    if ack.final:
                        break
        await asyncio.sleep(_ASK_AGAIN_S)
