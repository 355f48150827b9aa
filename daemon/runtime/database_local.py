"""Carries what item calls of the local database have put into its sync queue to the cloud's tables.

Petals may write that file from other processes, so it is looked at: one ``stat`` a second, and nothing else while
nothing was written. The file is opened when it is first there.
"""

from __future__ import annotations

import asyncio
import os
import time
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
        finally:
            tasks = list(self._carrying.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            proxy, self._proxy = self._proxy, None
            if proxy is not None:
                await proxy.stop()

    async def retry(self, seq: int) -> bool:
        """Try a parked change again."""
        done = self._proxy is not None and await self._proxy.sync_retry(seq)
        self._news.set()
        return done

    async def drop(self, seq: int) -> bool:
        """Forget a parked change."""
        return self._proxy is not None and await self._proxy.sync_drop(seq)

    async def describe(self) -> dict[str, Any]:
        """What waits, by table, with the oldest's age in seconds; what is parked."""
        if self._proxy is None:
            return {"tables": [], "parked": [], "problem": self.problem}
        now = time.time()
        tables = [
            {"table": one["table"], "waiting": one["waiting"], "oldest_s": round(max(0.0, now - one["oldest"] / 1e6), 1)}
            for one in await self._proxy.sync_waiting()
        ]
        parked = [
            {"seq": one.seq, "key": one.key, "operation": one.operation, "error": one.error}
            for one in await self._proxy.sync_parked(_SHOWN)
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
        try:
            proxy = await self._opened()
            waiting = await proxy.sync_items(2 * AT_ONCE)
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
                task = asyncio.create_task(self._carry(proxy, change), name=f"database.local-{change.seq}")
                self._carrying[change.seq] = task
                task.add_done_callback(lambda _done, seq=change.seq: self._ended(seq))  # type: ignore[misc]  # bound at once

    def _ended(self, seq: int) -> None:
        self._carrying.pop(seq, None)
        self._news.set()

    async def _carry(self, proxy: LocalDBProxy, change: Change) -> None:
        async def tell(_reason: str) -> None:
            """It stays in the file; the status says what it waits for."""

        try:
            try:
                await self._handler.carry(lambda machine: _write(change, machine), tell)
            except NotThere:  # to be deleted, and not there
                pass
            except TableError as error:
                log.warning("a change of the local database is refused", change=change.key, error=str(error))
                await proxy.sync_fail(change.seq, str(error), park=True)
                return
            await proxy.sync_acknowledge(change.seq)
        except RuntimeError as error:  # the file is in trouble: the change stays, and is carried again
            log.warning("a carried change stays in the local database", change=change.key, error=str(error))
            await asyncio.sleep(self._look)

    async def _opened(self) -> LocalDBProxy:
        if self._proxy is None:
            module = await asyncio.to_thread(import_module, "petalbus.petals.proxies.localdb")
            made: LocalDBProxy = module.LocalDBProxy(file=self._file)
            await made.start()
            self._proxy = made
        return self._proxy


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
