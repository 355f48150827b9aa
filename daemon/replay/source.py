"""Where history comes from: a running bus, or the files of a stopped one.

The files are evidence: no server ever opens them. A private one runs on a copy of them, and is gone afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.bus.connection import Connection, open_connection
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.url import parse
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.replay.errors import NoHistory, ReplayError
from petalbus.daemon.server.discover import discover
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.daemon.server.errors import DataDirectoryInUse, NoRunningBus
from petalbus.daemon.server.lock import DataLock, is_locked
from petalbus.daemon.server.probe import unix_url

log = logging.getLogger("petalbus.replay")

PATIENCE: Final = 60.0
"""A server that does not answer for so many seconds counts as dead."""

APPEND_ONLY: Final = "appendonlydir"
"""The embedded server's directory of append-only files."""


@dataclass(frozen=True, slots=True)
class Source:
    """A bus that is read: an open connection, and the names of its keys."""

    connection: Connection
    keys: Keys
    shown: str

    async def call(self, *args: bytes | str | int) -> Any:
        """One command. Raises OutcomeUnknown or ServerError."""
        return await self.connection.call(*args)


@asynccontextmanager
async def open_source(source: str | Path | None, *, bus: str | None, scratch: Path) -> AsyncIterator[Source]:
    """A recording: a URL, or a data directory (None: the default one). ``scratch``: where a copy of files may be put.

    Raises NoHistory, ReplayError, BusUnavailable, or what the private server's start raises.
    """
    if isinstance(source, str) and "://" in source:
        async with _connected(source, bus=bus or "petalbus") as opened:
            yield opened
        return
    paths = DataPaths.of(source)
    try:
        running = discover(paths.root)
    except NoRunningBus as error:
        if _locked(paths.server_lock):  # its daemon was killed; the server still serves
            async with _connected(unix_url(str(paths.socket)), bus=bus) as opened:
                yield opened
            return
        files = paths.server_dir / APPEND_ONLY
        if not files.is_dir():
            raise NoHistory(f"no bus has been recorded in {paths.root}: it has no {files}") from error
        async with _private_server(paths, scratch) as url, _connected(url, bus=bus) as opened:
            yield opened
        return
    async with _connected(running.url, bus=bus or running.bus) as opened:
        yield opened


@asynccontextmanager
async def _connected(url: str, *, bus: str | None) -> AsyncIterator[Source]:
    address = parse(url)
    connection = await open_connection(address, timeout=5.0, patience=PATIENCE)
    try:
        name = bus or await _only_bus(connection, address.shown)
        yield Source(connection, Keys(name), address.shown)
    finally:
        connection.close()
        await connection.closed


async def _only_bus(connection: Connection, shown: str) -> str:
    """The name of the one bus that is recorded there."""
    cursor, names = b"0", set()
    while True:
        cursor, keys = await connection.call("SCAN", cursor, "MATCH", "{*}:*", "COUNT", 1000, "TYPE", "stream")
        names |= {key[1:].partition(b"}")[0].decode() for key in keys}
        if cursor == b"0":
            break
    if not names:
        raise NoHistory(f"nothing is recorded in {shown}")
    if len(names) > 1:
        raise ReplayError(f"{shown} holds several buses; name one of them: {', '.join(sorted(names))}")
    return str(names.pop())


@asynccontextmanager
async def _private_server(paths: DataPaths, scratch: Path) -> AsyncIterator[str]:
    """A server on a copy of the files, reached by nobody else."""
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="petalbus-replay-", dir=scratch))
    socket_dir = DataPaths.of(directory).socket.parent
    try:
        size = await _copy(paths, directory)
        memory_mb = max(256, 4 * size >> 20)
        log.info("reading %s through a private server on a copy of %d bytes", paths.root, size)
        async with EmbeddedServer(directory, memory_mb=memory_mb) as server:
            yield server.url
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, socket_dir, ignore_errors=True)  # elsewhere if the path is long


async def _copy(paths: DataPaths, directory: Path) -> int:
    """Copy the append-only files while nobody writes them; their size in bytes."""
    files = paths.server_dir / APPEND_ONLY
    size = sum(file.stat().st_size for file in files.iterdir())
    free = shutil.disk_usage(directory).free
    if size >= free:
        raise ReplayError(f"{files} has {size} bytes to copy, and {directory} has room for {free}: free some space")
    lock = DataLock(paths)
    try:
        await lock.acquire()
    except DataDirectoryInUse as error:
        raise ReplayError(f"a bus starts or stops on {paths.root} just now: try again in a moment") from error
    except OSError as error:
        log.debug("%s cannot be locked (%s): read-only, so nobody else can write it either", paths.root, error)
    try:
        target = DataPaths.of(directory)
        target.create()
        await asyncio.to_thread(shutil.copytree, files, target.server_dir / APPEND_ONLY)
    finally:
        lock.release()
    return size


def _locked(path: Path) -> bool:
    try:
        return is_locked(path)
    except OSError:
        return False  # a read-only medium: no server can run there
