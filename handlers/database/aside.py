"""Writes that have left their places to others: so many fail at a time that they would hold up all that can be done.

They come back by themselves, each after a pause. Until then nothing else is done to their items: what comes later would
make them too late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.database.errors import Failing

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

MOST: Final = 20_000
"""Places that are remembered: more than the bus gives us records at a time."""

_WAITS: Final = (b"q", b"p")


class SetAside(Failing):
    """It waits elsewhere, and comes back."""


@dataclass(slots=True)
class Place:
    """One record's. ``seen``: successes of the link at its last try; ``told``: reasons that its sender knows."""

    item: str
    record: str
    seen: int | None = None
    told: set[str] = field(default_factory=set)


class Aside:
    """By item, in order. ``ask``: one command to the bus's server, which is waited for."""

    def __init__(self, ask: Callable[..., Awaitable[Any]], keys: Keys) -> None:
        self._ask = ask
        self._windows = (keys.ids, keys.ids_before)
        self._of: dict[str, dict[str, Place]] = {}
        self._count = 0

    def place(self, item: str, record: str) -> Place:
        """Where it was, or a new place."""
        return self._of.get(item, {}).get(record) or Place(item, record)

    async def check(self, item: str, place: Place | None) -> None:
        """Raises SetAside for what comes after one of them; ``place``: its own, None if it is no record.

        To be called in the item's turn, as ``put``.
        """
        for first in list(self._of.get(item, {}).values()):
            if first is place:
                return
            if await self._waits(first.record):
                if place is not None:
                    self.put(place)
                raise SetAside("an earlier write of this item waits: the cloud cannot serve it now")
            self.drop(first)  # it was cancelled, for example

    def put(self, place: Place) -> None:
        """It goes aside: behind those of its item, or it keeps its place among them."""
        if self._count >= MOST:
            self.drop(next(iter(next(iter(self._of.values())).values())))
        places = self._of.setdefault(place.item, {})
        self._count += place.record not in places
        places[place.record] = place

    def drop(self, place: Place) -> None:
        """It has ended."""
        places = self._of.get(place.item, {})
        if places.pop(place.record, None) is not None:
            self._count -= 1
            if not places:
                del self._of[place.item]

    async def _waits(self, record: str) -> bool:
        """Each attempt writes it into the id window: one that is not there has ended, too."""
        known = [await self._ask("HGET", window, record) for window in self._windows]
        return (known[0] or known[1] or b"")[:1] in _WAITS
