"""Which bytes of a file are here, and which are missing. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Pieces:
    """A file from ``start`` on, as far as it is here. ``next``: all before it is here. ``end``: where it ends. Pure."""

    def __init__(self, start: int, size: int, *, note: Callable[[int, bytes], None] | None = None) -> None:
        """``note`` gets each piece that is taken."""
        self.next = start
        self.end = size
        self.front = start
        """Behind the last byte that is here."""
        self.got = 0
        """Bytes that came, each counted once (but where packets overlap)."""
        self.held = 0
        """Bytes that wait for a gap before them."""
        self._note = note
        self._ready = bytearray()
        self._ahead: dict[int, bytes] = {}
        self._order: list[int] = []

    @property
    def complete(self) -> bool:
        """True when nothing is missing."""
        return self.next >= self.end

    def put(self, offset: int, data: bytes) -> None:
        """A piece came. What lies behind the end, or is here already, is left out."""
        data = data[: max(0, self.end - offset)]
        stop = offset + len(data)
        if not data or stop <= self.next:
            return
        if self._note is not None:
            self._note(offset, data)
        self.front = max(self.front, stop)
        if offset > self.next:
            known = len(self._ahead.get(offset, b""))
            if known < len(data):
                if not known:
                    heapq.heappush(self._order, offset)
                self._ahead[offset] = data
                self.held += len(data) - known
                self.got += len(data) - known
            return
        self.got += stop - self.next
        self._append(offset, data)
        while self._order and self._order[0] <= self.next:
            offset = heapq.heappop(self._order)
            data = self._ahead.pop(offset)
            self.held -= len(data)
            self._append(offset, data)

    def _append(self, offset: int, data: bytes) -> None:
        new = data[self.next - offset : max(0, self.end - offset)]
        self._ready += new
        self.next += len(new)

    def finish(self, end: int) -> None:
        """The file ends here, earlier than was thought."""
        self.end = max(self.next, min(self.end, end))
        self.front = min(self.front, self.end)

    def holes(self) -> list[tuple[int, int]]:
        """The gaps before ``front``."""
        found: list[tuple[int, int]] = []
        at = self.next
        for offset in sorted(self._ahead):
            if offset > at:
                found.append((at, offset))
            at = max(at, offset + len(self._ahead[offset]))
        return found

    def take(self) -> bytes:
        """What is ready, in order, since it was last asked for."""
        ready, self._ready = bytes(self._ready), bytearray()
        return ready
