"""The heartbeat by which a vehicle knows that its ground station or companion is there."""

from __future__ import annotations

import asyncio

from petalbus.handlers.mavlink.wire.link import Link

MAV_TYPE_GCS = 6
MAV_AUTOPILOT_INVALID = 8
MAV_STATE_ACTIVE = 4


async def beat(link: Link, *, hertz: float = 5.0) -> None:
    """Send heartbeats for ever, on a fixed monotonic plan: a late one does not move the ones after it.

    They are system-wide messages and go to every peer; with nobody there nothing leaves.
    """
    period = 1.0 / hertz
    message = link.dialect.message(
        "HEARTBEAT",
        type=MAV_TYPE_GCS,
        autopilot=MAV_AUTOPILOT_INVALID,
        system_status=MAV_STATE_ACTIVE,
        mavlink_version=3,
    )
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        link.send(message)
        due += period
        late = loop.time() - due
        if late > 0:
            due += period * (late // period + 1)  # the process stood still: do not send the missed ones in a burst
        await asyncio.sleep(due - loop.time())
