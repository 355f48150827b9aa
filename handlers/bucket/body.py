"""What a request sends: bytes in memory that count how much of them has left, and when."""

from __future__ import annotations

import asyncio
import io
import time
from collections import deque
from collections.abc import Awaitable
from typing import Final, TypeVar

from petalbus.handlers.bucket.errors import Away

T = TypeVar("T")

STALL_SECONDS: Final = 60.0
"""A request of which nothing leaves for so long is given up: TCP itself would hope for a quarter of an hour."""

_WINDOW_S: Final = 5.0


class Meter:
    """Bytes of one upload. ``done``: stored, or on their way; ``sent``: all that ever left, repetitions included."""

    def __init__(self) -> None:
        self.total = 0
        self.kept = 0
        self.stored = 0
        self.flying = 0
        self.sent = 0
        self._marks: deque[tuple[float, int]] = deque()

    @property
    def done(self) -> int:
        """How far it is."""
        return min(self.total, self.kept + self.stored + self.flying)

    def begin(self, total: int) -> None:
        """A new attempt."""
        self.total, self.kept, self.stored, self.flying = total, 0, 0, 0

    def left(self, count: int) -> None:
        """So many bytes more have been given to the connection."""
        self.flying += count
        self.sent += count

    def ended(self, body: Body, *, stored: bool) -> None:
        """A request is over."""
        self.flying -= body.counted
        if stored:
            self.stored += body.size

    def rate(self) -> float:
        """Bytes a second, over the last few seconds."""
        now = time.monotonic()
        marks = self._marks
        marks.append((now, self.sent))
        while len(marks) > 2 and now - marks[0][0] > _WINDOW_S:
            marks.popleft()
        passed = now - marks[0][0]
        return (self.sent - marks[0][1]) / passed if passed > 0 else 0.0


class Body(io.BytesIO):
    """The body of one request."""

    def __init__(self, data: bytes, meter: Meter) -> None:
        super().__init__(data)
        self.size = len(data)
        self.counted = 0
        self._meter = meter

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's; counts."""
        data = super().read(size)
        self._count(self.tell())
        return data

    def seek(self, place: int, whence: int = 0, /) -> int:
        """As a file's: a request that begins again takes back what was counted."""
        found = super().seek(place, whence)
        if whence == 0 and place < self.counted:
            self._meter.flying -= self.counted - place
            self.counted = place
        return found

    def _count(self, place: int) -> None:
        if place > self.counted:
            self._meter.left(place - self.counted)
            self.counted = place


async def moving(request: Awaitable[T], body: Body, *, stall: float = STALL_SECONDS) -> T:
    """Wait for a request while its body moves. Raises Away when nothing has moved for ``stall`` seconds."""
    task = asyncio.ensure_future(request)
    try:
        seen = -1
        while True:
            await asyncio.wait([task], timeout=stall)
            if task.done():
                return task.result()
            if body.counted == seen and body.counted < body.size:
                raise Away(f"the store took nothing for {stall:.0f} s")
            seen = body.counted
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # we may have been cancelled just when it failed
