"""Presence: which applications are there, written where programs of any language look for it.

Judged by heartbeats and our own monotonic clock. An application is online while one of its heartbeats moves, and
offline once none has moved for the whole term; as long as neither is sure, what is written stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.lease import RELEASED, LeaseTable

if TYPE_CHECKING:
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

MAX_FORGET: Final = 64
"""Dead heartbeats that are looked at in one pass."""


class Attendance:
    """Watches all heartbeats.

    ``term``: seconds without a beat after which a consumer is dead; ``forget_after``: seconds after which a dead one
    that holds nothing is removed.
    """

    def __init__(
        self, keys: Keys, *, term: float, forget_after: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._term = term
        self._forget_after = forget_after
        self._leases = LeaseTable(term=term)
        self._counts: dict[str, int] = {}
        self._moved: set[str] = set()
        self._dead_since: dict[str, float] = {}
        self._absent_since: dict[str, float] = {}
        self._offline: set[str] = set()
        self._connects = -1
        self.present: frozenset[str] = frozenset()
        """Applications that are not known to be gone: online, or not judged yet."""

    async def look(self, outbox: Outbox, now: float) -> None:
        """Look at every heartbeat at monotonic time ``now``, and write what changed. Raises BusError, ServerError."""
        if self._connects != outbox.lane.connects:
            self._connects = outbox.lane.connects
            self._leases.reset(now)  # while we could not see the server, nobody could beat
        flat = await outbox.call("HGETALL", self._keys.beats)
        beats = {_text(name): _count(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        dead = self._leases.observe(beats, asked=now, now=max(now, self._clock()))
        self._note(beats, dead, now)
        fields: dict[str, list[str]] = {}
        for field in beats:
            fields.setdefault(field.partition("|")[0], []).append(field)
        known = {_text(name) for name in await outbox.call("SMEMBERS", self._keys.apps)}
        present = set()
        online = {}
        for app in known | fields.keys():
            mine = fields.get(app, [])
            if any(field in self._moved and field not in dead for field in mine):
                present.add(app)
                online[app] = mine
            elif self._gone(app, mine, dead, now):
                await self._gone_offline(outbox, app, {field: beats[field] for field in mine})
            else:
                present.add(app)
        self.present = frozenset(present)
        await asyncio.gather(*(self._online(outbox, app, mine) for app, mine in online.items()))  # one round trip
        await self._forget(outbox, beats, now)

    def _note(self, beats: dict[str, int], dead: set[str], now: float) -> None:
        for field, count in beats.items():
            if field in self._counts and self._counts[field] != count and count != RELEASED:
                self._moved.add(field)
        self._moved &= beats.keys()
        self._counts = beats
        self._dead_since = {field: self._dead_since.get(field, now) for field in dead}

    def _gone(self, app: str, mine: list[str], dead: set[str], now: float) -> bool:
        if mine:
            self._absent_since.pop(app, None)
            return all(field in dead for field in mine)
        return now - self._absent_since.setdefault(app, now) >= self._term

    async def _online(self, outbox: Outbox, app: str, mine: list[str]) -> None:
        if app in self._offline:
            log.info("%s is online", app)
        self._offline.discard(app)
        self._absent_since.pop(app, None)
        await self._write(outbox, app, "online", {field: self._counts[field] for field in mine if field in self._moved})

    async def _gone_offline(self, outbox: Outbox, app: str, mine: dict[str, int]) -> None:
        if app not in self._offline and await self._write(outbox, app, "offline", mine):
            self._offline.add(app)
            log.info("%s is offline", app)

    async def _write(self, outbox: Outbox, app: str, status: str, fields: dict[str, int]) -> bool:
        keys = [self._keys.beats, self._keys.apps, self._keys.status(app)]
        seen: list[bytes | str | int] = [part for item in fields.items() for part in item]
        return bool(await outbox.run("attend", keys, [app, status, f"{time.time():.3f}", *seen]))

    async def _forget(self, outbox: Outbox, beats: dict[str, int], now: float) -> None:
        long_dead = [field for field, since in self._dead_since.items() if now - since >= self._forget_after]
        for field in long_dead[:MAX_FORGET]:
            app, _, consumer = field.partition("|")
            keys = [self._keys.beats, *self._keys.inboxes(app).values()]
            if await outbox.run("forget", keys, [GROUP, consumer, field, beats[field]]):
                log.info("consumer %s of %s is dead and held nothing: removed", consumer, app)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _count(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0  # whatever somebody wrote there, it does not count up
