"""Migrations, backup, vacuum, health."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady
from petalbus.petals.proxies.localdb import backup, steps
from petalbus.petals.proxies.localdb.errors import DiskFull, QueryRefused
from petalbus.petals.proxies.localdb.link import Link
from petalbus.petals.proxies.localdb.opening import set_aside_before
from petalbus.petals.proxies.localdb.queue import SyncQueue
from petalbus.petals.proxies.localdb.store import Database
from petalbus.petals.proxies.localdb.transaction import joined

_LONG_SECONDS: Final = 600.0
_TINY_WRITE: Final = "UPDATE petalbus_facts SET value = (value + 1) % 1000000 WHERE name = 'health'"


class Upkeep(Link, SyncQueue):
    """What keeps the file in order."""

    kind = "local database"

    async def migrate(self, name: str, migrations: Sequence[str]) -> int:
        """Bring a petal's tables up to date; how many steps were applied.

        ``migrations``: SQL texts (one or more statements each) in order, all that there ever were. Each is applied
        once, in a transaction with the note that it was. Raises MigrationRefused when an applied one was changed, or
        the file has more of them than are given; QueryFailed when one cannot be run (it is undone, earlier ones stay).
        """
        texts = steps.checked(name, migrations)
        self._refuse_inside("migrate")
        database = await self._opened()
        return await database.migrate(name, texts, seconds=_LONG_SECONDS)

    async def backup(self, path: Path | str) -> int:
        """Copy the whole file while it is used; the copy's size in bytes.

        The copy is made beside ``path``, checked, brought to the disk and then renamed, so ``path`` is at any time the
        old copy or the new one. Raises DatabaseError, OSError.
        """
        database = await self._opened()
        stop = threading.Event()
        try:
            return await asyncio.to_thread(backup.copy, database.file, Path(path), stop)
        finally:
            stop.set()  # cancelled, the thread gives up and removes what it has made

    async def vacuum(self) -> int:
        """Give the room of what was deleted back to the disk; the file's size in bytes then. Others wait meanwhile."""
        self._refuse_inside("vacuum")
        database = await self._opened()
        free = shutil.disk_usage(database.file.parent).free
        size = database.file.stat().st_size
        if free < 2 * size:
            raise DiskFull(f"{database.file}: vacuum needs {2 * size} bytes for a while, {free} are free")

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        await database.write(work, trusted=True, seconds=_LONG_SECONDS)
        return database.file.stat().st_size

    async def health_check(self) -> dict[str, Any]:
        """What ``BaseProxy.health_check`` tells, and file, sizes (bytes), queue, integrity, time of a tiny write."""
        health = await super().health_check()
        health |= {"reason": self.reason, "file": str(self._file) if self._file is not None else None}
        if self._file is not None:
            health |= await asyncio.to_thread(_sizes, self._file)
        try:
            health |= await self._measured(await self._opened())
        except ProxyError as error:
            health |= {"status": "unhealthy", "message": str(error)}
        return health

    async def _measured(self, database: Database) -> dict[str, Any]:
        queue = await self.sync_statistics()
        begun = time.perf_counter()
        await self._own(lambda connection: connection.execute(_TINY_WRITE).close(), writes=True)
        measured = {
            "write_ms": round((time.perf_counter() - begun) * 1000, 3),
            "queue": queue,
            "integrity": database.opened.integrity if database.opened is not None else "",
        }
        problem = database.flush_error or await asyncio.to_thread(_lost, database)
        return measured | ({"status": "unhealthy", "message": problem} if problem else {})

    def _refuse_inside(self, call: str) -> None:
        if joined(self._opened) is not None:
            raise QueryRefused(f"{call} cannot be a part of a transaction")


def _sizes(file: Path) -> dict[str, Any]:
    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:
            return 0

    try:
        free = shutil.disk_usage(file.parent).free
        aside = [str(one) for one in set_aside_before(file)]
    except OSError:
        free, aside = 0, []
    return {
        "file_bytes": size(file),
        "wal_bytes": size(Path(f"{file}-wal")),
        "free_bytes": free,
        "set_aside": aside,
    }


def _lost(database: Database) -> str:
    """Why what is written now would not be found again; empty when it will."""
    opened = database.opened
    if opened is None:
        raise ProxyNotReady(f"{database.file} is not open")
    try:
        found = database.file.stat()
    except OSError as error:
        return f"{database.file} was taken away while it is open: {error}"
    if (found.st_dev, found.st_ino) != opened.identity:
        return f"{database.file} was replaced while it is open: stop, put the right file there, start"
    return ""
