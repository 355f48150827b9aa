"""The two buses that tests run on: one in memory, one on a real embedded server. Both are used in the same way."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.petals.testing.memory import MemoryServer

TEST_OPTIONS: Final = BusOptions(
    connect_timeout=5.0, heartbeat=0.1, dead_after=0.6, block=1.0, retry_first=0.01, retry_most=0.1, stop_grace=2.0
)
"""Short times, so that a test need not wait for a lease or a pause. The rules are those of every client."""

_numbers = itertools.count(1)


class TestBus(ABC):
    """A bus for tests; ``async with bus:`` starts its server, and the last block that ends stops it.

    ``url`` and ``name`` are what clients connect to. The directory is made and removed with the server.
    """

    __test__ = False  # its name begins with Test, but it is none
    _durability: str | None = None

    def __init__(self) -> None:
        self.name = f"test{os.getpid()}x{next(_numbers)}"
        self._directory: Path | None = None
        self._users = 0
        self._running = AsyncExitStack()

    @property
    def directory(self) -> Path:
        """Where the server has its socket and data. Raises RuntimeError while it does not run."""
        if self._directory is None:
            raise RuntimeError("this bus does not run: use it inside of `async with bus:` or of a PetalHarness")
        return self._directory

    @property
    def url(self) -> str:
        """The server's address, for ``petalbus.connect`` and for proxies."""
        return f"unix://{quote(str(self.socket))}"

    @property
    @abstractmethod
    def socket(self) -> Path:
        """The server's unix socket."""

    def client(self, app: str, *, url: str | None = None, options: BusOptions | None = None) -> Bus:
        """A client of this bus, to be used with ``async with``."""
        chosen = replace(options or TEST_OPTIONS, durability=self._durability)
        return Bus(url or self.url, app=app, bus=self.name, options=chosen)

    async def __aenter__(self) -> Self:
        self._users += 1
        if self._users == 1:
            # Short, and not in a test's own directory: a unix socket's path has at most 107 characters.
            parent = tempfile.gettempdir()
            self._directory = Path(tempfile.mkdtemp(prefix="pbt-", dir=parent if len(parent) < 60 else "/tmp"))  # noqa: S108  # the only short one
            try:
                await self._start(self._running)
            except BaseException:
                await self.__aexit__(None, None, None)
                raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._users -= 1
        if self._users == 0:
            running, self._running = self._running, AsyncExitStack()
            try:
                await running.aclose()
            finally:
                directory, self._directory = self._directory, None
                if directory is not None:
                    shutil.rmtree(directory, ignore_errors=True)

    @abstractmethod
    async def _start(self, running: AsyncExitStack) -> None:
        """Start the server, and leave its end with ``running``."""


class MemoryBus(TestBus):
    """A bus in memory: no process, no file but a socket. Needs ``petalbus[testing]``; see ``memory`` for its limits."""

    @property
    def socket(self) -> Path:
        """The unix socket of the server in memory."""
        return self.directory / "m.sock"

    async def _start(self, running: AsyncExitStack) -> None:
        await running.enter_async_context(MemoryServer(self.socket))


class RealBus(TestBus):
    """A bus on a real embedded server, as ``petalbus up`` starts it, on a data directory of its own."""

    _durability = "everysec"  # what the embedded server's owner sees to, and so not what the server itself answers

    @property
    def socket(self) -> Path:
        """The unix socket of the embedded server."""
        from petalbus.daemon.paths import DataPaths  # noqa: PLC0415  # what only the real bus needs

        return DataPaths.of(self.directory).socket

    async def _start(self, running: AsyncExitStack) -> None:
        from petalbus.daemon.server.embedded import EmbeddedServer  # noqa: PLC0415  # the same

        server = await running.enter_async_context(EmbeddedServer(self.directory, memory_mb=64))
        assert server.pid is not None
        running.enter_context(_ended_with_us(server.pid, self.directory))


@contextmanager
def _ended_with_us(pid: int, directory: Path) -> Iterator[None]:
    """Whatever ends this process, the server ends too and its directory goes: it would live on without its daemon.

    A shell waits for the end of a pipe that only we hold open, which no way of dying can prevent.
    """
    script = 'read -r line; kill -9 "$1"; rm -rf "$2"'
    words = ["/bin/sh", "-c", script, "petalbus-test-guard", str(pid), str(directory)]
    guard = subprocess.Popen(  # noqa: S603  # our own words
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        guard.kill()  # before its pipe is closed: an orderly end is the server's own
        guard.communicate()
