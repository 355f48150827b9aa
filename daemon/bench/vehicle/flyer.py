"""A simulated vehicle as a process that notes when our heartbeats reached it. It tells that when its input ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Final

from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.framing import Frame

_HEARTBEAT: Final = 0


class Listening(SimVehicle):
    """Notes the boot clock (ns) of each heartbeat of ours."""

    def __init__(self, options: SimOptions) -> None:
        super().__init__(options)
        self.beats: list[int] = []

    def _on_frames(self, frames: Sequence[Frame], mono_ns: int) -> None:
        self.beats += [mono_ns for frame in frames if frame.msgid == _HEARTBEAT]
        super()._on_frames(frames, mono_ns)


def main() -> None:
    """Fly until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--params", type=int, required=True)
    asyncio.run(_fly(parser.parse_args()))


async def _fly(given: argparse.Namespace) -> None:
    options = SimOptions(endpoint=f"udpout:127.0.0.1:{given.port}", more_params=given.params)
    async with Listening(options) as vehicle:
        log = max(vehicle.disk.logs, key=lambda one: len(vehicle.disk.files[one.path]))
        sys.stdout.write(json.dumps({"log": log.path}) + "\n")
        sys.stdout.flush()
        flying = asyncio.create_task(vehicle.fly(), name="bench.vehicle")
        await asyncio.to_thread(sys.stdin.read)
        flying.cancel()
        await asyncio.gather(flying, return_exceptions=True)
        sys.stdout.write(json.dumps({"beats": vehicle.beats}) + "\n")


if __name__ == "__main__":
    main()
