"""Every scenario, in the order in which a round plays them."""

from __future__ import annotations

from typing import cast

from petalbus.daemon.bench.scenarios import beside, critical, drain, oneway, publish, request, share, stream
from petalbus.daemon.bench.scenarios.base import Scenario

SCENARIOS: tuple[Scenario, ...] = tuple(
    cast(Scenario, module) for module in (request, beside, oneway, stream, publish, drain, critical, share)
)
