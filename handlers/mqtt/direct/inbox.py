"""What came in: one queue and one writer, so that order is kept; acknowledged when it is stored, not before.

A message outlives its connection here. When the broker brings it again it takes its old place, and one that was stored
already is acknowledged at once: nothing is lost by a broker that forgets, and little comes twice. AWS IoT brings one
again on the same connection, too, until we acknowledge it: it is the same message then, acknowledged once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import time
from collections import OrderedDict, deque
from dataclasses import replace
from typing import Any, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt.direct.connection import Connection
from petalbus.handlers.mqtt.direct.packets import Publish
from petalbus.handlers.mqtt.transport import Incoming, Receiver
from petalbus.schemas.stamps import boot_clock_ns

log = logging.getLogger(__name__)

MOST: Final = 128
"""Messages that are held before reading stops. More than a broker may have unacknowledged: only quality 0 fills it."""

MOST_BYTES: Final = 4 * 1024 * 1024

_AT_ONCE: Final = 32
_RETRY_FIRST: Final = 0.05
_RETRY_MOST: Final = 5.0
_MOST_REMEMBERED: Final = 256
_HELD_UP_NS: Final = 5_000_000_000
"""What took longer to be stored may have kept the broker from bringing more."""
_CROSSING_S: Final = 10.0
"""Seconds for which a repetition may have been on its way when our acknowledgement left."""


class _Entry:
    __slots__ = ("connection", "message", "mid", "stored")

    def __init__(self, message: Incoming, mid: int | None, connection: Connection | None) -> None:
        self.message = message
        self.mid = mid
        self.connection = connection
        self.stored = False


class Inbox:
    """``await run(receiver)`` until cancelled; ``arrived`` is called by connections."""

    def __init__(self) -> None:
        self.received = 0
        self.again = 0
        """Messages that came again and were recognised."""
        self.not_stored = ""
        """Why the message in hand cannot be stored now; empty when all is well."""
        self._queue: deque[_Entry] = deque()
        self._bytes = 0
        self._open: dict[int, _Entry] = {}
        self._left: OrderedDict[int, tuple[bytes, _Entry]] = OrderedDict()
        self._done: OrderedDict[int, tuple[bytes, float]] = OrderedDict()
        self._connection: Connection | None = None
        self._arrived = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closed = False
        self._all_since = time.monotonic()
        """Since when the broker has held nothing back for us, as far as we know."""

    def attach(self, connection: Connection) -> None:
        """Messages come from this connection from now on."""
        self._connection = connection
        self._closed = False
        self._flow()

    def start_session(self, *, present: bool) -> None:
        """The broker says whether it remembers us. If not, nothing of before comes again."""
        self._all_since = time.monotonic() if present else -math.inf
        if not present:
            self._left.clear()

    def detach(self) -> None:
        """The connection is gone. What it brought is stored nevertheless, and recognised when it comes again."""
        for mid, entry in self._open.items():
            entry.connection = None
            self._left[mid] = (_print(entry.message), entry)
            self._left.move_to_end(mid)
        while len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
        self._open.clear()
        self._done.clear()
        self._connection = None

    def close(self) -> None:
        """Take no more: the broker keeps what it brings from now on."""
        self._closed = True

    async def empty(self) -> None:
        """Wait until everything is stored."""
        await self._empty.wait()

    def arrived(self, publish: Publish, connection: Connection) -> None:
        """A message of the connection."""
        if self._closed or connection is not self._connection:
            return
        mid, message = publish.mid, publish.message
        if mid is not None and (self._repeated(message, mid, connection) or self._known(message, mid, connection)):
            return
        message = replace(message, link_s=time.monotonic() - self._all_since)
        entry = _Entry(message, mid, connection)
        if mid is not None:
            self._open[mid] = entry
        self._queue.append(entry)
        self._bytes += len(message.payload)
        self.received += 1
        self._empty.clear()
        self._arrived.set()
        self._flow()

    async def run(self, receiver: Receiver) -> None:
        """Store what comes, in order, until cancelled. Never raises what the receiver raises."""
        delay = _RETRY_FIRST
        while True:
            while not self._queue:
                self._empty.set()
                self._arrived.clear()
                await self._arrived.wait()
            # several at once: they are stored in the order in which they are begun. After a failure one alone, as with
            # several the first could fail and the second be stored before it, at the moment when the bus comes back
            most = 1 if self.not_stored else _AT_ONCE
            some = [self._queue[place] for place in range(min(most, len(self._queue)))]
            stored = await asyncio.gather(*(self._tried(receiver, entry.message) for entry in some))
            if not all(stored):
                some = some[: stored.index(False)]  # those behind it are handed over again: that makes no second record
            for entry in some:
                self._queue.popleft()
                self._bytes -= len(entry.message.payload)
                entry.stored = True
                self._acknowledge(entry)
            if not all(stored) or boot_clock_ns() - some[0].message.arrived_ns > _HELD_UP_NS:
                self._all_since = time.monotonic()  # without our acknowledgements the broker brings no more
            self._flow()
            if all(stored):
                self.not_stored, delay = "", _RETRY_FIRST
            else:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # no secret
                delay = min(2 * delay, _RETRY_MOST)

    def describe(self) -> dict[str, Any]:
        """Counters."""
        return {
            "received": self.received,
            "received_again": self.again,
            "unstored": len(self._queue),
            "not_stored": self.not_stored,
        }

    def _repeated(self, message: Incoming, mid: int, connection: Connection) -> bool:
        """Whether this connection has brought it before.

        It gets no acknowledgement of its own: the id may belong to another message by then, which would be confirmed
        before it is stored.
        """
        entry = self._open.get(mid)
        if entry is not None:
            before = entry.message
            if (before.topic, before.payload) != (message.topic, message.payload):
                return False  # against the rules; the new one has the id now
            self.again += 1
            return True
        if not message.duplicate or mid not in self._done or self._done[mid][0] != _print(message):
            return False
        self.again += 1
        if time.monotonic() - self._done[mid][1] > _CROSSING_S:  # our acknowledgement never came to it
            connection.acknowledge(mid)
        return True

    def _known(self, message: Incoming, mid: int, connection: Connection) -> bool:
        """Whether it is one that an earlier connection brought; MQTT brings it again under its old id."""
        before = self._left.pop(mid, None)
        if before is None or not message.duplicate or before[0] != _print(message):
            return False
        entry = before[1]
        entry.connection = connection
        self._open[mid] = entry
        self.again += 1
        if entry.stored:
            self._acknowledge(entry)
        return True

    def _acknowledge(self, entry: _Entry) -> None:
        if entry.mid is None or entry.connection is None or self._open.get(entry.mid) is not entry:
            return
        del self._open[entry.mid]
        self._done[entry.mid] = (_print(entry.message), time.monotonic())
        self._done.move_to_end(entry.mid)
        if len(self._done) > _MOST_REMEMBERED:
            self._done.popitem(last=False)
        entry.connection.acknowledge(entry.mid)

    async def _tried(self, receiver: Receiver, message: Incoming) -> bool:
        """Whether it is stored, or kept as invalid."""
        try:
            try:
                await receiver.received(message)
            except (BusError, OSError):  # it passes
                raise
            except Exception as error:
                # a fault of ours, or of the message's: a further attempt would end alike, with all others behind it
                log.exception("a message on %s cannot be a record", message.topic)
                keep = getattr(receiver, "invalid", None)
                if keep is None:
                    raise
                await keep(message.topic, message.payload, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  # whatever it is, the message is not stored and must be
            if not self.not_stored:
                log.warning("a message cannot be stored now and is kept: %s: %s", type(error).__name__, error)
            self.not_stored = f"{type(error).__name__}: {error}"
            return False
        return True

    def _flow(self) -> None:
        if self._connection is None:
            return
        if len(self._queue) >= MOST or self._bytes >= MOST_BYTES:
            self._all_since = time.monotonic()
            self._connection.read_on(reading=False)
        elif len(self._queue) <= MOST // 2 and self._bytes <= MOST_BYTES // 2:
            self._connection.read_on(reading=True)


def _print(message: Incoming) -> bytes:
    return hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=16).digest()
