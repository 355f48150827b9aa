"""Sends a list of items to the vehicle, which asks for one after the other and acknowledges the whole.

Vehicles ask again only after a long time (ArduPilot 1 s), and give up a few seconds later. On a bad link that is too
slow by far, so what it asked for last is said again as soon as its next question is late; and items after it, too, for
that question may be what was lost. PX4 ignores an item that it does not wait for, ArduPilot complains and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.missions.items import MissionItem
from petalbus.handlers.mavlink.missions.talk import (
    ACK,
    MAYBE,
    REQUEST,
    REQUEST_INT,
    Heard,
    MissionTimeout,
    Refusal,
    Result,
    Talk,
    Tell,
    Teller,
)

_BUSY_S: Final = 9.0
_GOES_ON_S: Final = 2.5
_MOST_AHEAD: Final = 4
_TURNS: Final = 0, 2, 4
_LAST_PATIENCES: Final = 12


class Sent(NamedTuple):
    """How an upload ended. ``accepted`` False: all items went, and what became of them is not known."""

    accepted: bool
    list_id: int
    refusal: Refusal | None = None
    new_id: bool = False
    """``list_id`` was never heard before of this vehicle."""


class Upload:
    """One upload; ``run`` it once."""

    def __init__(
        self,
        talk: Talk,
        items: Sequence[MissionItem],
        *,
        ahead: bool,
        tell: Tell | None,
        timeout: float,
        on_last: Callable[[], None],
    ) -> None:
        """``ahead``: the vehicle does not mind an item that it has not asked for; ``timeout``: seconds without news.

        ``on_last()`` is called when the last item leaves for the first time.
        """
        self._talk = talk
        self._items = items
        self._ahead = ahead
        self._timeout = timeout
        self._on_last = on_last
        self._teller = Teller(tell, len(items))
        self._what = f"upload of {len(items)} {talk.kind.name.lower()} items"
        self._asked = -1
        self._top = -1
        self._sent = -1
        self._said_at: list[float] = []  # when what it asked for last was said
        self._sent_at: dict[int, list[float]] = {}  # when items left, of those that it may still have to ask for
        self._due = 0.0
        self._refusal: Refusal | None = None
        self._progress_at = 0.0

    async def run(self) -> Sent:
        """Do it. Raises MissionRefused, MissionTimeout, MissionInterrupted, NotConnected."""
        done = False
        try:
            sent = await self._run()
            done = True
            return sent
        finally:
            if not done:
                self._talk.end(Result.OPERATION_CANCELLED)

    async def _run(self) -> Sent:
        now = self._progress_at = self._due = time.monotonic()
        while True:
            end = self._progress_at + self._timeout
            refusal = self._refusal
            if refusal is not None and now >= min(refusal.until, end):
                if self.all_sent and refusal.result in MAYBE:
                    return Sent(accepted=False, list_id=0, refusal=refusal)
                raise self._talk.refused(self._what, refusal, done=self._done, total=len(self._items))
            if now >= end:
                if self.all_sent:
                    return Sent(accepted=False, list_id=0)
                raise MissionTimeout(self._what, self._done, len(self._items), self._timeout)
            if now >= self._due:
                self._say(now)
            heard = await self._talk.next(min(self._due, end, refusal.until if refusal else end))
            now = time.monotonic()
            if heard is None:
                continue
            if heard.msgid in (REQUEST, REQUEST_INT):
                await self._on_request(heard.fields["seq"], now)
            elif heard.msgid == ACK and heard.refusal is not None:
                self._on_refusal(heard.refusal)
            elif heard.msgid == ACK and self.all_sent:
                return await self._accepted(heard)
            # any other acceptance is that of an earlier upload

    @property
    def begun(self) -> bool:
        """The vehicle asked for an item."""
        return self._asked >= 0

    @property
    def all_sent(self) -> bool:
        """The last item left."""
        return self._sent == len(self._items) - 1

    @property
    def _done(self) -> int:
        """Items that the vehicle has: it asks for the one after them."""
        return max(0, self._top)

    async def _accepted(self, heard: Heard) -> Sent:
        await self._teller.tell(len(self._items))
        return Sent(accepted=True, list_id=heard.list_id, new_id=heard.new_id)

    async def _on_request(self, seq: int, now: float) -> None:
        if seq >= len(self._items):
            return
        if seq == self._asked and now - self._said_at[-1] < self._talk.soon():
            return  # the wire doubled the question
        self._refusal = None
        if self._asked < 0:
            self._talk.trip.answered(self._said_at, now)
        elif seq - 1 in self._sent_at and seq > self._top:
            self._talk.trip.answered(self._sent_at[seq - 1], now)
        self._sent_at = {number: times for number, times in self._sent_at.items() if number >= seq}
        self._asked = seq
        self._said_at = []
        self._say(now)
        if seq > self._top:
            self._top = seq
            self._progress_at = now
            await self._teller.tell(seq)

    def _on_refusal(self, result: int) -> None:
        if self._asked < 0:
            grace = _BUSY_S
        elif self.all_sent:
            grace = _LAST_PATIENCES * self._talk.patience()
        else:
            grace = _GOES_ON_S
        if result == Result.INVALID_SEQUENCE:
            grace = self._timeout  # it got an item once too often, and still waits for another
        before = self._refusal
        if before is not None and before.result == Result.INVALID_SEQUENCE:
            before = None
        self._refusal = self._talk.refusal(before, result, grace)
        if result not in MAYBE:
            self._due = self._refusal.until + 1.0

    def _say(self, now: float) -> None:
        """Say what was asked for last; when that is a repetition, also what may have been asked for after it."""
        self._said_at.append(now)
        again = len(self._said_at) > 1
        self._talk.repeated = self._talk.repeated or again
        self._due = now + self._talk.trip.pause(len(self._said_at))
        if self._asked < 0:
            self._talk.send("MISSION_COUNT", count=len(self._items))
            return
        first = last = self._asked
        if self._ahead and again:
            if len(self._said_at) > _MOST_AHEAD + 1:
                # it may have all of these, and its questions were lost: look further, in turns
                first = min(first + _TURNS[len(self._said_at) % len(_TURNS)], self._sent + 1, len(self._items) - 1)
            last = max(first, min(self._sent + 1, first + _MOST_AHEAD))  # it waits for none that is later
            over = self._refusal is not None and self._refusal.result == Result.ERROR
            if over and self.all_sent and len(self._said_at) % 3:
                first = last = len(self._items) - 1  # it may have all: PX4 accepts the last one once more
        for item in self._items[first : last + 1]:
            if item.seq == len(self._items) - 1 and not self.all_sent:
                self._on_last()
            self._sent = max(self._sent, item.seq)
            self._sent_at.setdefault(item.seq, []).append(now)
            self._talk.send("MISSION_ITEM_INT", **item.fields())
