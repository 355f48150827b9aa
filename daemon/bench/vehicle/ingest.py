"""What it costs to record a vehicle's frames, and how soon a command leaves beside them: a daemon of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import petalbus
from petalbus.daemon.bench.process import child_environment
from petalbus.daemon.bench.stats import percentile
from petalbus.daemon.bus.client import Bus

_TICKS: Final = os.sysconf("SC_CLK_TCK")
TOPIC: Final = "mavlink.rx"
_COMMAND_EVERY_S: Final = 0.02
_REQUEST_MESSAGE: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running bus with a link and nobody on it yet."""

    port: int
    pid: int
    server_pid: int
    url: str

    def cpu(self) -> float:
        """Seconds of a core that the daemon and its server have used."""
        return sum(map(_cpu_seconds, (self.pid, self.server_pid)))


async def measure(*, rate: float, seconds: float) -> dict[str, float]:
    """Share of a core with and without a vehicle, frames lost, bytes a frame, milliseconds to a command's leaving."""
    with tempfile.TemporaryDirectory(prefix="pb-bench-") as folder:
        async with running(Path(folder)) as daemon:
            await asyncio.sleep(2.0)  # what starting has left to do
            begun, used = time.monotonic(), daemon.cpu()
            await asyncio.sleep(max(2.0, seconds / 2))
            idle = (daemon.cpu() - used) / (time.monotonic() - begun)
            async with petalbus.connect(daemon.url, app="bench") as bus:
                return {"idle": idle, **await _with_vehicle(daemon, bus, rate=rate, seconds=seconds)}


async def _with_vehicle(daemon: Daemon, bus: Bus, *, rate: float, seconds: float) -> dict[str, float]:
    before = await _size(bus)
    talker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "petalbus.daemon.bench.vehicle.talker"),
        *("--port", str(daemon.port), "--rate", str(rate), "--seconds", str(seconds + 2.0)),
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    await heard(bus)
    begun, used = time.monotonic(), daemon.cpu()
    await asyncio.sleep(seconds / 2)
    share = (daemon.cpu() - used) / (time.monotonic() - begun)
    sent_at = await _commands(bus, seconds=seconds / 2 - 1.0)
    out, _ = await talker.communicate()
    told = json.loads(out)
    await asyncio.sleep(0.5)
    after = await _size(bus)
    delays = sorted((arrived - sent_at[number]) / 1e6 for number, arrived in told["commands"] if number in sent_at)
    stored = after["entries"] - before["entries"]
    return {
        "share": share,
        "lost": float(told["sent"] - stored),
        "frame_bytes": told["frame_bytes"],
        "memory_bytes": (after["memory"] - before["memory"]) / stored,
        "file_bytes": (after["file"] - before["file"]) / stored,
        "command_p99_ms": percentile(delays, 0.99) if delays else float("inf"),
        "commands": float(len(delays)),
    }


async def _commands(bus: Bus, *, seconds: float) -> dict[int, int]:
    """Send commands one after the other; when each was sent (boot clock, ns)."""
    sent_at: dict[int, int] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = len(sent_at) + 1
        payload = {"command": _REQUEST_MESSAGE, "params": [0, 0, 0, 0, 0, 0, number], "timeout": 1.0}
        sent_at[number] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await bus.request("vehicle", "mavlink.command", payload, timeout=5)
        await asyncio.sleep(_COMMAND_EVERY_S)
    return sent_at


async def heard(bus: Bus) -> None:
    """Wait until the bus has heard a vehicle. Raises TimeoutError."""
    async with asyncio.timeout(20):
        while True:
            told = await bus.request("vehicle", "mavlink.status", {}, timeout=5)
            if told.data["vehicle"]["connected"]:
                return
            await asyncio.sleep(0.05)


async def _size(bus: Bus) -> dict[str, int]:
    stream = bus.keys.topic(TOPIC)
    persistence = (await bus.call("INFO", "persistence")).decode()
    file = next((line for line in persistence.splitlines() if line.startswith("aof_current_size:")), "x:0")
    return {
        "entries": await bus.call("XLEN", stream),
        "memory": await bus.call("MEMORY", "USAGE", stream, "SAMPLES", 0) or 0,
        "file": int(file.partition(":")[2]),
    }


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Daemon]:
    """A daemon without HTTP and with a link for a vehicle. Raises RuntimeError when it does not start."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from petalbus.daemon.cli import main; main()", "up", "--json"),
        *("--data", str(folder / "data"), "--set", f"mavlink_endpoint=udpin:127.0.0.1:{port}"),
        *("--set", "http_enabled=false"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
    )
    assert child.stdout is not None
    try:
        ready: dict[str, Any] = {}
        while ready.get("event") != "ready":
            line = await child.stdout.readline()
            if not line:
                raise RuntimeError("the daemon did not start")
            ready = json.loads(line)
        yield Daemon(port=port, pid=ready["pid"], server_pid=ready["server_pid"], url=ready["url"])
    finally:
        child.terminate()
        await child.communicate()


def _cpu_seconds(pid: int) -> float:
    """What all threads have used, to the nanosecond where the kernel tells it (else to its tick, 10 ms)."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
