"""Which topic filters are wanted, which the broker has, and how the one becomes the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from petalbus.handlers.mqtt.direct.connection import Connection
from petalbus.handlers.mqtt.direct.errors import LinkFailure

A_REQUEST: Final = 8
"""Filters that one SUBSCRIBE may carry on AWS IoT."""

MOST: Final = 50
"""Filters that one connection may have on AWS IoT."""

_REFUSED: Final = 0x80
_NOT_AUTHORIZED: Final = 0x87
_ENOUGH: Final = 2
"""So many times a filter that was asked for alone may end the connection."""

_MOST_BYTES: Final = 65535
_INVALID: Final = 0x8F


class Filters:
    """What we want, and what we know of the session that the broker keeps for us."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when something is to be done."""
        self.refused: dict[str, int] = {}
        """The broker's reason code for each filter that it does not take."""
        self._careful = False
        self._ended: Counter[str] = Counter()
        self._wanted: dict[str, int] = {}
        self._held: dict[str, int] = {}

    def want(self, filters: Mapping[str, int]) -> None:
        """Exactly these from now on, with their quality of service."""
        wanted = {name: min(1, max(0, qos)) for name, qos in filters.items()}
        if wanted != self._wanted:
            self._wanted = wanted
            self.changed.set()

    def start_session(self, *, present: bool) -> None:
        """The broker says whether it remembers our filters."""
        if not present:
            self._held.clear()

    def forget(self) -> None:
        """We are somebody else to the broker now."""
        self._held.clear()
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
        self._careful = self._careful or bool(self._ended)
        accepted = dict(islice(((name, qos) for name, qos in self._wanted.items() if _valid(name)), MOST))
        self.refused = {name: _INVALID for name in self._wanted if not _valid(name)}
        old = [name for name in self._held if name not in accepted]
        surplus = max(0, len(self._held.keys() | accepted.keys()) - MOST)
        await self._give_up(connection, old[:surplus])
        known = {name: qos for name, qos in accepted.items() if self._held.get(name) == qos}
        await self._ask(connection, [one for one in accepted.items() if one[0] not in known], retained=True)
        if anew:
            await self._ask(connection, list(known.items()), retained=False)
        await self._give_up(connection, old[surplus:])
        self._careful = False

    async def _ask(self, connection: Connection, filters: list[tuple[str, int]], *, retained: bool) -> None:
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
            if connection.lost.done() and connection.lost.result().judged:
                self._careful = True
                if len(batch) == 1:
                    self._ended[batch[0][0]] += 1
            raise
        for name, _ in batch:
            self._ended.pop(name, None)
        return codes

    async def _give_up(self, connection: Connection, names: list[str]) -> None:
        for batch in _batches(names):
            await connection.unsubscribe(batch)
            for name in batch:
                self._held.pop(name, None)

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
