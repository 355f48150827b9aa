"""Fixtures of the replay's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bus.clients import Clients

from support.servers import RealServer, kill_leftovers, short_directory


@pytest.fixture
async def clients(server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients of the bus that is recorded."""
    made = Clients(server.url, bus_name)
    yield made
    await made.close()


@pytest.fixture
def into() -> Iterator[Path]:
    """An empty directory for the fresh bus."""
    with short_directory() as directory:
        try:
            yield directory / "fresh"
        finally:
            kill_leftovers(directory / "fresh")
