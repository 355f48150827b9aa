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
from petalbus.handlers.database.numbers import Drawn
from petalbus.handlers.database.writes import Operation, Verdict, Write

if TYPE_CHECKING:
    from petalbus.handlers.database.handler import DatabaseHandler
    from petalbus.petals.proxies.localdb.proxy import LocalDBProxy
    from petalbus.petals.proxies.localdb.queue import Change

LOOK_S: Final = 1.0
LINGER_S: Final = 5.0
AT_ONCE: Final = 32
_SHOWN: Final = 100
_FIRST_REST_S: Final = 0.5
_MOST_REST_S: Final = 60.0
_OPERATIONS: Final = {"set": Operation.PUT, "update": Operation.UPDATE, "delete": Operation.DELETE}

log: Final = structlog.get_logger(__name__)


class LocalQueue:
    """See ``handlers.database.handler.Parked``. ``look``: seconds between two looks at the file."""

    def __init__(self, file: Path, handler: DatabaseHandler, *, look: float = LOOK_S) -> None:
        self._file = file
        self.handler = handler
        self._look = look
        self._proxy: LocalDBProxy | None = None
        self._opening = asyncio.Lock()
        self._using = 0
        self._used = 0.0
        self._carrying: dict[int, asyncio.Task[None]] = {}
        self._resting: dict[int, float] = {}
        self._news = asyncio.Event()
        self.problem = ""

    async def run(self) -> None:
        """Until cancelled."""
        seen: object = None
        try:
            while True:
                now = await asyncio.to_thread(_state, self._file)
                self._wake_rested()
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

    async def retry_all(self) -> int:
        """Try all parked changes of items again."""
        if not await asyncio.to_thread(self._file.exists):
            return 0
        async with self._opened() as proxy:
            count = await proxy.sync_retry_items()
        self._news.set()
        return count

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
            if change.seq not in self._carrying and change.seq not in self._resting:
                task = asyncio.create_task(self._carry(change), name=f"database.local-{change.seq}")
                self._carrying[change.seq] = task
                task.add_done_callback(lambda _done, seq=change.seq: self._ended(seq))  # type: ignore[misc]  # bound at once

    def _wake_rested(self) -> None:
        now = time.monotonic()
        over = [seq for seq, until in self._resting.items() if until <= now]
        for seq in over:
            del self._resting[seq]
        if over:
            self._news.set()

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
        """Once: what the cloud cannot serve now rests, and leaves its place to others."""
        handler = self.handler
        serves_others = handler.link.successes > 0
        problem, park = "", False
        try:
            number = _Number(self, change)
            done = await handler.carry(lambda machine: _write(change, machine), _silent, number, _at_once)
            if done.verdict is Verdict.SUPERSEDED:
                log.warning("a change of the local database came too late: the item has a later one", change=change.key)
        except NotThere:  # to be deleted, and not there
            pass
        except TableError as error:
            problem, park = str(error), not error.passes
            if error.passes and serves_others and change.attempts + 1 >= handler.options.most_tries:
                problem, park = f"given up after {change.attempts + 1} tries, while others were done: {error}", True
        except Exception as error:  # noqa: BLE001  # a fault of ours: neither this change nor the others may be lost by it
            problem = f"{type(error).__name__}: {error}"
        if problem:
            log.warning("a change of the local database is not carried", change=change.key, parked=park, error=problem)
        try:
            async with self._opened() as proxy:
                if problem:
                    await proxy.sync_fail(change.seq, problem, park=park)
                else:
                    await proxy.sync_acknowledge(change.seq)
        except RuntimeError as error:  # the file is in trouble: the change stays, and is carried again
            log.warning("a carried change stays in the local database", change=change.key, error=str(error))
            await asyncio.sleep(self._look)
        if problem and not park:
            rest = min(_MOST_REST_S, _FIRST_REST_S * 2.0 ** min(change.attempts, 20))
            self._resting[change.seq] = time.monotonic() + rest

    async def remember(self, seq: int, number: int) -> None:
        """Write down a change's number. Raises DatabaseError, ProxyNotReady: then nothing may be written under it."""
        async with self._opened() as proxy:
            await proxy.sync_number(seq, number)

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


class _Number:
    """The number of a change: drawn when it is first carried, and kept in its row. See ``numbers.Source``."""

    def __init__(self, queue: LocalQueue, change: Change) -> None:
        self._queue = queue
        self._change = change
        self._numbers = queue.handler.numbers

    async def draw(self) -> Drawn:
        """See Source."""
        if self._change.number:
            return Drawn(self._change.number, fresh=False)
        drawn = await self._numbers.draw("", self._change.made)
        await self._queue.remember(self._change.seq, drawn.number)
        return drawn

    async def again(self, stored: int, *, lost: bool) -> int | None:
        """See Source."""
        number = await self._numbers.recover("", stored, lost=lost)
        if number is not None:
            await self._queue.remember(self._change.seq, number)
        return number


async def _silent(_reason: str) -> None:
    """It stays in the file; the status says what it waits for."""


async def _at_once(error: TableError) -> TableError:
    """Give it up for now."""
    return error


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
