"""Frames on their way out: from any thread into a bounded queue, from there in order to the vehicle's inbox."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mavlink.decode import CONTENT_TYPE
from petalbus.petals.proxies.errors import ProxyError
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1000
MAX_AGE_S: Final = 2.0
"""A frame that could not leave for so long is dropped: an old set-point must not fly when the bus is back."""

_MAX_BATCH: Final = 64
_MAX_BURSTS: Final = 64
MAX_BURST: Final = 1000
_COMPLAIN_EVERY_S: Final = 10.0


class Outgoing:
    """The queue. ``put`` may be called from any thread, everything else on the proxy's loop."""

    def __init__(self, own_bus: Callable[[], Awaitable[Bus]]) -> None:
        self.sent = 0
        self.refused = 0
        """Frames that were not taken, or not stored: the queue was full, they were too old, the bus refused them."""
        self._own_bus = own_bus
        self._key = f"frames-{new_id()}"
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._guard = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._bursts: set[asyncio.Task[None]] = set()
        self._complained = float("-inf")

    def put(self, frame: bytes, count: int = 1) -> None:
        """Queue a frame ``count`` times; refuses it, and says so, when there is no room."""
        with self._guard:
            room = MAX_WAITING - len(self._waiting)
            self._waiting.extend([(time.monotonic(), frame)] * min(room, count))
        if room < count:
            self.complain(count - max(0, room), f"{MAX_WAITING} frames wait already")

    def flush(self) -> None:
        """Send what waits. On the proxy's loop."""
        if self._task is None and self._waiting:
            self._task = asyncio.create_task(self._send(), name="mavlink.outgoing")

    def burst(self, frame: bytes, count: int, interval: float) -> None:
        """Send a frame ``count`` times, ``interval`` seconds apart. On the proxy's loop."""
        if len(self._bursts) >= _MAX_BURSTS:
            self.complain(count, f"{_MAX_BURSTS} bursts are under way already")
            return
        task = asyncio.create_task(self._burst(frame, count, interval), name="mavlink.burst")
        self._bursts.add(task)
        task.add_done_callback(self._bursts.discard)

    async def close(self) -> None:
        """Give up what still waits."""
        tasks = [*self._bursts, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with self._guard:
            self._waiting.clear()

    def complain(self, frames: int, reason: object) -> None:
        """Count frames that do not leave, and say so now and then."""
        self.refused += frames
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_EVERY_S:
            self._complained = now
            log.warning("%d frame(s) to the vehicle were not sent, %d so far: %s", frames, self.refused, reason)

    def statistics(self) -> dict[str, Any]:
        """Counters."""
        return {"sent": self.sent, "refused": self.refused, "waiting": len(self._waiting), "bursts": len(self._bursts)}

    async def _burst(self, frame: bytes, count: int, interval: float) -> None:
        due = time.monotonic()
        for _ in range(count):
            self.put(frame)
            self.flush()
            due += interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _send(self) -> None:
        try:
            while batch := self._take():
                try:
                    bus = await self._own_bus()
                    await bus.send(
                        "vehicle",
                        "mavlink.send",
                        b"".join(batch),
                        content_type=CONTENT_TYPE,
                        priority=Priority.HIGH,
                        deadline=MAX_AGE_S,
                        key=self._key,
                    )
                    self.sent += len(batch)
                except (BusError, ProxyError) as error:
                    self.complain(len(batch), error)
        finally:
            self._task = None

    def _take(self) -> list[bytes]:
        oldest = time.monotonic() - MAX_AGE_S
        stale = 0
        batch: list[bytes] = []
        with self._guard:
            while self._waiting and len(batch) < _MAX_BATCH:
                at, frame = self._waiting.popleft()
                if at < oldest:
                    stale += 1
                else:
                    batch.append(frame)
        if stale:
            self.complain(stale, f"they waited longer than {MAX_AGE_S:g} s")
        return batch
