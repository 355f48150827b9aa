"""The bridge of channels: what programs publish that know nothing of the bus becomes a record, once.

It listens to the channels of its patterns. What a mark announces was recorded by its publisher; everything else is
recorded here, in the order in which it was heard. Publish/subscribe keeps nothing: while the bridge is away foreign
messages pass unseen, and that it was away is told (``bus.loss``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import channels
from petalbus.daemon.bus.errors import BusError
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("petalbus.services")

MAX_WAITING: Final = 20_000
"""Messages that wait to be stored; beyond that the oldest goes, and is told."""

BATCH: Final = 256
_PRIVATE: Final = (b"__key", b"__sentinel__", b"channel:")
"""What the server says of its keys, of itself, and the notices of plain queues."""

_COMPLAIN_EVERY: Final = 10.0


class PubSubBridge:
    """``await run()`` until it is cancelled. ``patterns``: of the channels that are recorded; none: nothing is."""

    def __init__(self, bus: Bus, *, patterns: Iterable[str]) -> None:
        self._bus = bus
        self._patterns = list(dict.fromkeys(patterns))
        self._waiting: deque[list[bytes]] = deque()
        self._arrived = asyncio.Event()
        self._marked: tuple[bytes, int] | None = None
        self._away_since: float | None = None
        self._telling: asyncio.Task[None] | None = None
        self._complained = float("-inf")
        self.recorded = 0
        self.own = 0
        self.refused = 0
        self.lost = 0
        self.breaks = 0

    async def run(self) -> None:
        """Work until cancelled."""
        if not self._patterns:
            await asyncio.Event().wait()
        keys = self._bus.keys
        await self._describe()
        listener = channels.Listener(
            self._bus, "pubsub-bridge", heard=self._heard, live=self._live, lost=self._note_break
        )
        listener.add(channels=[channels.marks(keys), channels.bridges(keys)], patterns=self._patterns)
        listener.start()
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._store()
        finally:
            if self._telling is not None:
                self._telling.cancel()
            await listener.close()

    async def _describe(self) -> None:
        """Who publishes must know which channels we count among the subscribers of."""
        await self._bus.call("HSET", channels.description(self._bus.keys), "patterns", "\n".join(self._patterns))

    def statistics(self) -> dict[str, Any]:
        """Messages recorded, those that had a record already, refused and lost ones, and breaks of the connection."""
        return {
            "recorded": self.recorded,
            "own": self.own,
            "refused": self.refused,
            "lost": self.lost,
            "breaks": self.breaks,
            "waiting": len(self._waiting),
        }

    def _heard(self, pattern: bytes | None, channel: bytes, message: bytes) -> None:
        prefix = self._bus.keys.prefix.encode()
        if pattern is None:
            if channel == channels.marks(self._bus.keys).encode():
                fits = channels.matching(self._patterns, message.decode("utf-8", "replace"))
                self._marked = (message, len(fits))
            return
        if channel.startswith((prefix, *_PRIVATE)):
            return  # the bus's own channels, and those of others that are no messages
        if self._marked is not None and self._marked[0] == channel and self._marked[1] > 0:
            # one for each of our patterns that it fits: then the next one is another message
            self._marked = (channel, self._marked[1] - 1)
            self.own += self._marked[1] == 0
            return
        fits = channels.matching(self._patterns, channel.decode("utf-8", "replace"))
        if len(fits) > 1 and pattern.decode("utf-8", "replace") != fits[0]:
            return  # heard once for each pattern
        self._take(channel, message)

    def _take(self, channel: bytes, message: bytes) -> None:
        if len(message) > MAX_PAYLOAD_BYTES:
            self.refused += 1
            message = b'{"refused": "a message of %d bytes is not recorded"}' % len(message)
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.lost += 1
            self._complain(f"messages come faster than they can be stored; {self.lost} lost so far")
        clock = self._bus.clock
        self._waiting.append(channels.record_items(channel, message, source=channels.FOREIGN, clock=clock))
        self._arrived.set()

    async def _store(self) -> None:
        stream = self._bus.keys.topic(channels.TOPIC)
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            answers = await asyncio.gather(
                *(self._bus.call("XADD", stream, "*", *items) for items in batch), return_exceptions=True
            )
            failed = [answer for answer in answers if isinstance(answer, BaseException)]
            self.recorded += len(batch) - len(failed)
            if failed:
                self.lost += len(failed)
                self._complain(f"{len(failed)} messages of channels could not be stored: {failed[0]}")

    def _live(self) -> None:
        since, self._away_since = self._away_since, None
        if since is not None:
            seconds = time.monotonic() - since
            log.warning("channels were not heard for %.1f s: foreign messages of that time have no record", seconds)
            self._telling = asyncio.create_task(self._tell_break(seconds), name="pubsub-bridge-break")

    def _note_break(self) -> None:
        self.breaks += 1
        self._marked = None
        if self._away_since is None:
            self._away_since = time.monotonic()

    async def _tell_break(self, seconds: float) -> None:
        data = {"stream": self._bus.keys.topic(channels.TOPIC), "reason": "the bridge was away", "seconds": seconds}
        try:
            await self._describe()  # the server may have lost its last seconds
            await self._bus.publish("bus.loss", "bus.loss", data)
        except BusError as error:
            log.warning("that the bridge was away could not be recorded: %s", error)

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_EVERY:
            self._complained = now
            log.warning(text)
