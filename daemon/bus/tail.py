"""Reading a topic without a group: what comes from now on, for who wants the present and nothing that he missed.

A group keeps history for a reader that is away; a tail keeps nothing on the server. After a break it goes on where it
stood. What was trimmed meanwhile is lost to it, and nobody is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.keys import checked_name
from petalbus.daemon.bus.lane import Lane

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

Entries = list[tuple[bytes, list[bytes]]]
OnEntries = Callable[[Entries], None]

_COUNT: Final = 512


class Tail:
    """Calls ``on_entries`` with what is appended to a topic: stream ids and flat fields, as they are stored."""

    def __init__(self, bus: Bus, topic: str, *, on_entries: OnEntries, newest: bool = False, rest: float = 0.0) -> None:
        """``newest``: begin with the newest entry that is there already. ``rest``: seconds between two reads at least.

        ``bus`` must be open. ``on_entries`` is a plain function and must not raise.
        """
        self.topic = topic
        self.entries = 0
        self._stream = bus.keys.topic(checked_name(topic, what="topic"))
        self._on_entries = on_entries
        self._newest = newest
        self._rest = rest
        self._block = int(bus.options.block * 1000)
        self._after: bytes | None = None
        self._last_read = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._timeout = bus.options.connect_timeout
        self._lane = Lane(
            f"tail-{topic}",
            bus.address,
            prepare=self._prepare,
            on_live=lambda _connection: self._arm(),
            on_lost=self._stop_timer,
            connect_timeout=bus.options.connect_timeout,
            patience=bus.options.block + bus.options.patience,
        )

    async def open(self) -> None:
        """Connect; what is appended from then on is seen. Raises BusUnavailable; it goes on trying all the same."""
        if not self._lane.started:
            self._lane.start()
        await self._lane.wait_live(self._timeout)

    async def aclose(self) -> None:
        """Stop. Nothing is left behind on the server."""
        self._stop_timer()
        await self._lane.close()

    async def _prepare(self, connection: Connection) -> None:
        """Find the place. Where the server lost its last entries, ours would lie beyond its end: begin there anew."""
        rows = await connection.call("XREVRANGE", self._stream, "+", "-", "COUNT", 1)
        end: bytes = rows[0][0] if rows else b"0-0"
        if self._after is not None and _place(self._after) <= _place(end):
            return
        first, self._after = self._after is None, end
        if first and self._newest and rows:
            self._take([(rows[0][0], rows[0][1])])

    def _arm(self) -> None:
        self._timer = None
        connection = self._lane.connection
        if connection is None:
            return
        self._last_read = self._loop.time()
        request = ("XREAD", "COUNT", _COUNT, "BLOCK", self._block, "STREAMS", self._stream, self._after or b"$")
        connection.send(pack(request), self._on_reply)

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            self._lane.restart(reply)
            return
        if reply:
            # RESP2 gives a list of pairs, and each stream's entries are in order
            entries: Entries = reply[0][1]
            self._after = entries[-1][0]
            self._take(entries)
        wait = self._last_read + self._rest - self._loop.time()
        if self._rest > 0 and wait > 0:
            self._timer = self._loop.call_later(wait, self._arm)
        else:
            self._arm()

    def _take(self, entries: Entries) -> None:
        self.entries += len(entries)
        self._on_entries(entries)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _place(stream_id: bytes) -> tuple[int, int]:
    ms, _, number = stream_id.partition(b"-")
    return int(ms), int(number or 0)
