"""Fetches a list of items from the vehicle: it tells how many there are, and each is asked for.

PX4 serves items in their order only, one after the other, and forgets the exchange when it is asked for another one.
Who answers in any order is asked for several at once. When nothing comes for long, or the vehicle refuses in the
middle, all is begun anew and what came before is thrown away: parts of two lists are not put together, where lists
have ids (PX4) or somebody tells of the change. ArduPilot has none: a list that another station replaces by one of the
same length between two of our questions is not noticed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Final

from petalbus.handlers.mavlink.missions.items import MOST_ITEMS, MissionInvalid, MissionItem
from petalbus.handlers.mavlink.missions.talk import (
    COUNT,
    ITEM,
    ITEM_INT,
    Heard,
    MissionInterrupted,
    MissionTimeout,
    Refusal,
    Result,
    Talk,
    Tell,
    Teller,
)

MOST_AT_ONCE: Final = 8
_STALLED_SENDS: Final = 40
_STALLED_S: Final = 6.0
_MOST_STARTS: Final = 6


@dataclass(slots=True)
class _Flying:
    """An item that was asked for. Times are monotonic seconds."""

    said_at: list[float] = field(default_factory=list)
    again_at: float = 0.0
    hurried: bool = False


class _Anew(Exception):
    """Begin again, because of this refusal or, without one, because nothing came."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        super().__init__()
        self.refusal = refusal


class Download:
    """One download; ``run`` it once."""

    def __init__(self, talk: Talk, *, at_once: int, tell: Tell | None, timeout: float) -> None:
        """``at_once``: questions under way at most; ``timeout``: seconds without anything new."""
        self._talk = talk
        self._most = at_once
        self._tell = tell
        self._timeout = timeout
        self._what = f"download of {talk.kind.name.lower()} items"
        self._items: dict[int, MissionItem] = {}
        self._flying: dict[int, _Flying] = {}
        self._total = 0
        self.list_id = 0
        """MAVLink's opaque_id of the list; 0: the vehicle has none."""
        self._window = 1
        self._next = 0
        self._best = 0
        self._hurry = True

    async def run(self) -> list[MissionItem]:
        """Do it. Raises MissionRefused, MissionTimeout, MissionInterrupted, NotConnected."""
        result = int(Result.OPERATION_CANCELLED)
        try:
            for _ in range(_MOST_STARTS):
                try:
                    items = await self._once()
                except _Anew as why:
                    last = why.refusal
                    self._most = 1  # whatever it was, order cannot make it worse
                    continue
                result = 0
                return items
        finally:
            self._talk.end(result)
        if last is not None:
            raise self._talk.refused(self._what, last, done=self._best, total=self._total)
        raise MissionInterrupted(
            f"{self._what}: the vehicle stopped answering, or its items changed, {_MOST_STARTS} times"
        )

    async def _once(self) -> list[MissionItem]:
        heard = await self._talk.ask(self._what, "MISSION_REQUEST_LIST", COUNT, self._timeout)
        total = self._total = heard.fields["count"]
        self.list_id = heard.list_id
        if total > MOST_ITEMS:
            raise MissionInvalid("count", f"the vehicle has {total} items", limit=f"at most {MOST_ITEMS}")
        self._items, self._flying, self._next, self._window = {}, {}, 0, 1
        teller = Teller(self._tell, total)
        now = progress_at = time.monotonic()
        while len(self._items) < total:
            self._check(now, progress_at)
            self._ask(now)
            heard_now = await self._talk.next(self._due(progress_at))
            now = time.monotonic()
            if heard_now is not None and self._take(heard_now, now):
                progress_at = now
                self._best = max(self._best, len(self._items))
                await teller.tell(len(self._items))
        if not total:
            await teller.tell(0)
        await self._make_sure()
        return [self._items[seq] for seq in range(total)]

    async def _make_sure(self) -> None:
        """Whether it still is the list that was begun with: another station may have replaced it meanwhile.

        PX4 then serves the items of the new one without a word. Where lists have no ids nothing can be told.
        """
        if self.list_id and self._total:
            heard = await self._talk.ask(self._what, "MISSION_REQUEST_LIST", COUNT, self._timeout)
            if (heard.list_id, heard.fields["count"]) != (self.list_id, self._total):
                raise _Anew

    def _check(self, now: float, progress_at: float) -> None:
        """Whether it makes sense to go on waiting."""
        if now - progress_at >= self._timeout:
            raise MissionTimeout(self._what, len(self._items), self._total, self._timeout)
        if now - progress_at >= _STALLED_S or any(len(one.said_at) > _STALLED_SENDS for one in self._flying.values()):
            raise _Anew

    def _ask(self, now: float) -> None:
        for seq, flying in self._flying.items():
            if now >= flying.again_at:
                self._say(seq, flying, now)
        while self._next < self._total and len(self._flying) < self._window:
            self._flying[self._next] = _Flying()
            self._say(self._next, self._flying[self._next], now)
            self._next += 1

    def _say(self, seq: int, flying: _Flying, now: float) -> None:
        flying.said_at.append(now)
        flying.again_at = now + self._talk.trip.pause(len(flying.said_at))
        self._talk.repeated = self._talk.repeated or len(flying.said_at) > 1
        self._talk.send("MISSION_REQUEST_INT", seq=seq)

    def _due(self, progress_at: float) -> float:
        due = min(flying.again_at for flying in self._flying.values())
        return min(due, progress_at + min(self._timeout, _STALLED_S))

    def _take(self, heard: Heard, now: float) -> bool:
        """Take what came; True when it is a new item."""
        if heard.refusal is not None:
            # it may be over something said twice, but also because its list is another one now: nothing is worth that
            raise _Anew(Refusal(heard.refusal, now))
        if heard.msgid == COUNT and (heard.list_id, heard.fields["count"]) != (self.list_id, self._total):
            raise _Anew  # somebody changed the list
        if heard.msgid not in (ITEM, ITEM_INT):
            return False
        read = MissionItem.from_fields if heard.msgid == ITEM_INT else MissionItem.from_float_fields
        item = read(heard.fields)
        before = self._items.get(item.seq)
        if before is not None and replace(before, current=item.current) != item:
            raise _Anew
        flying = self._flying.pop(item.seq, None)
        if flying is None:
            return False
        self._items[item.seq] = item
        self._learn(item.seq, flying, now)
        return True

    def _learn(self, seq: int, flying: _Flying, now: float) -> None:
        """From an answer: how long one takes, which earlier questions are lost, whether more may be under way."""
        once = len(flying.said_at) == 1
        if once:
            self._window = min(self._most, self._window + 1)
        elif flying.hurried and len(flying.said_at) == 2 and now - flying.said_at[-1] < self._talk.soon():
            self._hurry = False  # too early for the repetition's answer: this link changes the order
        if not flying.hurried:
            self._talk.trip.answered(flying.said_at, now)
        if not once or not self._hurry:
            return
        for other_seq, other in self._flying.items():
            if other_seq < seq and not other.hurried and other.said_at[-1] <= flying.said_at[-1]:
                other.hurried = True
                self._say(other_seq, other, now)
