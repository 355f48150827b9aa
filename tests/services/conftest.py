"""Fixtures of the services' tests: the daemon's own client, on a bus of each test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from bus.clients import Clients
from petalbus.daemon.bus.client import Bus
from services.plain_program import plain

from support.servers import RealServer


@pytest.fixture
def bus_server(redis_server: RealServer) -> RealServer:
    """Where the bus is: every real server found, for the scripts must work on all of them."""
    return redis_server


@pytest.fixture
async def clients(bus_server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients of a bus of the test's own."""
    made = Clients(bus_server.url, bus_name)
    yield made
    await made.close()


@pytest.fixture
async def keys(bus_server: RealServer) -> AsyncIterator[redis.asyncio.Redis]:
    """What a program on plain keys speaks to the server with."""
    async with plain(bus_server) as client:
        yield client


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
