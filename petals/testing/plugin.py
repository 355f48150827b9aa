"""The fixtures for tests of petals. pytest loads this module by itself wherever petalbus is installed, so it is light.

The fixtures are plain functions: they work under pytest-asyncio in both of its modes, and under anyio's plugin. A bus
starts with the first ``async with`` on it, which a PetalHarness does by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from petalbus.petals.testing.buses import MemoryBus, RealBus, TestBus


@pytest.fixture
def memory_bus() -> MemoryBus:
    """A bus in memory, for ``PetalHarness(..., bus=memory_bus)``: quick, and gone with the test."""
    from petalbus.petals.testing.buses import MemoryBus  # noqa: PLC0415  # only tests that use it pay for it

    return MemoryBus()


@pytest.fixture
def real_bus() -> RealBus:
    """A bus on a real embedded server, for ``PetalHarness(..., bus=real_bus)``."""
    from petalbus.petals.testing.buses import RealBus  # noqa: PLC0415  # the same

    return RealBus()


@pytest.fixture(params=["memory", "real"])
def each_bus(request: pytest.FixtureRequest) -> TestBus:
    """One test on both buses, one after the other."""
    from petalbus.petals.testing.buses import MemoryBus, RealBus  # noqa: PLC0415  # the same

    return MemoryBus() if request.param == "memory" else RealBus()
