"""Whether bulk operations hold up what else comes and goes: the longest silences of a 50 Hz record and of our beats."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import petalbus
from petalbus.daemon.bench.process import child_environment
from petalbus.daemon.bench.vehicle.ingest import TOPIC, Daemon, heard, running
from petalbus.daemon.bus.client import Bus

BEAT_S: Final = 0.2
_PARAMS: Final = 1000
_FEW_PARAMS: Final = 150
_SET: Final = 100
_ITEMS: Final = 200
_UPLOAD: Final = 200_000
_ATTITUDE: Final = b"30"
_PAGE: Final = 1000
_LIMIT_S: Final = 60.0
_REQUEST: Final = {"timeout": _LIMIT_S}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One operation: how long it took (s), and the longest silences beside it (ms)."""

    what: str
    seconds: float
    records_ms: float
    heartbeats_ms: float


async def measure(*, quick: bool = False) -> list[Gap]:
    """All operations, one after the other, over a daemon of its own; ``quick``: fewer parameters, no log messages."""
    with tempfile.TemporaryDirectory(prefix="pb-bench-") as folder:
        async with running(Path(folder)) as daemon, petalbus.connect(daemon.url, app="bench") as bus:
            spans: list[tuple[str, int, int]] = []
            beats: list[int] = []
            async with _vehicle(daemon, beats, params=_FEW_PARAMS if quick else _PARAMS) as log:
                await heard(bus)
                await asyncio.sleep(1.0)
                async for what, work in _operations(bus, log, quick=quick):
                    begun = _now()
                    await work
                    spans.append((what, begun, _now()))
                    await asyncio.sleep(0.3)
            records = [int(fields[fields.index(b"m") + 1]) for fields in await _attitudes(bus)]
    return [
        Gap(
            what=what,
            seconds=(end - begun) / 1e9,
            records_ms=_longest(records, begun, end),
            heartbeats_ms=_longest(beats, begun, end),
        )
        for what, begun, end in spans
    ]


async def _operations(bus: Bus, log: str, *, quick: bool) -> AsyncIterator[tuple[str, Awaitable[Any]]]:
    """What is done meanwhile: each is awaited before the next one is asked for."""

    def ask(kind: str, payload: dict[str, Any]) -> Awaitable[Any]:
        return bus.request("vehicle", f"mavlink.{kind}", payload, timeout=_LIMIT_S)

    yield "all parameters", ask("param.list", _REQUEST)
    wanted = [{"name": f"SIM_P{place:04}", "value": 2.5} for place in range(_SET)]
    yield "setting parameters", ask("param.set", {"params": wanted, "max_in_flight": 20, **_REQUEST})
    down: asyncio.Future[Any] = asyncio.ensure_future(ask("ftp.get", {"path": log}))
    yield "FTP download", down
    file = Path(down.result().data["file"]).with_name("bench.up")
    await asyncio.to_thread(file.write_bytes, bytes(_UPLOAD))
    yield "FTP upload", ask("ftp.put", {"path": "/fs/microsd/bench.up", "file": file.name})
    if not quick:
        logs = (await ask("log.list", {})).data["logs"]
        largest = max(logs, key=lambda one: one["size"])
        yield "log download", ask("log.get", {"id": largest["id"]})
    items = [
        {"command": 16, "latitude": 47.4 + place / 1e4, "longitude": 8.5, "altitude": 20.0, "param2": 2.0}
        for place in range(_ITEMS)
    ]
    yield "mission upload", ask("mission.upload", {"items": items, **_REQUEST})


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _longest(times: list[int], begun: int, end: int) -> float:
    """The longest silence between ``begun`` and ``end`` (ns), in ms: also that before the first and after the last."""
    inside = [moment for moment in times if begun <= moment <= end]
    before = max((moment for moment in times if moment < begun), default=begun)
    after = min((moment for moment in times if moment > end), default=end)
    return max(later - earlier for earlier, later in pairwise([before, *inside, after])) / 1e6


async def _attitudes(bus: Bus) -> list[list[bytes]]:
    """The fields of every recorded ATTITUDE."""
    found: list[list[bytes]] = []
    start = "-"
    while True:
        page = await bus.call("XRANGE", bus.keys.topic(TOPIC), start, "+", "COUNT", _PAGE)
        found += [fields for _, fields in page if _ATTITUDE in fields[:2]]
        if len(page) < _PAGE:
            return found
        start = "(" + page[-1][0].decode()


@asynccontextmanager
async def _vehicle(daemon: Daemon, beats: list[int], *, params: int) -> AsyncIterator[str]:
    """A simulated vehicle as a process; gives the path of its largest log, and at the end ``beats`` is filled."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "petalbus.daemon.bench.vehicle.flyer"),
        *("--port", str(daemon.port), "--params", str(params)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
        env=child_environment(),
    )
    assert child.stdout is not None
    try:
        yield json.loads(await child.stdout.readline())["log"]
        out, _ = await child.communicate(b"")
        beats += json.loads(out)["beats"]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
