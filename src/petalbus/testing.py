"""For tests of petals: run one on a bus, in memory or on a real server, speak with it, and break what can break.

    from petalbus.testing import Faults, PetalHarness

    async def test_camera(memory_bus):
        async with PetalHarness(Camera, bus=memory_bus, faults=Faults(seed=7, drop=0.1)) as h:
            reply = await h.request("photo.take", {"count": 3})

pytest finds the fixtures ``memory_bus``, ``real_bus`` and ``each_bus`` by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from petalbus.petals.base import Petal
from petalbus.petals.hosting import HostOptions
from petalbus.petals.testing import harness as _harness
from petalbus.petals.testing.asgi import WebSocketClosed
from petalbus.petals.testing.buses import TEST_OPTIONS, MemoryBus, RealBus, TestBus
from petalbus.petals.testing.faults import Fault, Faults
from petalbus.petals.testing.records import Captured, NotExpected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from petalbus.petals.testing.asgi import Application

P = TypeVar("P", bound=Petal)

__all__ = [
    "PetalHarness",
    "Faults",
    "Fault",
    "Captured",
    "NotExpected",
    "MemoryBus",
    "RealBus",
    "TestBus",
    "TEST_OPTIONS",
    "WebSocketClosed",
]


class PetalHarness(_harness.PetalHarness[P], Generic[P]):
    """Runs one petal on a bus: see ``petalbus.petals.testing.harness``, whose words hold here."""

    __doc__ = _harness.PetalHarness.__doc__

    def _host_options(self) -> HostOptions:
        return HostOptions(templates=_templates)

    def _make_app(self, petal: Petal) -> Application:
        from petalbus.daemon.http.petal_app import petal_app  # noqa: PLC0415  # FastAPI comes with it

        return petal_app(petal)


def _templates(petal: Petal) -> Mapping[str, Any]:
    from petalbus.daemon.http.files import templates_of  # noqa: PLC0415  # the same

    return templates_of(petal)
