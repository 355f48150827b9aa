"""Orders to come down or to stay: what was given before one of them does not leave after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.errors import OrderOvertaken
from petalbus.schemas.stamps import boot_clock_ns

_EARLY_NS: Final = 1_000_000_000
"""So much too early may the stamp of another machine's record be: it compared its clock with ours over a slow link."""

_MOST_SOURCES: Final = 64
"""Apps whose newest stamps are kept; the stamps of others are no longer told from another clock's."""


class Given(NamedTuple):
    """When an order was given, in ns of this boot's clock, and which app's clock says so."""

    at: int
    source: str = ""


class Downs:
    """Those of one vehicle. ``given`` is when an order was given; None: nobody knows.

    An order may wait for long before it is looked at: behind others of its sender, or in the inbox while the handler is
    away. So what counts is when it was given, and only where nobody knows that, when it is looked at.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._known = 0
        self._given: dict[str, tuple[int, int]] = {}
        """By app: the newest stamp, and the latest time at which that one can have been given."""
        self._ways = 0
        self._left = (0, 0)
        self.at = float("-inf")
        """When the last one came, monotonic seconds."""

    def note(self, given: Given | None = None) -> None:
        """One comes now, ours or another program's. Say not when it was ``given`` where it cuts the motors: then
        nothing leaves that was given until now, whatever its stamp says.
        """
        self._count += 1
        self.at = self._clock()
        latest = _latest(given)
        if given is None:
            self._known = max(self._known, latest)
            return
        stamp, before = self._given.pop(given.source, (0, 0))
        self._given[given.source] = max(stamp, given.at), max(before, latest)
        while len(self._given) > _MOST_SOURCES:
            _, oldest = self._given.pop(next(iter(self._given)))
            self._known = max(self._known, oldest)

    def since(self, given: Given | None = None) -> Callable[[], bool]:
        """Tells, whenever it is called, whether one came after an order that is looked at now."""
        before = self._count
        return lambda: self._count != before or (given is not None and given.at < self._newest(given.source))

    def _newest(self, source: str) -> int:
        """When the newest one was given, as this app must see it: its own stamps are of one clock."""
        own, _ = self._given.get(source, (0, 0))
        return max(self._known, own, *(latest for app, (_, latest) in self._given.items() if app != source))

    def way(self, name: str, given: Given | None = None, *, lands: bool = False) -> Callable[[], None]:
        """One that says how to fly (hold, return, land) is looked at now. Call what is returned just before it leaves:
        it raises OrderOvertaken where a later one has left, which it would undo.

        It waits for no later one that has not left: else orders said again and again would keep each other back. One
        that ``lands`` counts from now: a stamp that is too early must not make it older than a hold.
        """
        self._ways += 1
        ours = _latest(given), self._ways
        least = (boot_clock_ns(), self._ways) if lands else ours

        def leaving() -> None:
            if self._left > least:
                raise OrderOvertaken(f"{name} was given up: a later order to come down or to stay has left already")
            self._left = max(self._left, ours)

        return leaving


def _latest(given: Given | None) -> int:
    """The latest time at which it can have been given."""
    now = boot_clock_ns()
    return now if given is None else min(given.at + _EARLY_NS, now)
