"""Fixtures of the chaos tests: a world with a server of its own, or on the shared one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus.clients import Clients
from chaos.world import World

from support.procs import Children
from support.servers import RealServer


@pytest.fixture
async def world(server: RealServer, bus_name: str, children: Children, tmp_path: Path) -> AsyncIterator[World]:
    """Members and clients on a bus of the test's own on the shared server."""
    clients = Clients(server.url, bus_name)
    yield World(server, clients, children, tmp_path)
    await clients.close()


@pytest.fixture
async def own_world(own_server: RealServer, bus_name: str, children: Children, tmp_path: Path) -> AsyncIterator[World]:
    """The same with a server that the test may kill."""
    clients = Clients(own_server.url, bus_name)
    yield World(own_server, clients, children, tmp_path)
    await clients.close()
