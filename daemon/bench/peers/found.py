"""Which peers can be measured here, and why not the others."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent.parent / "c" / "floor.c"
_COMPILE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One program that is measured. ``missing`` says why it cannot be, and what to install."""

    name: str
    title: str
    program: Sequence[str] = ()
    missing: str | None = None


def find_peers(directory: Path) -> dict[str, Peer]:
    """All peers by name; the C floor is compiled into ``directory``. Blocks for a second or two."""
    peers = (
        _python("bus", "petalbus", "PetalBus, full path"),
        _python("floor", "floor", "floor: Python, blocking sockets, hiredis"),
        _c_floor(directory),
        _python("redis_py", "redis-py", "redis-py: asyncio, hiredis, uvloop"),
        _python("fast_stream", "faststream", "FastStream, Redis streams", needs=("faststream", "redis")),
        _nats(),
    )
    return {peer.name: peer for peer in peers}


def _python(module: str, name: str, title: str, needs: Sequence[str] = ()) -> Peer:
    absent = [need for need in needs if importlib.util.find_spec(need) is None]
    if absent:
        return Peer(name, title, missing=f"the package {absent[0]} is not installed: pip install 'petalbus[bench]'")
    return Peer(name, title, (sys.executable, "-m", f"petalbus.daemon.bench.peers.{module}"))


def _nats() -> Peer:
    peer = _python("jetstream", "jetstream", "NATS JetStream, nats-py", needs=("nats",))
    if peer.missing is None and shutil.which("nats-server") is None:
        return Peer(peer.name, peer.title, missing="there is no nats-server on PATH")
    return peer


def _c_floor(directory: Path) -> Peer:
    name, title = "c-floor", "floor: C, blocking hiredis"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Peer(name, title, missing="there is no C compiler")
    program = directory / "c-floor"
    command = [compiler, "-O2", "-o", str(program), str(SOURCE), "-lhiredis"]
    # the machine's own compiler, our own source
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)  # noqa: S603  # the compiler that was found
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        reason = lines[0] if lines else f"exit code {done.returncode}"
        return Peer(name, title, missing=f"it does not compile (is libhiredis-dev installed?): {reason}")
    return Peer(name, title, (str(program),))
