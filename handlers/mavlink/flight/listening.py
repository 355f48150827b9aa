"""What is heard of one vehicle's streams, and when to begin anew with asking for them. Pure.

A vehicle forgets what was asked of it when it boots. That shows in heartbeats that stop and come back, in a boot clock
that goes back, or, where it boots between two heartbeats, in this: all that it used to send has stopped at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SILENCES: Final = 3
"""How often in one connection silence alone is a reason: somebody may have ended all streams on purpose."""

_CLOCK_BACK_MS: Final = 1000


class Listening:
    """One vehicle. ``wishes``: message id -> messages a second. Times are monotonic seconds."""

    def __init__(self, wishes: Mapping[int, float], *, patience: float = 6.0) -> None:
        """``patience``: seconds without any of the streams that were there, until they count as ended."""
        self.heard: dict[int, float] = {}
        """Message id -> when it came last, since the connection began."""
        self._wishes = wishes
        self._patience = patience
        self._connected = False
        self._boot_ms: int | None = None
        self._silences = 0

    def note(self, msgid: int, now: float) -> None:
        """A message came."""
        self.heard[msgid] = now

    def missing(self) -> list[int]:
        """What is wished for and was not heard in this connection, in the order of the wishes."""
        return [msgid for msgid in self._wishes if msgid not in self.heard]

    def begins(self, now: float, *, connected: bool, boot_ms: int | None) -> bool:
        """Called a few times a second: whether a connection begins now. ``boot_ms``: the vehicle's clock, if known."""
        came, self._connected = connected and not self._connected, connected
        back = boot_ms is not None and self._boot_ms is not None and boot_ms < self._boot_ms - _CLOCK_BACK_MS
        self._boot_ms = self._boot_ms if boot_ms is None else boot_ms
        if came or (back and connected):
            self._silences = 0
        elif connected and self._silences < SILENCES and self._all_ended(now):
            self._silences += 1
        else:
            return False
        self.heard.clear()
        return True

    def _all_ended(self, now: float) -> bool:
        there = [(msgid, self.heard[msgid]) for msgid in self._wishes if msgid in self.heard]
        return bool(there) and all(now - last > max(self._patience, 3.0 / self._wishes[msgid]) for msgid, last in there)
