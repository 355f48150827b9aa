"""``GET /metrics``: the numbers of the daemon's status, as Prometheus reads them.

The status is the one source: what a part tells of itself in ``statistics`` is here, under the part's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_]+")
_MOST: Final = 5000
"""Numbers that are told; a part with more of them tells the first ones."""

_DEEP: Final = 6

Status = Callable[[], Mapping[str, Any]]


def metrics_router(status: Status) -> APIRouter:
    """``status``: the daemon's, with ``parts``."""
    router = APIRouter(tags=["health"])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Status(status))

    @router.get("/metrics", summary="All numbers of the daemon, for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


class _Status(Collector):
    """Makes metrics of the status, when they are asked for."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing is known before it is asked."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Each number as a gauge ``petalbus_<part>_<path>``; whether a part runs as ``petalbus_part_running``."""
        told = self._status()
        parts = told.get("parts", {})
        running = GaugeMetricFamily("petalbus_part_running", "Whether a part of the daemon runs", labels=["part"])
        restarts = GaugeMetricFamily("petalbus_part_restarts", "Restarts of a part since the start", labels=["part"])
        for name, part in parts.items():
            running.add_metric([name], float(part.get("state") == "running"))
            restarts.add_metric([name], float(part.get("restarts", 0)))
        yield running
        yield restarts
        inside = {name: part.get("statistics", {}) for name, part in parts.items()}
        daemon = {name: value for name, value in told.items() if name != "parts"}
        seen: set[str] = set()
        for path, value in _numbers({"daemon": daemon, **inside}, ()):
            name = "petalbus_" + "_".join(_NOT_IN_A_NAME.sub("_", word).strip("_").lower() for word in path)
            if name in seen:
                continue
            if len(seen) >= _MOST:
                return
            seen.add(name)
            yield GaugeMetricFamily(name, " ".join(path), value=value)


def _numbers(told: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, value in told.items():
        here = (*path, str(name))
        if isinstance(value, bool | int | float):
            yield here, float(value)
        elif isinstance(value, Mapping) and len(here) < _DEEP:
            yield from _numbers(value, here)
