"""What the daemon itself answers on the bus, as the app ``petalbus``: ``ping`` and ``status_request``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from petalbus._version import __version__
from petalbus.daemon.bus.errors import HandlerError

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record


def answer(bus: Bus, status: Callable[[], Mapping[str, Any]]) -> None:
    """Register the handlers. ``status`` makes the whole answer to a ``status_request``."""

    @bus.on("ping", concurrency=None)
    async def ping(_record: Record) -> dict[str, Any]:
        return {"status": "ok", "app": bus.app, "version": __version__, "timestamp": time.time()}

    @bus.on("status_request", concurrency=None)
    async def status_request(record: Record) -> dict[str, Any]:
        told = status()
        wanted = record.data.get("fields") if isinstance(record.data, dict) else None
        if wanted is None:
            return {"status": "ok", **told}
        unknown = [name for name in wanted if name not in told]
        if unknown:
            raise HandlerError(
                f"there is no field {unknown[0]!r}; there are {', '.join(told)}", error_code="UNKNOWN_FIELD"
            )
        return {"status": "ok", **{name: told[name] for name in wanted}}
