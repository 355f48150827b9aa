"""Bus clients of a test: opened with short options where a test needs them, all closed at its end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.schemas.record import Record


class Clients:
    """Makes clients of one bus. ``url`` and ``bus`` are what they connect to unless told otherwise."""

    def __init__(self, url: str, bus: str) -> None:
        self.url = url
        self.bus = bus
        self._made: list[Bus] = []

    def make(self, app: str, *, url: str | None = None, **options: Any) -> Bus:
        """A client that is not started yet: register handlers, then ``await bus.start()``."""
        bus = Bus(url or self.url, app=app, bus=self.bus, options=BusOptions(**options))
        self._made.append(bus)
        return bus

    async def open(self, app: str, *, url: str | None = None, **options: Any) -> Bus:
        """A started client."""
        bus = self.make(app, url=url, **options)
        await bus.start()
        return bus

    async def close(self) -> None:
        """Close all that are open, the last first, and see that each closes in order and in time."""
        for bus in reversed(self._made):
            async with asyncio.timeout(12):
                await bus.close()


async def until(condition: Callable[[], Any], what: str, *, seconds: float = 10.0) -> None:
    """Wait until ``condition()`` is true, or an awaitable of it; an AssertionError that says ``what`` was awaited."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.005)


async def replies_to(bus: Bus, message_id: str) -> list[Record]:
    """Every reply record to a message of ``bus``'s app, oldest first, as it lies in the stream."""
    rows = await bus.call("XRANGE", bus.keys.replies(bus.app), "-", "+")
    records = [Record.from_fields(fields, stream_id=entry.decode()) for entry, fields in rows]
    return [record for record in records if record.reply_to == message_id]


async def pending(bus: Bus, app: str) -> int:
    """Entries of an app's inbox that are delivered and not acknowledged."""
    total = 0
    for stream in bus.keys.inboxes(app).values():
        if await bus.call("EXISTS", stream):
            rows = await bus.call("XINFO", "GROUPS", stream)
            total += sum(dict(zip(row[::2], row[1::2], strict=True))[b"pending"] for row in rows)
    return total


class Counting:
    """An app that counts how often each record ran, and answers with its number."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.runs = Counter[str]()
        self.order: list[int] = []

        @bus.on("n", concurrency=None)
        async def handle(record: Record) -> dict[str, int]:
            self.runs[record.id] += 1
            self.order.append(record.data["n"])
            return {"n": record.data["n"]}
