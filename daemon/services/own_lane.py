"""A service's own command lane: its long scripts never stand in the way of a client's records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from petalbus.daemon.bus.outbox import Outbox

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus


@asynccontextmanager
async def own_lane(bus: Bus) -> AsyncIterator[Outbox]:
    """An outbox to the server of ``bus``, live at the beginning, closed at the end.

    Raises BusUnavailable or ServerRefused when the server cannot be reached at the beginning; later it
    comes back by itself.
    """
    outbox = Outbox(bus.address, bus.keys, bus.options)
    outbox.lane.start()
    try:
        await outbox.lane.wait_live(bus.options.connect_timeout)
        yield outbox
    finally:
        await outbox.close()
