"""A large upload whose uploader is killed on the way: memory, time, what was sent twice; the same bytes at the end.

    PYTHONPATH=src:tests python tests/chaos/big_upload.py [--megabytes 2047] [--kills 1] [--seed 7]

The file is sparse, but for a piece in each part that no other part has. The kills are spread over the way; a seed moves
each to another place. ``test_big_upload.py`` is a short slice of it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.bucket import words
from petalbus.handlers.bucket.files import ULOG_MAGIC

from support.procs import ROOT, child_environment
from support.s3_world import RealS3, TokenService
from support.servers import SERVERS, RealServer, short_directory

MB = 1024 * 1024
PART = 8 * MB
BUS = "chaos"


@dataclass
class Outcome:
    """What was measured. Memory: the largest resident set of any uploader. Sent again: what the last one sent and
    the store had; ``resent_mb``: what was under way at the kill, known for one only."""

    megabytes: int
    seconds: float = 0.0
    peak_mb: float = 0.0
    idle_mb: float = 0.0
    resent_mb: float = 0.0
    kept_mb: float = 0.0
    again_mb: float = 0.0
    kills: int = 0
    same_bytes: bool = False
    unfinished: int = 0
    result: dict[str, Any] = field(default_factory=dict)


def make_log(path: Path, size: int) -> None:
    """A sparse log with something of its own in each part."""
    with path.open("wb") as file:
        file.write(ULOG_MAGIC + b"\x01" + os.urandom(64))
        for start in range(PART, size - 64, PART):
            file.seek(start)
            file.write(os.urandom(64))
        file.truncate(size)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Uploader:
    """The process that uploads, started again after each kill."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it works when this returns."""
        program = str(ROOT / "tests" / "bucket" / "uploader.py")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, program, *self._arguments, env=child_environment(), stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n"

    def memory(self, what: str = "VmHWM") -> float:
        """Its memory in MB; ``VmHWM``: the peak."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


def places(size: int, kills: int, seed: int | None) -> list[int]:
    """Bytes after which it is killed: evenly spread, or by a seed anywhere in each one's own piece of the way."""
    if seed is None:
        return [size * (number + 1) // (kills + 1) for number in range(kills)]
    dice = random.Random(seed)
    # not near its end: it would be over before that is seen
    return [int(size * (0.05 + 0.65 * (number + dice.random()) / kills)) for number in range(kills)]


async def run(megabytes: int, *, kills: int = 1, folder: Path | None = None, seed: int | None = None) -> Outcome:
    """Upload so much, with so many kills on the way."""
    out = Outcome(megabytes)
    async with AsyncExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        server = RealServer(stack.enter_context(short_directory()), SERVERS[0])
        server.start()
        stack.callback(server.close)
        s3 = await stack.enter_async_context(RealS3(Path(place)))
        tokens = await stack.enter_async_context(TokenService())
        bus = await stack.enter_async_context(Bus(server.url, app="gcs", bus=BUS, options=BusOptions(presence=False)))
        path = Path(place) / "big.ulg"
        await asyncio.to_thread(make_log, path, megabytes * MB - 1000)
        uploader = Uploader(server.url, BUS, s3.url, tokens.url, "0.1")
        stack.push_async_callback(uploader.kill)
        await _upload(out, bus, uploader, path, places(path.stat().st_size, kills, seed))
        key = out.result["s3_key"]
        out.same_bytes = await asyncio.to_thread(lambda: digest(s3.files / key) == digest(path))
        for _ in range(100):
            out.unfinished = await bus.ask("HLEN", words.notes_key(bus.keys))
            if not out.unfinished:
                break
            await asyncio.sleep(0.1)
    return out


async def _upload(out: Outcome, bus: Bus, uploader: Uploader, path: Path, marks: list[int]) -> None:
    sent = 0
    await uploader.start()
    out.idle_mb = uploader.memory("VmRSS")
    began = time.monotonic()
    upload = (await bus.send(words.APP, words.UPLOAD, {"path": str(path)})).id
    waiting = asyncio.create_task(bus.request(words.APP, words.UPLOAD, {"path": str(path)}, id=upload, timeout=3600))
    while not waiting.done():
        await asyncio.wait([waiting], timeout=0.02)
        out.peak_mb = max(out.peak_mb, uploader.memory())
        listed = (await bus.request(words.APP, words.UPLOADS, {}, timeout=30)).data["uploads"]
        if marks and listed and listed[0]["bytes"] >= marks[0]:
            marks.pop(0)
            sent += listed[0]["bytes"]
            await uploader.kill()
            out.kills += 1
            await uploader.start()
    out.result = waiting.result().data
    out.seconds = time.monotonic() - began
    out.kept_mb = out.result["kept_bytes"] / MB
    out.resent_mb = (sent - out.result["kept_bytes"]) / MB if out.kills == 1 else -1.0
    out.again_mb = (out.result["sent_bytes"] + out.result["kept_bytes"] - path.stat().st_size) / MB


def main() -> None:
    """From the command line: prints one JSON object; exit code 1 when the bytes are not the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2047)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the files, twice the size; else the temporary one")
    parser.add_argument("--seed", type=int, help="where the kills come; evenly spread when not given")
    told = parser.parse_args()
    out = asyncio.run(run(told.megabytes, kills=told.kills, folder=told.folder, seed=told.seed))
    sys.stdout.write(json.dumps(out.__dict__, indent=1) + "\n")
    sys.exit(0 if out.same_bytes else 1)


if __name__ == "__main__":
    main()
