"""Carries what item calls of the local database have put into its sync queue to the cloud's tables.

Petals may write that file from other processes, so it is looked at: one ``stat`` a second, and nothing else while
nothing was written. It is held open only while changes are acknowledged: a damaged file can be set aside only when
nobody else holds it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus.handlers.database.errors import NotThere, Refused, TableError
from petalbus.handlers.database.writes import Operation, Write

if TYPE_CHECKING:
    from petalbus.handlers.database.handler import DatabaseHandler
    from petalbus.petals.proxies.localdb.proxy import LocalDBProxy
    from petalbus.petals.proxies.localdb.queue import Change

LOOK_S: Final = 1.0
LINGER_S: Final = 5.0
AT_ONCE: Final = 32
_SHOWN: Final = 100
_OPERATIONS: Final = {"set": Operation.PUT, "update": Operation.UPDATE, "delete": Operation.DELETE}

log: Final = structlog.get_logger(__name__)


class LocalQueue:
    """See ``handlers.database.handler.Parked``. ``look``: seconds between two looks at the file."""

    def __init__(self, file: Path, handler: DatabaseHandler, *, look: float = LOOK_S) -> None:
        self._file = file
        self._handler = handler
        self._look = look
        self._proxy: LocalDBProxy | None = None
        self._opening = asyncio.Lock()
        self._using = 0
        self._used = 0.0
        self._carrying: dict[int, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self.problem = ""

    async def run(self) -> None:
        """Until cancelled."""
        seen: object = None
        try:
            while True:
                now = await asyncio.to_thread(_state, self._file)
                if now is not None and (now != seen or self._news.is_set()):
                    self._news.clear()
                    seen = now
                    await self._carry_some()
                await self._wait()
                if not self._using and time.monotonic() - self._used > LINGER_S:
                    await self._close()
        finally:
            tasks = list(self._carrying.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close()

    async def retry(self, seq: int) -> bool:
        """Try a parked change again."""
        async with self._opened() as proxy:
            done = await proxy.sync_retry(seq)
        self._news.set()
        return done

    async def drop(self, seq: int) -> bool:
        """Forget a parked change."""
        async with self._opened() as proxy:
            return await proxy.sync_drop(seq)

    async def describe(self) -> dict[str, Any]:
        """What waits, by table, with the oldest's age in seconds; what is parked."""
        if not await asyncio.to_thread(self._file.exists):
            return {"tables": [], "parked": [], "problem": self.problem}
        now = time.time()
        async with self._opened() as proxy:
            tables = [
                {
                    "table": one["table"],
                    "waiting": one["waiting"],
                    "oldest_s": round(max(0.0, now - one["oldest"] / 1e6), 1),
                }
                for one in await proxy.sync_waiting()
            ]
            parked = [
                {"seq": one.seq, "key": one.key, "operation": one.operation, "error": one.error}
                for one in await proxy.sync_parked(_SHOWN)
            ]
        return {"tables": tables, "parked": parked, "problem": self.problem}

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._look):
                await self._news.wait()
        except TimeoutError:
            return

    async def _carry_some(self) -> None:
        """Begin with changes that nobody carries yet. What has ended wakes us for the next ones."""
        if len(self._carrying) >= AT_ONCE:
            return
        try:
            waiting = await self._read()
        except (RuntimeError, OSError) as error:  # a ProxyError is a RuntimeError
            if str(error) != self.problem:
                log.warning("the local database cannot be read now", error=str(error))
            self.problem = str(error)
            self._news.set()
            await asyncio.sleep(self._look)
            return
        self.problem = ""
        for change in waiting:
            if len(self._carrying) >= AT_ONCE:
                return
            if change.seq not in self._carrying:
                task = asyncio.create_task(self._carry(change), name=f"database.local-{change.seq}")
                self._carrying[change.seq] = task
                task.add_done_callback(lambda _done, seq=change.seq: self._ended(seq))  # type: ignore[misc]  # bound at once

    def _ended(self, seq: int) -> None:
        self._carrying.pop(seq, None)
        self._news.set()

    async def _read(self) -> list[Change]:
        module = await asyncio.to_thread(import_module, "petalbus.petals.proxies.localdb.queue")
        try:
            found: list[Change] = await asyncio.to_thread(module.read_items, self._file, 2 * AT_ONCE)
        except sqlite3.Error:  # an older file, a busy or a damaged one: the proxy knows what to do
            async with self._opened() as proxy:
                found = await proxy.sync_items(2 * AT_ONCE)
        return found

    async def _carry(self, change: Change) -> None:
        async def tell(_reason: str) -> None:
            """It stays in the file; the status says what it waits for."""

        refused = ""
        try:
            await self._handler.carry(lambda machine: _write(change, machine), tell)
        except NotThere:  # to be deleted, and not there
            pass
        except TableError as error:
            log.warning("a change of the local database is refused", change=change.key, error=str(error))
            refused = str(error)
        try:
            async with self._opened() as proxy:
                if refused:
                    await proxy.sync_fail(change.seq, refused, park=True)
                else:
                    await proxy.sync_acknowledge(change.seq)
        except RuntimeError as error:  # the file is in trouble: the change stays, and is carried again
            log.warning("a carried change stays in the local database", change=change.key, error=str(error))
            await asyncio.sleep(self._look)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[LocalDBProxy]:
        """The proxy of the file, for a short time."""
        async with self._opening:
            if self._proxy is None:
                module = await asyncio.to_thread(import_module, "petalbus.petals.proxies.localdb")
                made: LocalDBProxy = module.LocalDBProxy(file=self._file)
                await made.start()
                self._proxy = made
            proxy = self._proxy
            self._using += 1
        try:
            yield proxy
        finally:
            self._using -= 1
            self._used = time.monotonic()

    async def _close(self) -> None:
        async with self._opening:
            proxy, self._proxy = self._proxy, None
            if proxy is not None:
                await proxy.stop()


def _write(change: Change, machine: str) -> Write:
    body = change.body if isinstance(change.body, dict) else {}
    if change.operation not in _OPERATIONS:
        raise Refused(f"operation {change.operation!r} is unknown")
    order = {
        "table": body.get("table_name"),
        "key": {body.get("filter_key"): body.get("filter_value")},
        "operation": _OPERATIONS[change.operation],
        "item": {} if change.operation == "delete" else body.get("data"),
    }
    return Write.of(order, machine=machine, seq=change.made)


def _state(file: Path) -> tuple[int, ...] | None:
    """What changes when somebody writes; None while there is no file."""
    found: list[int] = []
    for name in (file, f"{file}-wal"):
        try:
            told = os.stat(name)  # noqa: PTH116  # also of a name that is no path
        except FileNotFoundError:
            if name is file:
                return None
            continue
        except OSError:
            return None
        found += [told.st_mtime_ns, told.st_size, told.st_ino]
    return tuple(found)
