"""Who is there: applications of the bus are shown in plain keys, and those that live on plain keys are found.

A status that the bus wrote carries its ``last_seen`` twice; a program that announces itself changes only one of them.
So the two are told apart without a key of their own that could be forgotten.

A program that was ever served on plain keys has messages of ours in its queue. They are for it alone, also while it is
away: its queue is not read for the bus unless it is seen to live there now.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.lease import RELEASED
from petalbus.daemon.services.plain_inward import cursors_key
from petalbus.schemas.vocabulary import APP_RULE

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

REFRESH: Final = 5.0
"""Seconds after which the time at which an application was last seen is written anew."""

ONLINE_KEY_SECONDS: Final = 30
"""The online key of an application ends so long after it, or this service, has gone."""

SENDER_SECONDS: Final = 600.0
"""A program that sends and never announced itself is served for so long after its last message."""

TERM: Final = 1.5
"""A heartbeat that stands still for so long (seconds, monotonic) is nobody's."""

MAX_PROGRAMS: Final = 256
"""Names of programs that are remembered; the oldest go first."""

_SCAN: Final = 500
_ONLINE: Final = "online"


@dataclass(frozen=True, slots=True)
class _Beat:
    """A heartbeat's count, since when it is so, and whether we saw it become so."""

    count: int
    since: float
    moved: bool


@dataclass(frozen=True, slots=True)
class Found:
    """One look. ``recipients``: applications of the bus; ``programs``: those that live on plain keys now."""

    recipients: frozenset[str]
    programs: frozenset[str]


class PlainPresence:
    """Looks at both sides. ``announced``: names that are looked for without having been found first."""

    def __init__(self, keys: Keys, outbox: Outbox, *, announced: Iterable[str]) -> None:
        self._keys = keys
        self._outbox = outbox
        self._mirrored: dict[str, tuple[str, float]] = {}
        self._names: dict[str, None] = dict.fromkeys(announced)
        self._fixed = frozenset(self._names)
        self._sent: dict[str, float] = {}
        self._cursor = b"0"
        self._beats: dict[str, _Beat] = {}

    async def look(self, senders: dict[str, None], ours: dict[str, str]) -> Found:
        """Who is where. ``senders``: programs that sent something since the last look; emptied. Raises BusError.

        ``ours``: for each program that is served already, the consumer that does it.
        """
        for name in senders:
            self._remember(name)
            self._sent[name] = time.monotonic()
        senders.clear()
        await self._discover()
        found = (self._outbox.ask("SMEMBERS", self._keys.apps), self._outbox.ask("HKEYS", cursors_key(self._keys)))
        apps, served = ({_text(name) for name in names} for names in await asyncio.gather(*found))
        wanted = await self._programs()
        moving, unsure = await self._on_the_bus(wanted | served, ours)
        programs = wanted - moving - unsure
        return Found(frozenset(apps - programs - ours.keys() - (served - moving)), frozenset(programs))

    async def mirror(self, apps: Collection[str]) -> None:
        """Show the bus's applications in plain keys. Raises BusError."""
        apps = sorted(apps)
        found = await asyncio.gather(*(self._hash(self._keys.status(app)) for app in apps))
        now = time.monotonic()
        for app, known in zip(apps, found, strict=True):
            status, seen = known.get("status", ""), known.get("last_seen", "0")
            shown, since = self._mirrored.get(app, ("", 0.0))
            if status and (status != shown or (status == _ONLINE and now - since >= REFRESH)):
                self._mirrored[app] = (status, now)
                await self._show(app, status, seen)
        for app in self._mirrored.keys() - set(apps):
            del self._mirrored[app]

    async def hide(self) -> None:
        """At the end: nobody keeps the statuses up to date any more. Raises BusError."""
        for app, (status, _) in list(self._mirrored.items()):
            if status == _ONLINE:
                await self._show(app, "offline", "")
        self._mirrored.clear()

    async def _show(self, app: str, status: str, seen: str) -> None:
        key = plain.status(app)
        if status != _ONLINE:
            told = await self._hash(key)
            if told and not plain.is_mirror(told):
                return  # a program of that name has announced itself there: it knows better
            seen = seen or told.get("last_seen", "0")
        fields = ("status", status, "last_seen", seen, "app_id", app, plain.MIRRORED, seen)
        steps = [self._outbox.ask("HSET", key, *fields)]
        if status == _ONLINE:
            steps.append(self._outbox.ask("SET", plain.online(app), plain.MIRRORED, "EX", ONLINE_KEY_SECONDS))
        else:
            steps.append(self._outbox.ask("DEL", plain.online(app)))
        try:
            await asyncio.gather(*steps)
        except ServerError as error:
            log.debug("%s cannot be written: %s", key, error)  # a key of another type; it is for other programs only

    async def _programs(self) -> set[str]:
        """Those that say that they are there, or that sent something lately and say nothing."""
        now = time.monotonic()
        self._sent = {name: since for name, since in self._sent.items() if now - since < SENDER_SECONDS}
        names = list(self._names)
        found = await asyncio.gather(*(self._hash(plain.status(name)) for name in names))
        return {name for name, told in zip(names, found, strict=True) if self._lives_here(name, told)}

    def _lives_here(self, name: str, told: dict[str, str]) -> bool:
        if told and not plain.is_mirror(told):
            return told.get("status") == _ONLINE
        return name in self._sent

    async def _discover(self) -> None:
        """One step through the server's keys: the whole way takes many looks, and none is noticed."""
        arguments = ("MATCH", f"{plain.STATUS}*", "COUNT", _SCAN, "TYPE", "hash")
        self._cursor, keys = await self._outbox.ask("SCAN", self._cursor, *arguments)
        for key in keys:
            name = _text(key).removeprefix(plain.STATUS)
            if name not in self._mirrored:
                self._remember(name)

    def _remember(self, name: str) -> None:
        if not APP_RULE.fullmatch(name) or name in self._names:
            return
        if len(self._names) >= MAX_PROGRAMS:
            oldest = next((one for one in self._names if one not in self._fixed and one not in self._sent), None)
            if oldest is None:
                return
            del self._names[oldest]
        self._names[name] = None

    async def _on_the_bus(self, names: set[str], ours: dict[str, str]) -> tuple[set[str], set[str]]:
        """Those that consume from the bus themselves: a heartbeat moves that is not our relay's; and those that may."""
        moving: set[str] = set()
        unsure: set[str] = set()
        if not names:
            return moving, unsure
        flat = await self._outbox.ask("HGETALL", self._keys.beats)
        beats = {_text(name): _number(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        now = time.monotonic()
        self._beats = {
            field: known if known is not None and known.count == count else _Beat(count, now, moved=known is not None)
            for field, count in beats.items()
            for known in (self._beats.get(field),)
        }
        for field, beat in self._beats.items():
            app, _, consumer = field.partition("|")
            if app not in names or beat.count == RELEASED or ours.get(app) == consumer or now - beat.since > TERM:
                continue
            (moving if beat.moved else unsure).add(app)
        return moving, unsure - ours.keys()

    async def _hash(self, key: str) -> dict[str, str]:
        try:
            flat = await self._outbox.ask("HGETALL", key)
        except ServerError:
            return {}  # a key of that name which is no hash announces nobody
        return {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _number(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0
