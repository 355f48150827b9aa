"""The database of one file: one connection that writes, up to two that read, and whose turn it is to write."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from petalbus.petals.proxies.localdb.atomic import atomically
from petalbus.petals.proxies.localdb.errors import DatabaseBusy, DatabaseDamaged, DatabaseError, translated
from petalbus.petals.proxies.localdb.opening import Opened, open_file
from petalbus.petals.proxies.localdb.schema import STEPS
from petalbus.petals.proxies.localdb.steps import apply

if TYPE_CHECKING:
    from petalbus.petals.proxies.localdb.connection import Job, Session

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

MAX_BYTES: Final = 4 << 30
QUERY_SECONDS: Final = 30.0
TURN_SECONDS: Final = 30.0
FLUSH_SECONDS: Final = 1.0
_READERS: Final = 2

logger = logging.getLogger(__name__)


class Database:
    """Opened on an event loop and used only there. ``on_damage`` is called when SQLite finds the file damaged."""

    def __init__(self, file: Path, *, max_bytes: int = MAX_BYTES, on_damage: Callable[[], None] | None = None) -> None:
        self.file = file
        self.opened: Opened | None = None
        self.flush_error: str = ""
        self._max_bytes = max_bytes
        self._on_damage = on_damage
        self._writer: Session | None = None
        self._readers: list[Session] = []
        self._opening_reader = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._flush: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open it, and make our own tables. Raises DatabaseError or OSError."""
        opening = asyncio.create_task(asyncio.to_thread(_opened, self.file, self._max_bytes), name="localdb-open")
        try:
            self.opened = await asyncio.shield(opening)
        except asyncio.CancelledError:  # its thread goes on: what it opens is given back when it is there
            opening.add_done_callback(_give_back)
            raise
        try:
            self._writer = await self._session(writes=True)
            await self.write(lambda connection: apply(connection, "petalbus", STEPS), trusted=True)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close it: what was written is on the disk then. May be called twice."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        sessions = [*self._readers, *([self._writer] if self._writer is not None else [])]
        if self._writer is not None:
            await asyncio.to_thread(self._flush_log)
        self._readers, self._writer = [], None
        for session in sessions:  # the writer last: it brings the log into the file
            try:
                await session.close()
            except sqlite3.Error as error:
                logger.warning("closing %s: %s", self.file, error)
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    async def read(self, work: Work[T], *, trusted: bool = False) -> T:
        """Run ``work`` on a reading connection: it sees what is committed, and waits for no writer."""
        from petalbus.petals.proxies.localdb.connection import Job  # noqa: PLC0415  # loads aiosqlite

        job = Job(work, seconds=QUERY_SECONDS, reads=True, trusted=trusted)
        result: T = await self._run(await self._reader(), job)
        return result

    async def write(self, work: Work[T], *, trusted: bool = False, seconds: float | None = None) -> T:
        """Run ``work`` on the writing connection when it is its turn. It must be atomic by itself."""
        await self.take_turn()
        try:
            return await self.in_turn(work, trusted=trusted, seconds=seconds)
        finally:
            self.give_turn()

    def whole(self, work: Work[T]) -> Work[T]:
        """A petal's ``work`` as all or nothing; to be run as trusted."""
        guard = self._open_writer().guard

        def untrusted(connection: sqlite3.Connection) -> T:
            guard.trusted = False
            try:
                return work(connection)
            finally:
                guard.trusted = True

        return atomically(untrusted)

    async def in_turn(
        self, work: Work[T], *, trusted: bool = False, seconds: float | None = None, always: bool = False
    ) -> T:
        """The same, for who has the turn already (``take_turn``). ``always``: run even when the caller is cancelled."""
        from petalbus.petals.proxies.localdb.connection import Job  # noqa: PLC0415  # loads aiosqlite

        job = Job(work, seconds=QUERY_SECONDS if seconds is None else seconds, trusted=trusted, always=always)
        result: T = await self._run(self._open_writer(), job)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._begin_flush)
        return result

    async def migrate(self, name: str, steps: Sequence[str], *, seconds: float) -> int:
        """Apply a petal's migrations."""
        writer = self._open_writer()
        return await self.write(lambda conn: apply(conn, name, steps, writer.guard), trusted=True, seconds=seconds)

    async def take_turn(self) -> None:
        """Wait until nobody else writes. Raises DatabaseBusy when that takes too long."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseBusy(
                f"{self.file}: no turn to write within {TURN_SECONDS:g} s: a transaction is open for so long"
            ) from None

    def give_turn(self) -> None:
        """Let the next one write."""
        self._turn.release()

    def _open_writer(self) -> Session:
        if self._writer is None:
            raise DatabaseError(f"{self.file} is not open")
        return self._writer

    async def _run(self, session: Session, job: Job) -> Any:
        try:
            return await session.run(job)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
            known = error if not isinstance(error, sqlite3.Warning) else sqlite3.ProgrammingError(*error.args)
            told = translated(known, self.file, job.refusal)
            if isinstance(told, DatabaseDamaged) and self._on_damage is not None:
                self._on_damage()
            raise told from error
        except ValueError as error:
            if self._writer is None:  # aiosqlite's word for a connection that was closed meanwhile
                raise DatabaseError(f"{self.file} was closed meanwhile") from error
            raise

    async def _reader(self) -> Session:
        self._open_writer()
        idle = next((one for one in self._readers if not one.waiting), None)
        if idle is not None:
            return idle
        if len(self._readers) < _READERS:
            async with self._opening_reader:
                if len(self._readers) < _READERS:
                    self._readers.append(await self._session(writes=False))
        return min(self._readers, key=lambda one: one.waiting)

    async def _session(self, *, writes: bool) -> Session:
        from petalbus.petals.proxies.localdb.connection import Session  # noqa: PLC0415  # loads aiosqlite

        session = Session(self.file, writes=writes, max_bytes=self._max_bytes)
        connecting = asyncio.create_task(_connected(session), name="localdb-connect")
        try:
            return await asyncio.shield(connecting)
        except sqlite3.Error as error:
            raise translated(error, self.file, "") from error
        except asyncio.CancelledError:  # its thread cannot be stopped half-way: a moment later it can be closed
            await asyncio.wait([connecting])
            if connecting.exception() is None:
                await session.close()
            raise

    def _begin_flush(self) -> None:
        self._flush = None
        if self._flushing is not None and not self._flushing.done():  # a slow disk; what came since needs another one
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._begin_flush)
        else:
            self._flushing = asyncio.create_task(asyncio.to_thread(self._flush_log), name="localdb-flush")

    def _flush_log(self) -> None:
        """Bring the write-ahead log to the disk. It may be opened by name: SQLite keeps no lock on it."""
        try:
            log = os.open(f"{self.file}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            self._flush_failed(error)
            return
        try:
            os.fdatasync(log)
            self.flush_error = ""
        except OSError as error:
            self._flush_failed(error)
        finally:
            os.close(log)

    def _flush_failed(self, error: OSError) -> None:
        self.flush_error = str(error)
        logger.error("%s-wal does not reach the disk: %s", self.file, error)


async def _connected(session: Session) -> Session:
    await session
    return session


def _give_back(opening: asyncio.Task[Opened]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _opened(file: Path, max_bytes: int) -> Opened:
    importlib.import_module("petalbus.petals.proxies.localdb.connection")  # reads files the first time: not on the loop
    return open_file(file, max_bytes)
