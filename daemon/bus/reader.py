"""Reads two priority levels of an inbox into the scheduler, never more than there is room for.

Its connection always has one blocking XREADGROUP under way, which is never cancelled: a cancelled read can leave
entries delivered and unseen. Where the read has to end early it is released with CLIENT UNBLOCK.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.keys import GROUP
from petalbus.daemon.bus.lane import Lane
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.url import Address
from petalbus.schemas.vocabulary import Priority

log = logging.getLogger("petalbus.bus")


MAX_READ = 64
"""Records of one level in one read: taking them over keeps the event loop busy, and an urgent one waits for that."""


class Delivery(Protocol):
    """Takes one entry. ``fields`` None: it was trimmed away. ``found``: it may have been delivered before."""

    def __call__(self, level: Priority, stream: str, entry: bytes, fields: list[bytes] | None, *, found: bool) -> None:
        """Take it over."""


class Reader:
    """One lane for the levels given, highest first. ``room`` tells how many more records of a level may be read."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        streams: dict[Priority, str],
        consumer: Callable[[], str],
        room: Callable[[Priority], int],
        deliver: Delivery,
        delivered: Callable[[], None],
        groups: str,
        unblock: Callable[[int, Callable[[Any], None]], None],
        options: BusOptions,
    ) -> None:
        self._levels = {stream.encode(): level for level, stream in streams.items()}
        self._streams = streams
        self._consumer = consumer
        self._room = room
        self._deliver = deliver
        self._delivered = delivered
        self._groups = groups
        self._unblock = unblock
        self._loop = asyncio.get_running_loop()
        self._block = int(options.block * 1000)
        self._suspect_until: dict[Priority, tuple[int, int]] = {}
        self._client_id = 0
        self._pair = tuple(streams)
        self._reading: frozenset[Priority] = frozenset()
        self._shape = (0, 0, "")
        self._request = b""
        self._armed = False
        self._reads = 0
        self._parked = False
        self._stopping = False
        self._stopped = asyncio.Event()
        self.lane = Lane(
            name,
            address,
            prepare=self._prepare,
            on_live=lambda _connection: self._arm(),
            on_lost=self._lost,
            connect_timeout=options.connect_timeout,
            patience=options.block + options.patience,
        )

    def go_on(self) -> None:
        """The workers have nothing left to start: read again, in one write with what was settled on this connection."""
        connection = self.lane.connection
        if not self._armed and connection is not None:
            self._arm()
            connection.flush()  # also where there is no room for another read, or no reason

    def credit(self) -> None:
        """Records have started: read levels again that had no room."""
        if self._stopping or self.lane.connection is None:
            return
        if self._parked:
            self._arm()
        elif (
            self._armed
            and len(self._reading) < len(self._pair)
            and any(level not in self._reading and self._room(level) > 0 for level in self._pair)
        ):
            self._reading = frozenset(self._pair)  # ask once
            self._shape = (0, 0, "")
            self._end_read(self._reads)

    async def stop(self, *, timeout: float) -> None:
        """End the read in order: what it still delivers is delivered. Then close the connection."""
        self._stopping = True
        if self._armed and self.lane.connection is not None:
            self._end_read(self._reads)
            try:
                async with asyncio.timeout(timeout):
                    await self._stopped.wait()
            except TimeoutError:
                log.warning("the read on %s did not end within %g s; its entries stay pending", self.lane.name, timeout)
        await self.lane.close()

    def _end_read(self, read: int) -> None:
        """Release the blocking read, if it is still the one numbered ``read``."""
        if not self._armed or read != self._reads:
            return

        def answered(reply: Any) -> None:
            if reply == 0:
                # Two connections: this one may have overtaken the read, which then blocks for its full time.
                self._loop.call_later(0.001, self._end_read, read)

        self._unblock(self.lane.client_id, answered)

    def _arm(self) -> None:
        connection = self.lane.connection
        if self._stopping or connection is None or self._armed:
            return
        upper, lower = self._pair
        shape = (self._room(upper), self._room(lower), self._consumer())
        if shape != self._shape:
            self._prepare_request(*shape)
        self._parked = not self._reading
        if self._parked:
            return  # credit() arms again
        self._armed = True
        self._reads += 1
        connection.send(self._request, self._on_reply, more=True)
        connection.flush()

    def _prepare_request(self, upper_room: int, lower_room: int, consumer: str) -> None:
        rooms = dict(zip(self._pair, (upper_room, lower_room), strict=True))
        levels = [level for level, room in rooms.items() if room > 0]
        self._reading = frozenset(levels)
        self._shape = (upper_room, lower_room, consumer)
        if levels:
            streams = [self._streams[level] for level in levels]
            count = min(MAX_READ, *(rooms[level] for level in levels))
            head = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "BLOCK", self._block, "STREAMS")
            self._request = pack((*head, *streams, *(">" for _ in streams)))

    def _on_reply(self, reply: Any) -> None:
        self._armed = False
        if isinstance(reply, OutcomeUnknown):
            return  # the lane starts over, and drains what the lost answer held
        if isinstance(reply, ServerError):
            self.lane.restart(reply)
            return
        if reply:
            self._hand_over(reply, found=False)
            self._delivered()
        if self._stopping:
            self._stopped.set()
        else:
            # The workers run first: what a short handler settled leaves in one write with the next read (``go_on``).
            self._loop.call_soon(self._arm)

    @property
    def streams(self) -> list[str]:
        """The streams that it reads."""
        return list(self._streams.values())

    @property
    def free_connection(self) -> Connection | None:
        """The connection, while no read is under way on it."""
        connection = self.lane.connection
        return None if self._armed or self._stopping or connection is None or connection.broken else connection

    def _hand_over(self, reply: Any, *, found: bool) -> None:
        for stream, entries in reply:
            level = self._levels[stream]
            name = self._streams[level]
            suspect = self._suspect_until.get(level)
            for entry, fields in entries:
                again = found or (suspect is not None and _number(entry) <= suspect)
                self._deliver(level, name, entry, fields, found=again)
            if suspect is not None and entries and _number(entries[-1][0]) >= suspect:
                del self._suspect_until[level]

    async def _prepare(self, connection: Connection) -> None:
        """Drain our own pending entries; make groups that are missing, from the beginning and never from the end."""
        if self.lane.client_id != self._client_id and self._client_id:
            # a connection that only we have lost: the server must not deliver to the read it still sees there
            await connection.call("CLIENT", "UNBLOCK", self._client_id)
        self._client_id = self.lane.client_id
        for level, stream in self._streams.items():
            try:
                await self._drain(connection, stream)
            except ServerError as error:
                if error.prefix != "NOGROUP":
                    raise
                await self._make_group(connection, level, stream)
        self._delivered()

    async def _drain(self, connection: Connection, stream: str) -> None:
        after = b"0"
        while True:
            head = ("XREADGROUP", "GROUP", GROUP, self._consumer(), "COUNT", 100, "STREAMS")
            reply = await connection.call(*head, stream, after)
            if not reply or not reply[0][1]:
                return
            self._hand_over(reply, found=True)
            after = reply[0][1][-1][0]

    async def _make_group(self, connection: Connection, level: Priority, stream: str) -> None:
        if not await connection.call("SADD", self._groups, stream):
            # There was one, and it knew what was settled. The id window knows it too: everything that is in the stream
            # now is looked up there before it runs (``found``).
            rows = await connection.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
            if rows:
                self._suspect_until[level] = _number(rows[0][0])
        try:
            await connection.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        except ServerError as error:
            if error.prefix != "BUSYGROUP":  # a sibling was quicker
                raise

    def _lost(self) -> None:
        self._armed = False
        if self._stopping:
            self._stopped.set()


def _number(entry: bytes) -> tuple[int, int]:
    ms, _, n = entry.partition(b"-")
    return int(ms), int(n)
