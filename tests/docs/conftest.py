"""A bus for the documents' examples: started as a reader would start it, found as the examples find it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from bus.clients import Clients
from cli.conftest import Buses, Daemon

from support.servers import RealServer


@pytest.fixture(scope="module")
def module_bus() -> Iterator[Daemon]:
    """`petalbus up --sim` on a default data directory of its own, for the tests of a module."""
    buses = Buses()
    try:
        state = buses.directory()
        daemon = buses.up("--sim", data=state / "petalbus", XDG_STATE_HOME=str(state))
        assert daemon.ready()["vehicle_heard"], daemon.report()
        yield daemon
    finally:
        buses.close()


@pytest.fixture
def running_bus(module_bus: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The same, as the bus that `petalbus.connect` finds by itself."""
    monkeypatch.setenv("XDG_STATE_HOME", str(module_bus.data.parent))
    monkeypatch.delenv("PETALBUS_DATA", raising=False)
    return module_bus


@pytest.fixture
async def clients(server: RealServer, bus_name: str) -> AsyncIterator[Clients]:
    """Clients of a bus of the test's own on the shared server."""
    made = Clients(server.url, bus_name)
    yield made
    await made.close()
