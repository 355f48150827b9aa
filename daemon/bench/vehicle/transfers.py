"""How quickly a flight log comes over a local link, and all parameters as a file over a bad one."""

from __future__ import annotations

import time
from typing import Final

from petalbus.daemon.bench.stats import median
from petalbus.daemon.bench.vehicle.rig import Ground, flying
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimVehicle

PREDECESSOR_KB_S: Final = 15.0
"""What petals had before, over the same messages, measured where that ran."""

PARAMETERS: Final = 1362
"""As many as a real ArduPilot has."""

FILE_LOSS: Final = 0.2


async def measure() -> dict[str, float]:
    """Kilobytes a second of the largest log: ``ftp`` and ``log``."""
    async with flying() as (ground, simulated):
        return await _fetch(ground, simulated)


async def _fetch(ground: Ground, simulated: SimVehicle) -> dict[str, float]:
    path, data = max(simulated.disk.files.items(), key=lambda item: len(item[1]))
    begun = time.monotonic()
    if await ground.ftp.read(path) != bytes(data):
        raise RuntimeError(f"{path} came out wrong")
    by_ftp = len(data) / 1000 / (time.monotonic() - begun)
    largest = max(await ground.logs.list_logs(), key=lambda one: one.size)
    begun = time.monotonic()
    if await ground.logs.download(largest.id) != bytes(data):
        raise RuntimeError(f"log {largest.id} came out wrong")
    return {"ftp": by_ftp, "log": len(data) / 1000 / (time.monotonic() - begun)}


async def packed_seconds(*, seeds: int) -> dict[str, float]:
    """Seconds for all parameters of an ArduPilot by its packed file: ``median`` and ``worst`` of the seeds."""
    taken = [await _packed(seed) for seed in range(seeds)]
    return {"median": median(taken), "worst": max(taken)}


async def _packed(seed: int) -> float:
    wire = Failures(loss=FILE_LOSS)
    async with flying(autopilot=ARDUPILOT, failures=wire, seed=seed, more_params=PARAMETERS) as (ground, simulated):
        begun = time.monotonic()
        values = await ground.lister.list_all(timeout=30.0)
        taken = time.monotonic() - begun
        store = simulated.params.store
        if ground.lister.how != "file":
            raise RuntimeError("the parameters did not come as a file")
        if {name: value.raw for name, value in values.items()} != {
            name: store.entry(name, index=0).raw for name in store.names
        }:
            raise RuntimeError("the parameter file came out wrong")
        return taken
