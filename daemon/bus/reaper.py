"""Takes over the work of dead members of the same app, within two seconds of monotonic time, and of nobody alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.lease import LeaseTable
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.schemas.vocabulary import Priority

log = logging.getLogger("petalbus.bus")

ORPHAN_LOOKS = 10
"""Every so many looks also ask the groups for consumers that never beat."""

SOLE_REST = 10

AUDITED = 20
"""So many of our oldest pending entries are compared with what we hold."""

_MANY = 1_000_000

Taken = Callable[[Priority, str, "list[Any]"], None]
"""Called with level, stream and one row of the takeover script."""


class Reaper:
    """Watches the other consumers of one app."""

    def __init__(
        self,
        *,
        app: str,
        keys: Keys,
        outbox: Outbox,
        options: BusOptions,
        me: Callable[[], str],
        taken: Taken,
        room: Callable[[Priority], int],
        audit: Callable[[set[tuple[str, bytes]]], None],
    ) -> None:
        self._app = app
        self._keys = keys
        self._outbox = outbox
        self._options = options
        self._me = me
        self._taken = taken
        self._room = room
        self._leases = LeaseTable(term=options.dead_after)
        self._orphans: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._audit = audit
        self._lately_dead: dict[str, float] = {}
        self._own = -1
        self._own_since = 0.0
        self.taken_over = 0

    def start(self) -> None:
        """Begin watching; does nothing the second time."""
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._run(), name=f"petalbus-reaper-{self._app}")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def succeed(self) -> None:
        """Take over at once what every other consumer holds, alive or not. Raises BusError."""
        for level, stream in reversed(self._keys.inboxes(self._app).items()):
            rows: list[list[Any]] = []
            for name in await self._holders(stream) - {self._me()}:
                rows += await self._claim(level, stream, name, _MANY)
            for row in sorted(rows, key=_place):  # of several predecessors, in the order of the stream
                self._taken(level, stream, row)
        for name in await self.beats():
            if name != self._me():
                await self._outbox.ask("HDEL", self._keys.beats, f"{self._app}|{name}")

    async def _holders(self, stream: str) -> set[str]:
        try:
            # asked once: that there is no group is an answer here, and a lost one makes the start be tried again
            rows = await self._outbox.call("XINFO", "CONSUMERS", stream, GROUP)
        except ServerError:
            return set()  # nobody has read it yet: there is no group
        infos = [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        return {info[b"name"].decode() for info in infos if info[b"pending"]}

    async def _run(self) -> None:
        looks = 0
        connects = -1
        while True:
            try:
                if connects != self._outbox.lane.connects:
                    # while we could not see the server, nobody else could reach it either
                    connects = self._outbox.lane.connects
                    self._leases.reset(time.monotonic())
                if self._options.sole or looks % ORPHAN_LOOKS == 0:
                    self._orphans = await self._find_orphans()
                looks += 1
                await self._look()
            except (BusError, ServerError) as error:
                log.debug("reaper of %s: %s", self._app, error)
            # a sole process has nobody to watch; it only compares what it holds with what the server says now and then
            await asyncio.sleep(self._options.heartbeat * (SOLE_REST if self._options.sole else 1))

    async def _look(self) -> None:
        asked = time.monotonic()
        beats = await self.beats()
        now = time.monotonic()
        mine = self._me()
        if not self._can_judge(beats.get(mine, 0), now):
            self._leases.reset(now)
            return
        others = {name: count for name, count in beats.items() if name != mine}
        for name in self._orphans - beats.keys():
            others[name] = 0
        dead = self._leases.observe(others, asked=asked, now=now)
        for name in dead:
            # the server may still deliver to a read that the dead one had left behind: look again for as
            # long as that lasts
            self._lately_dead[name] = now + self._options.block + self._options.patience
        for name, until in list(self._lately_dead.items()):
            if name == mine or (name in others and name not in dead) or (now > until and name not in dead):
                del self._lately_dead[name]
            elif await self._take_over(name) and name in dead:
                self._orphans.discard(name)
                await self._outbox.call("HDEL", self._keys.beats, f"{self._app}|{name}")

    def _can_judge(self, own: int, now: float) -> bool:
        """False while our own heart does not get through either: a frozen or full server, a lost network."""
        if own != self._own:
            self._own, self._own_since = own, now
        return now - self._own_since <= 2 * self._options.heartbeat + 0.1

    async def beats(self) -> dict[str, int]:
        """The heartbeats of this app's consumers."""
        flat = await self._outbox.call("HGETALL", self._keys.beats)
        prefix = f"{self._app}|".encode()
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {field[len(prefix) :].decode(): int(count) for field, count in pairs if field.startswith(prefix)}

    async def _find_orphans(self) -> set[str]:
        orphans = set()
        pending: set[tuple[str, bytes]] = set()
        mine = self._me()
        for stream in self._keys.inboxes(self._app).values():
            for row in await self._outbox.call("XINFO", "CONSUMERS", stream, GROUP):
                info = dict(zip(row[::2], row[1::2], strict=True))
                name = info[b"name"].decode()
                if name == mine and info[b"pending"]:
                    oldest = await self._outbox.call("XPENDING", stream, GROUP, "-", "+", AUDITED, mine)
                    pending |= {(stream, held[0]) for held in oldest}
                elif info[b"pending"]:
                    orphans.add(name)
        self._audit(pending)
        return orphans

    async def _take_over(self, dead: str) -> bool:
        """Take what there is room for; True when nothing is left."""
        finished = True
        for level, stream in reversed(self._keys.inboxes(self._app).items()):
            room = max(0, self._room(level))
            rows = await self._claim(level, stream, dead, room)
            for row in rows:
                self._taken(level, stream, row)
            finished = finished and len(rows) < room
        return finished

    async def _claim(self, level: Priority, stream: str, dead: str, most: int) -> list[list[Any]]:
        """Fence a consumer of one stream and take at most so many of its entries."""
        keys = [stream, self._keys.fenced, self._keys.ids, self._keys.ids_before]
        rows = await self._outbox.run("takeover", keys, [GROUP, dead, self._me(), most])
        if rows:
            log.warning("%s took over %d records of %s from dead %s", self._me(), len(rows), level.name, dead)
        self.taken_over += len(rows)
        claimed: list[list[Any]] = rows
        return claimed


def _place(row: list[Any]) -> tuple[int, int]:
    """An entry's place in its stream."""
    head, _, tail = row[0].decode().partition("-")
    return int(head), int(tail)
