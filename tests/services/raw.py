"""What a program without our library does: plain commands, fields as they are on the wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services import Ingest, IngestOptions, Janitor, JanitorOptions

Entry = tuple[str, dict[str, bytes]]


async def xadd(bus: Bus, **fields: Any) -> str:
    """One raw record into the ingest stream; its entry id there."""
    flat = [part for name, value in fields.items() for part in (name, value)]
    entry: bytes = await bus.call("XADD", bus.keys.ingest, "*", *flat)
    return entry.decode()


async def entries(bus: Bus, key: str) -> list[Entry]:
    """A whole stream."""
    found: list[Entry] = []
    after = "-"
    while rows := await bus.call("XRANGE", key, after, "+", "COUNT", 1000):
        for entry, fields in rows:
            named = {name.decode(): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
            found.append((entry.decode(), named))
        after = f"({found[-1][0]}"
    return found


async def dead(bus: Bus) -> list[dict[str, bytes]]:
    """The dead letters of the ingest."""
    return [fields for _, fields in await entries(bus, bus.keys.dead("ingest"))]


async def empty(bus: Bus) -> None:
    """Wait until every raw record has become something."""

    async def settled() -> bool:
        return not await bus.call("XLEN", bus.keys.ingest)

    await until(settled, "the ingest stream is empty")


@contextlib.asynccontextmanager
async def ingesting(bus: Bus, **options: Any) -> AsyncIterator[Ingest]:
    """The ingest service beside a test; ends in order."""
    ingest = Ingest(bus, options=IngestOptions(**options))
    task = asyncio.create_task(ingest.run(), name="test-ingest")
    try:
        yield ingest
    finally:
        ingest.stop()
        async with asyncio.timeout(10):
            await task


@contextlib.asynccontextmanager
async def keeping(bus: Bus, **options: Any) -> AsyncIterator[Janitor]:
    """The janitor beside a test."""
    janitor = Janitor(bus, options=JanitorOptions(**options))
    task = asyncio.create_task(janitor.run(), name="test-janitor")
    try:
        yield janitor
    finally:
        janitor.stop()
        async with asyncio.timeout(10):
            await task


__all__ = ["Clients", "Entry", "dead", "empty", "entries", "ingesting", "keeping", "until", "xadd"]
