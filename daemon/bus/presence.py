"""Which applications are there: heartbeats judged by monotonic time."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox


class Application(NamedTuple):
    """One application. ``last_seen`` is wall-clock seconds and for people only; ``status`` was judged without it."""

    app: str
    status: str
    last_seen: float | None
    consumers: int


class Presence:
    """Looks at all heartbeats of the bus."""

    def __init__(self, keys: Keys, outbox: Outbox, options: BusOptions) -> None:
        self._keys = keys
        self._outbox = outbox
        self._period = options.heartbeat

    async def applications(self) -> list[Application]:
        """Every application that has ever said hello, with its status ``online`` or ``offline``.

        Takes up to four heartbeats: a count that stands still can only be told from one that moves by looking twice.
        """
        first = await self._beats()
        live: set[str] = set()
        end = time.monotonic() + 4 * self._period
        unsure = {field for field, count in first.items() if count >= 0}
        while unsure and time.monotonic() < end:
            await asyncio.sleep(self._period / 2)
            now = await self._beats()
            live |= {field for field in unsure if now.get(field, first[field]) != first[field]}
            unsure -= live
        consumers: dict[str, int] = {}
        for field in live:
            app = field.partition("|")[0]
            consumers[app] = consumers.get(app, 0) + 1
        return [await self._application(app, consumers.get(app, 0)) for app in await self._known(first)]

    async def online(self) -> set[str]:
        """The applications that have a live consumer."""
        return {application.app for application in await self.applications() if application.status == "online"}

    async def _application(self, app: str, consumers: int) -> Application:
        stored = await self._outbox.call("HMGET", self._keys.status(app), "status", "last_seen")
        seen = float(stored[1]) if stored[1] else None
        return Application(app, "online" if consumers else "offline", seen, consumers)

    async def _known(self, beats: dict[str, int]) -> list[str]:
        apps = {field.partition("|")[0] for field in beats}
        apps |= {name.decode() for name in await self._outbox.call("SMEMBERS", self._keys.apps)}
        return sorted(apps)

    async def _beats(self) -> dict[str, int]:
        flat = await self._outbox.call("HGETALL", self._keys.beats)
        return {flat[at].decode(): int(flat[at + 1]) for at in range(0, len(flat), 2)}
