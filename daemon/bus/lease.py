"""Who is dead: leases by heartbeat, judged by the observer's own monotonic clock. Pure logic.

A consumer counts up a number. Nobody compares clocks: an observer sees whether the number moves. A consumer whose
number stood still for the whole term, while the observer was able to look, is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RELEASED = -1
"""The number of a consumer that stopped in order and gives its work away at once."""


@dataclass(slots=True)
class _Seen:
    count: int
    since: float


class LeaseTable:
    """The heartbeats that one observer has seen. ``term`` in seconds."""

    def __init__(self, *, term: float) -> None:
        self.term = term
        self._seen: dict[str, _Seen] = {}

    def observe(self, beats: Mapping[str, int], *, asked: float, now: float) -> set[str]:
        """Take note of heartbeats that were asked for at monotonic time ``asked`` and came at
        ``now``; returns the dead.

        The counts may be as old as ``asked``, so nobody is blamed for what came after it.
        """
        dead = set()
        for name in [name for name in self._seen if name not in beats]:
            del self._seen[name]
        for name, count in beats.items():
            seen = self._seen.get(name)
            if count == RELEASED:
                dead.add(name)
            elif seen is None or seen.count != count:
                self._seen[name] = _Seen(count, now)
            elif asked - seen.since >= self.term:
                dead.add(name)
        return dead

    def reset(self, now: float) -> None:
        """The observer could not look for a while: everybody gets a new term."""
        for seen in self._seen.values():
            seen.since = now

    def alive(self, name: str, now: float) -> bool | None:
        """True or False, or None while one term has not passed since the first look and the number has not moved."""
        seen = self._seen.get(name)
        if seen is None:
            return None
        return now - seen.since < self.term
