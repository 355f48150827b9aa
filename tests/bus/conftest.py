"""Fixtures of the bus's tests: clients on the shared real server, on a bus of each test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bus.clients import Clients

from support.proxy import Proxy
from support.servers import RealServer


@pytest.fixture
async def clients(server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients of a bus of the test's own on the shared server."""
    made = Clients(server.url, bus_name)
    yield made
    await made.close()


@pytest.fixture
async def own_clients(own_server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients on a server of the test's own, which it may kill, freeze and restart."""
    made = Clients(own_server.url, bus_name)
    yield made
    await made.close()


@pytest.fixture
async def proxy(server: RealServer) -> AsyncIterator[Proxy]:
    """A wire to the shared server that can be cut."""
    async with Proxy(server.url) as wire:
        yield wire
