"""The servers of one run: a fresh embedded server in a temporary directory, and a NATS server where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.bench.process import pin
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.daemon.server.probe import client

_MEMORY_MB: Final = 2048
_REWRITE_OVER: Final = 64 << 20
_NATS_SECONDS: Final = 10.0


class BenchServer:
    """The server that everybody but NATS is measured on, and what is done to it between two turns."""

    def __init__(self, server: EmbeddedServer) -> None:
        assert server.pid is not None, "the server is started"
        self.address = str(server.paths.socket)
        self.pid = server.pid
        self.label = server.binary.label if server.binary is not None else "unknown"
        self._url = server.url

    async def clear(self) -> None:
        """Empty it, and shorten its append-only file where that has grown: while nothing is measured."""
        async with client(self._url, timeout=60.0) as redis:
            await redis.flushall()
            if (await self._persistence(redis))["aof_current_size"] > _REWRITE_OVER:
                await redis.bgrewriteaof()
                while (await self._persistence(redis))["aof_rewrite_in_progress"]:  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.02)

    async def _persistence(self, redis: Any) -> dict[str, int]:
        facts: dict[str, int] = await redis.info("persistence")
        return facts

    async def never_rewrite_by_itself(self) -> None:
        """A rewrite in the middle of a turn would be measured as that peer's fault."""
        async with client(self._url, timeout=10.0) as redis:
            await redis.config_set("auto-aof-rewrite-percentage", "0")


@asynccontextmanager
async def bench_server(binary: Path | None, core: int | None) -> AsyncIterator[BenchServer]:
    """A fresh embedded server as ``petalbus up`` configures it (append-only file, everysec), on a unix socket."""
    with scratch_directory() as directory:
        async with EmbeddedServer(directory / "data", memory_mb=_MEMORY_MB, binary=binary) as server:
            bench = BenchServer(server)
            pin(bench.pid, core)
            await bench.never_rewrite_by_itself()
            yield bench


@asynccontextmanager
async def nats_server(core: int | None) -> AsyncIterator[tuple[str, int]]:
    """A NATS server with JetStream on file storage: its URL and process id. Raises RuntimeError or TimeoutError."""
    program = shutil.which("nats-server")
    assert program is not None, "the caller has looked"
    with scratch_directory() as directory, (directory / "log").open("wb") as log:
        port = _free_port()
        words = ("-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "store"))
        process = await asyncio.create_subprocess_exec(program, *words, stdout=log, stderr=log, start_new_session=True)
        try:
            await _listens(port, process)
            pin(process.pid, core)
            yield f"nats://127.0.0.1:{port}", process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A temporary directory; gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="petalbus-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


async def _listens(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_NATS_SECONDS):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"nats-server ended with exit code {process.returncode}")
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)
