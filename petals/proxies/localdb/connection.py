"""One SQLite connection in a thread of its own. A job runs there as a whole, so cancelling never leaves half of it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiosqlite  # imported only when a database is opened: see store.py

from petalbus.petals.proxies.localdb.guard import Guard
from petalbus.petals.proxies.localdb.pragmas import BUSY_SECONDS, prepare

_STEPS: Final = 20_000  # of SQLite's virtual machine between two looks at the clock: a millisecond or less


class Job:
    """Work for the thread. ``reads``: stopped when nobody waits any more; ``always``: never stopped or left out."""

    __slots__ = ("always", "deadline", "function", "given_up", "reads", "refusal", "seconds", "trusted")

    def __init__(
        self,
        function: Callable[[sqlite3.Connection], Any],
        *,
        seconds: float,
        reads: bool = False,
        always: bool = False,
        trusted: bool = True,
    ) -> None:
        self.function = function
        self.seconds = seconds
        self.reads = reads
        self.always = always
        self.trusted = trusted
        self.given_up = False
        self.deadline = 0.0
        self.refusal = ""

    def is_over(self) -> bool:
        """True when it must stop."""
        if self.always:
            return False
        return (self.reads and self.given_up) or time.monotonic() > self.deadline


class Session(aiosqlite.Connection):
    """A connection of aiosqlite that takes whole jobs."""

    def __init__(self, file: Path, *, writes: bool, max_bytes: int) -> None:
        self.guard = Guard()
        self.waiting = 0
        self._job: Job | None = None
        self._file = file
        self._writes = writes
        self._max_bytes = max_bytes
        super().__init__(self._connect_here, iter_chunk_size=64)
        # A process that ends without closing (a crash) must not hang on it: the file stays whole anyway.
        self._thread.daemon = True

    async def run(self, job: Job) -> Any:
        """The job's result. Raises what it raised; cancelled before its turn, it is not run at all."""
        self.waiting += 1
        try:
            return await self._execute(self._run, job)  # type: ignore[no-untyped-call] # aiosqlite leaves it untyped
        except asyncio.CancelledError:
            job.given_up = True
            raise
        finally:
            self.waiting -= 1

    def _run(self, job: Job) -> Any:
        if job.given_up and not job.always:
            return None
        job.deadline = time.monotonic() + job.seconds
        self._job = job
        self.guard.trusted, self.guard.refusal = job.trusted, ""
        try:
            return job.function(self._conn)
        finally:
            job.refusal = self.guard.refusal
            self._job = None
            self.guard.trusted = True

    def _connect_here(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256)
        try:
            prepare(connection, self._max_bytes)
            if not self._writes:
                connection.execute("PRAGMA query_only = ON")
            connection.set_progress_handler(self._is_over, _STEPS)
            connection.set_authorizer(self.guard)
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_over(self) -> bool:
        job = self._job
        return job is not None and job.is_over()
