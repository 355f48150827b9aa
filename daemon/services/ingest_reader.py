"""Reads the ingest stream through its group, never more than a little ahead.

Its connection always has one blocking XREADGROUP under way, which is never cancelled; after every connect the entries
that were read and not adopted come first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.lane import Lane

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

INGEST_GROUP: Final = "ingest"
CONSUMER: Final = "daemon"
"""One name for good: a daemon that comes back finds what the one before had read and not adopted."""

_MANY: Final = 64
_FEW: Final = 4
_LARGE_BYTES: Final = 16 * 1024

Raw = tuple[bytes, "list[bytes] | None"]
"""Entry id and fields; None when the entry was deleted before it was read."""


class IngestReader:
    """Entries of the ingest stream in order; each is held until ``settled``, and comes once."""

    def __init__(self, bus: Bus, outbox: Outbox) -> None:
        self._stream = bus.keys.ingest
        self._outbox = outbox
        self._block = int(bus.options.block * 1000)
        self._queue: deque[Raw] = deque()
        self._held: set[bytes] = set()
        self._count = _MANY
        self._armed = False
        self._stopping = False
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self.lane = Lane(
            "ingest",
            bus.address,
            prepare=self._prepare,
            on_live=lambda _connection: self._arm(),
            on_lost=self._lost,
            connect_timeout=bus.options.connect_timeout,
            patience=bus.options.block + bus.options.patience,
        )

    @property
    def waiting(self) -> int:
        """Entries read and not taken yet."""
        return len(self._queue)

    async def take(self, *, most: int, size: int) -> list[Raw]:
        """Wait for entries; up to ``most`` of them, about ``size`` bytes. Empty once the reader has stopped."""
        while not self._queue:
            if self._stopping:
                return []
            self._arrived.clear()
            self._arm()
            await self._arrived.wait()
        taken: list[Raw] = []
        room = size
        while self._queue and len(taken) < most and room > 0:
            raw = self._queue.popleft()
            room -= sum(map(len, raw[1] or ()))
            taken.append(raw)
        self._arm()
        return taken

    def settled(self, entry: bytes) -> None:
        """An entry is acknowledged: it will not come again."""
        self._held.discard(entry)

    async def stop(self, *, timeout: float = 2.0) -> None:
        """End the read in order, then close the connection. What was read and not adopted waits for the next start."""
        self._stopping = True
        self._arrived.set()
        if self._armed and self.lane.connection is not None:
            self._outbox.submit(pack(("CLIENT", "UNBLOCK", self.lane.client_id)), lambda _reply: None)
            try:
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("the read of %s did not end; its entries come again at the next start", self._stream)
        await self.lane.close()

    def _arm(self) -> None:
        connection = self.lane.connection
        if connection is None or self._armed or self._stopping or len(self._queue) >= self._count:
            return
        self._armed = True
        self._idle.clear()
        head = ("XREADGROUP", "GROUP", INGEST_GROUP, CONSUMER, "COUNT", self._count, "BLOCK", self._block, "STREAMS")
        connection.send(pack((*head, self._stream, ">")), self._on_reply)

    def _on_reply(self, reply: Any) -> None:
        self._armed = False
        self._idle.set()
        if isinstance(reply, OutcomeUnknown):
            return  # the lane starts over, and drains what the lost answer held
        if isinstance(reply, ServerError):
            self.lane.restart(reply)
            return
        if reply:
            self._accept(reply[0][1])
        self._arm()

    def _accept(self, entries: list[Raw]) -> None:
        size = 0
        for entry, fields in entries:
            size += sum(map(len, fields or ()))
            if entry not in self._held:
                self._held.add(entry)
                self._queue.append((entry, fields))
        # a record may have 1 MiB: few of those at a time keep the memory small, many small ones the rate high
        self._count = _FEW if size > _LARGE_BYTES * len(entries) else _MANY
        self._arrived.set()

    async def _prepare(self, connection: Connection) -> None:
        try:
            await connection.call("XGROUP", "CREATE", self._stream, INGEST_GROUP, "0", "MKSTREAM")
        except ServerError as error:
            if error.prefix != "BUSYGROUP":
                raise
        after: bytes = b"0"
        while True:
            head = ("XREADGROUP", "GROUP", INGEST_GROUP, CONSUMER, "COUNT", self._count, "STREAMS")
            reply = await connection.call(*head, self._stream, after)
            if not reply or not reply[0][1]:
                return
            self._accept(reply[0][1])
            after = reply[0][1][-1][0]

    def _lost(self) -> None:
        self._armed = False
        self._idle.set()
