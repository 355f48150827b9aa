"""Which topic filters are wanted, which the broker has, and how the one becomes the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Protocol

from petalbus.handlers.mqtt.direct.connection import Connection
from petalbus.handlers.mqtt.direct.errors import Blame, LinkFailure

A_REQUEST: Final = 8
"""Filters that one SUBSCRIBE may carry on AWS IoT."""

MOST: Final = 50
"""Filters that one connection may have on AWS IoT."""

_REFUSED: Final = 0x80
_NOT_AUTHORIZED: Final = 0x87
_ENOUGH: Final = 3
"""So many times a filter that was asked for alone may end the connection."""

_MOST_BYTES: Final = 65535
_INVALID: Final = 0x8F


class Kept(Protocol):
    """Remembers over our restarts what the session may hold; see ``kept``."""

    async def load(self, client_id: str) -> list[str] | None:
        """The filters that the session may hold; None: not known now."""

    async def store(self, client_id: str, names: Iterable[str]) -> bool:
        """Whether it is remembered that the session may hold these."""


class Filters:
    """What we want, and what we know of the session that the broker keeps for us."""

    def __init__(self, kept: Kept | None = None) -> None:
        self.changed = asyncio.Event()
        """Set when something is to be done."""
        self.refused: dict[str, int] = {}
        """The broker's reason code for each filter that it does not take."""
        self._careful = False
        self._ended: Counter[str] = Counter()
        self._wanted: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._kept = kept
        self._client_id = ""
        self._former: set[str] = set()
        self._unknown = False
        self._stored: set[str] | None = None

    def want(self, filters: Mapping[str, int]) -> None:
        """Exactly these from now on, with their quality of service."""
        wanted = {name: min(1, max(0, qos)) for name, qos in filters.items()}
        if wanted != self._wanted:
            self._wanted = wanted
            self.changed.set()

    @property
    def behind(self) -> bool:
        """Whether the bus could not be asked or told what the session holds: try again soon."""
        return self._unknown or (self._kept is not None and self._stored != self._held.keys() | self._former)

    def start_session(self, client_id: str, *, present: bool) -> None:
        """The broker says whether it remembers our filters."""
        if not present:
            self._held.clear()
            self._former.clear()
            self._unknown = False
        elif client_id != self._client_id:  # it was another life of this program that has made them
            self._unknown = self._kept is not None
        self._client_id = client_id

    def forget(self) -> None:
        """We are somebody else to the broker now."""
        self._held.clear()
        self._former.clear()
        self._client_id = ""
        self._unknown = False
        self._stored = None
        self.refused.clear()
        self.pardon()

    def pardon(self) -> None:
        """Forget which filters seemed to end connections: the broker's own end did, or it is time to try again."""
        self._careful = False
        self._ended.clear()

    async def establish(self, connection: Connection, *, anew: bool) -> None:
        """Make what the broker has what we want: new ones first, then the old ones go. Raises LinkFailure.

        ``anew``: ask for all, also for those it should have. An old one goes first only where there is no place.
        """
        self.changed.clear()
        await self._load()
        self._careful = self._careful or bool(self._ended)
        accepted = dict(islice(((name, qos) for name, qos in self._wanted.items() if _valid(name)), MOST))
        self.refused = {name: _INVALID for name in self._wanted if not _valid(name)}
        old = [name for name in (*self._held, *sorted(self._former)) if name not in accepted]
        surplus = max(0, len(self._held.keys() | self._former | accepted.keys()) - MOST)
        await self._store(self._held.keys() | self._former | accepted.keys())  # before the broker has them
        await self._give_up(connection, old[:surplus])
        known = {name: qos for name, qos in accepted.items() if self._held.get(name) == qos}
        await self._ask(connection, [one for one in accepted.items() if one[0] not in known], retained=True)
        if anew:
            await self._ask(connection, list(known.items()), retained=False)
        await self._give_up(connection, old[surplus:])
        self._former.clear()
        self._careful = False
        if self._stored is not None:  # if the bus does not answer we have waited for it once
            await self._store(self._held.keys())

    async def _load(self) -> None:
        """What an earlier life of this program has left in the session goes, unless it is still wanted."""
        if not self._unknown or self._kept is None:
            return
        names = await self._kept.load(self._client_id)
        if names is not None:
            self._former = {name for name in names if name not in self._held}
            self._unknown = False

    async def _store(self, names: Collection[str]) -> None:
        """What was there before is kept until it is known, lest it is forgotten."""
        if self._kept is None or self._unknown or self._stored == set(names):
            return
        wanted, self._stored = set(names), None  # not known, should we be cancelled
        if await self._kept.store(self._client_id, wanted):
            self._stored = wanted

    async def _ask(self, connection: Connection, filters: list[tuple[str, int]], *, retained: bool) -> None:
        # one that has ended connections is asked for last: the others work, and the link was alive just before
        filters = sorted(filters, key=lambda one: self._ended[one[0]])
        for batch in _batches(filters, 1 if self._careful else A_REQUEST):
            codes = await self._answered(connection, batch, retained=retained)
            for (name, qos), code in zip(batch, codes, strict=True):
                if code >= _REFUSED:
                    self.refused[name] = code
                    self._held.pop(name, None)
                else:
                    self._held[name] = qos

    async def _answered(
        self, connection: Connection, batch: list[tuple[str, int]], *, retained: bool
    ) -> tuple[int, ...]:
        """The broker's codes. One that ends the connection instead is asked one by one, and at last no more."""
        if len(batch) == 1 and self._ended[batch[0][0]] >= _ENOUGH:
            return (_NOT_AUTHORIZED,)
        try:
            codes = await connection.subscribe(batch, retained=retained)
        except (LinkFailure, asyncio.CancelledError):
            blame = connection.lost.result().blame if connection.lost.done() else Blame.NONE
            self._careful = self._careful or blame > Blame.NONE
            if len(batch) == 1 and blame >= Blame.CLOSED:  # a reset accuses nobody
                self._ended[batch[0][0]] += _ENOUGH if blame is Blame.FORBIDDEN else 1
            raise
        for name, _ in batch:
            self._ended.pop(name, None)
        return codes

    async def _give_up(self, connection: Connection, names: list[str]) -> None:
        for batch in _batches(names):
            await connection.unsubscribe(batch)
            for name in batch:
                self._held.pop(name, None)
                self._former.discard(name)

    def problem(self) -> tuple[str, str, int | None] | None:
        """What is wrong with the filters, if anything: a stable word, a sentence, the broker's code."""
        if self.refused:
            named = ", ".join(f"{name} ({code:#04x})" for name, code in islice(self.refused.items(), 5))
            text = (
                f"the broker does not let us subscribe to {len(self.refused)} of {len(self._wanted)} filters: {named}"
            )
            code = next(iter(self.refused.values()))
            return "filter-refused", f"{text}; the others work. Check the broker's policy for this client", code
        if len(self._wanted) > MOST:
            left = list(self._wanted)[MOST:]
            named = ", ".join(left[:5])
            text = f"{len(self._wanted)} filters are wanted and {MOST} are possible; left out: {named}"
            return "too-many-filters", f"{text}. Use wildcards, or subscribe to less", None
        return None

    def describe(self) -> dict[str, Any]:
        """The filters that the broker has, and those that it does not want."""
        return {"filters": dict(self._held), "filters_wanted": len(self._wanted), "filters_refused": dict(self.refused)}


def _batches(items: Iterable[Any], size: int = A_REQUEST) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _valid(name: str) -> bool:
    """Whether it is a filter at all. A level None is what becomes of an identity that was not known."""
    levels = name.split("/")
    if not name or "\0" in name or len(name.encode()) > _MOST_BYTES or "None" in levels:
        return False
    if any(len(level) > 1 and ("+" in level or "#" in level) for level in levels):
        return False
    return "#" not in levels[:-1]
