"""``petalbus.connect``: a client of the running bus, found by its data directory when no address is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.server.discover import discover


def connect(
    url: str | None = None,
    *,
    app: str,
    data: Path | str | None = None,
    bus: str | None = None,
    options: BusOptions | None = None,
) -> Bus:
    """A client for the application ``app``, to be used with ``async with``.

    Without ``url`` the bus that runs on the data directory ``data`` (None: the
    default one) is used; raises NoRunningBus when there is none. ``url``:
    ``unix:///path``, ``redis://[user:password@]host:port`` or ``rediss://...``.
    """
    if url is None:
        running = discover(data)
        chosen = options or BusOptions()
        if chosen.durability is None:
            chosen = replace(chosen, durability=running.durability)
        return Bus(running.url, app=app, bus=bus or running.bus, options=chosen)
    return Bus(url, app=app, bus=bus or "petalbus", options=options)
