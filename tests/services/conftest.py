"""Fixtures of the services' tests: the daemon's own client, on a bus of each test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bus.clients import Clients
from petalbus.daemon.bus.client import Bus

from support.servers import RealServer


@pytest.fixture
async def clients(redis_server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients of a bus of the test's own, on every real server found: the scripts must work on all of them."""
    made = Clients(redis_server.url, bus_name)
    yield made
    await made.close()


@pytest.fixture
async def bus(clients: Clients) -> Bus:
    """The client that the daemon's services work on."""
    return await clients.open("petalbus")


@pytest.fixture
async def own_clients(own_server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients on a server of the test's own."""
    made = Clients(own_server.url, bus_name)
    yield made
    await made.close()
