"""Which topic filters the apps here want: read from their hash, checked, and forgotten when an app is gone for good.

An app that stops takes its wishes back. One that was killed cannot: when it has not been present for a minute it is
done for it; and so it takes commands no more, unless it is an installed petal, for which they wait. What was
subscribed over HTTP stays. A wish that is no filter breaks no other one: it is left out, and
told in the statistics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from itertools import islice
from typing import TYPE_CHECKING, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt import words

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mqtt.options import EgressOptions

log = logging.getLogger(__name__)

GONE_S: Final = 60.0
"""Seconds for which an app must be absent before its wishes are forgotten: a restart is quicker."""

_LOOK_S: Final = 15.0
_TOLD: Final = 20
"""Of the wishes that are left out, so many are told."""
_SHOWN: Final = 200
"""Characters of a wish that are told."""


class Wishes:
    """Reads them for the link. ``changed()`` is called when some were forgotten."""

    def __init__(
        self,
        bus: Bus,
        limits: EgressOptions,
        *,
        changed: Callable[[], object],
        installed: Callable[[], Collection[str] | None] = lambda: (),
        gone_after: float = GONE_S,
        look_every: float = _LOOK_S,
    ) -> None:
        """``gone_after`` and ``look_every`` in seconds. ``limits``: bytes and levels that the broker takes.
        ``installed``: names of the petals that there are; None while that is not known.
        """
        self._bus = bus
        self._limits = limits
        self._changed = changed
        self._installed = installed
        self._gone_after = gone_after
        self._look_every = look_every
        self._gone: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        """What is wished and cannot be: why not."""
        self.forgotten = 0

    async def read(self) -> dict[str, int]:
        """The filters that are wanted, each with the highest quality of service (0 or 1). Raises BusError."""
        found: dict[str, int] = {}
        refused: dict[str, str] = {}
        for _, app, wish, qos in await self._all():
            name = as_filter(wish)
            problem = filter_problem(name, self._limits)
            if problem is None:
                found[name] = max(found.get(name, 0), qos)
                continue
            shown = wish.encode("utf-8", "backslashreplace").decode()[:_SHOWN]
            refused[shown] = problem
            if shown not in self.refused:
                log.warning("%s wants to hear of %r, which cannot be subscribed: %s", app, shown, problem)
        self.refused = refused
        return found

    def statistics(self) -> dict[str, object]:
        """Wishes that are left out (the first ones, with the reason), their number, and how many were forgotten."""
        told = dict(islice(self.refused.items(), _TOLD))
        return {"refused": told, "refused_count": len(self.refused), "forgotten": self.forgotten}

    async def run(self) -> None:
        """Forget the wishes of apps that are gone, until cancelled."""
        while True:
            await asyncio.sleep(self._look_every)
            try:
                await self._look()
            except BusError as error:
                self._gone.clear()  # while the bus is away nobody can be present
                log.info("nobody can tell now which apps are gone: %s", error)

    async def _look(self) -> None:
        installed = self._installed()
        takers = set() if installed is None else await self._takers() - {*installed}
        wishing = {app for _, app, _, _ in await self._all()} - {words.HTTP} | takers
        if not wishing:
            self._gone.clear()
            return
        now = time.monotonic()  # before the look: it takes a second
        present = {one.app for one in await self._bus.applications() if one.status == "online"}
        self._gone = {app: self._gone.get(app, now) for app in wishing - present}
        over = {app for app, since in self._gone.items() if now - since >= self._gone_after}
        if gone := takers & over:
            await self._bus.ask("HDEL", words.handlers_key(self._bus.keys), *sorted(gone))
            log.info("no commands are offered any more to %s", ", ".join(sorted(gone)))
        fields = [field for field, app, _, _ in await self._all() if app in over]
        if not fields:
            return
        await self._bus.ask("HDEL", words.filters_key(self._bus.keys), *fields)
        self.forgotten += len(fields)
        named = ", ".join(sorted(over))
        log.info("%d wanted MQTT topics are forgotten: %s has not been here for a while", len(fields), named)
        self._changed()

    async def _takers(self) -> set[str]:
        fields = await self._bus.ask("HKEYS", words.handlers_key(self._bus.keys))
        return {field.decode(errors="replace") for field in fields}

    async def _all(self) -> list[tuple[bytes, str, str, int]]:
        """Field, app, wish and quality of service of every entry."""
        entries = []
        reply = await self._bus.ask("HGETALL", words.filters_key(self._bus.keys))
        for field, qos in words.hash_items(reply):
            app, _, wish = field.decode("utf-8", "surrogateescape").partition("|")
            entries.append((field, app, wish, 1 if qos == b"1" else 0))
        return entries


def as_filter(wish: str) -> str:
    """A wish as the broker reads it: ``*`` for a whole level, as patterns here have it, is ``+`` there."""
    return "/".join("+" if level == "*" else level for level in wish.split("/"))


def filter_problem(name: str, limits: EgressOptions) -> str | None:
    """Why a topic filter cannot be subscribed; None when it can be."""
    if not name or "\0" in name:
        return "it is empty, or holds a zero"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is no text that UTF-8 can write"
    if size > limits.max_topic:
        return f"it has {size} bytes; at most {limits.max_topic} are allowed"
    levels = name.split("/")
    if len(levels) > limits.max_levels:
        return f"it has {len(levels)} levels; at most {limits.max_levels} are allowed (mqtt_max_levels)"
    if any(len(level) > 1 and ("+" in level or "#" in level) for level in levels):
        return "+ and # stand for whole levels: a/+/b, a/#"
    if "#" in levels[:-1]:
        return "# stands at the end only"
    if "None" in levels:
        return "a level is 'None': something was not known when it was made"
    return None
