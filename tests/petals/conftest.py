"""What tests of petals share."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from petalbus.daemon.bus.client import Bus

from .place import Place
from support.servers import RealServer


@pytest.fixture
async def place(tmp_path: Path, server: RealServer, bus_name: str) -> AsyncIterator[Place]:
    before = set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    made = Place(tmp_path, server, bus_name)
    try:
        yield made
    finally:
        if made.manager is not None:
            await made.manager.stop()
        sys.path.remove(str(tmp_path))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
                del sys.modules[name]


@pytest.fixture
async def ground(server: RealServer, bus_name: str) -> AsyncIterator[Bus]:
    async with Bus(server.url, app="ground", bus=bus_name) as bus:
        yield bus
