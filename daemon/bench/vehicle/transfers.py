"""How quickly a flight log comes over a local link: by MAVLink FTP and by the log messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.logs import LogClient
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.sim.autopilot import PX4
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

PREDECESSOR_KB_S: Final = 15.0
"""What petals had before, over the same messages, measured where that ran."""


async def measure() -> dict[str, float]:
    """Kilobytes a second of the largest log: ``ftp`` and ``log``."""

    def take(frames: Sequence[Frame], _mono: int) -> None:
        vehicle.on_frames(frames)
        calls.on_frames(frames)

    link = Link("udpin:127.0.0.1:0", on_frames=take)
    vehicle = Vehicle(lambda message, system: link.send(message, system=system), dialect=link.dialect)
    calls = Calls(
        lambda message, system: link.send(message, system=system),
        lambda msgid, payload, system: link.send_payload(msgid, payload, system=system),
        dialect=link.dialect,
        system=2,
        component=140,
    )
    async with link:
        local: Any = link.transport
        options = SimOptions(endpoint=f"udpout:127.0.0.1:{local.local[1]}", autopilot=PX4)
        async with SimVehicle(options) as simulated:
            flying = asyncio.create_task(simulated.fly(), name="bench.vehicle")
            try:
                if not await vehicle.wait_connected(30.0):
                    raise RuntimeError("the simulated vehicle is not heard")
                return await _fetch(simulated, FtpClient(calls, vehicle), LogClient(calls, vehicle))
            finally:
                flying.cancel()
                await asyncio.gather(flying, return_exceptions=True)


async def _fetch(simulated: SimVehicle, ftp: FtpClient, logs: LogClient) -> dict[str, float]:
    path, data = max(simulated.disk.files.items(), key=lambda item: len(item[1]))
    begun = time.monotonic()
    if await ftp.read(path) != bytes(data):
        raise RuntimeError(f"{path} came out wrong")
    by_ftp = len(data) / 1000 / (time.monotonic() - begun)
    largest = max(await logs.list_logs(), key=lambda one: one.size)
    begun = time.monotonic()
    if await logs.download(largest.id) != bytes(data):
        raise RuntimeError(f"log {largest.id} came out wrong")
    return {"ftp": by_ftp, "log": len(data) / 1000 / (time.monotonic() - begun)}
