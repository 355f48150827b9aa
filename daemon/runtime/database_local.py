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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus.handlers.database.errors import Busy, NotThere, Refused, TableError
from petalbus.handlers.database.numbers import Drawn
from petalbus.handlers.database.writes import Operation, Verdict, Write

if TYPE_CHECKING:
    from petalbus.handlers.database.handler import DatabaseHandler
    from petalbus.petals.proxies.localdb.proxy import LocalDBProxy
    from petalbus.petals.proxies.localdb.queue import Change

LOOK_S: Final = 1.0
LINGER_S: Final = 5.0
AT_ONCE: Final = 32
"""Changes under way. What waits for its item's turn, or rests, does not count."""

KEPT: Final = 64
"""Changes that rest and keep their item's turn meanwhile. More leave it, and may then come too late."""

_MOST: Final = 512
"""Changes in our hands, those that wait and those that rest with their turn included."""

_SHOWN: Final = 100
_FIRST_REST_S: Final = 0.5
_MOST_REST_S: Final = 60.0
_UNCOUNTED_REST_S: Final = 10.0
_TOO_LATE: Final = (
    "superseded: a later write of this vehicle was done to the item before this change was acknowledged; "
    "write the item again if its members are missing there, else drop this one"
)
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
        self._waiting: set[int] = set()  # for their item's turn
        self._kept: set[int] = set()  # rest with their turn
        self._resting: dict[int, float] = {}  # rest without
        self._left: set[int] = set()  # since the last look began
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
        if not self._free():
            return
        self._left.clear()
        try:
            waiting = await self._read([*self._carrying, *self._resting])
        except (RuntimeError, OSError) as error:  # a ProxyError is a RuntimeError
            if str(error) != self.problem:
                log.warning("the local database cannot be read now", error=str(error))
            self.problem = str(error)
            self._news.set()
            await asyncio.sleep(self._look)
            return
        self.problem = ""
        for change in waiting:
            if not self._free():
                return
            # What left our hands while we read is told as it was before: without its number, or as if it still waited.
            if change.seq not in self._carrying and change.seq not in self._resting and change.seq not in self._left:
                task = asyncio.create_task(self._carry(change), name=f"database.local-{change.seq}")
                self._carrying[change.seq] = task
                task.add_done_callback(lambda _done, seq=change.seq: self._ended(seq))  # type: ignore[misc]  # bound at once

    def _free(self) -> bool:
        """Whether one more change may be begun."""
        held = len(self._carrying)
        return held < _MOST and held - len(self._waiting) - len(self._kept) < AT_ONCE

    def _wake_rested(self) -> None:
        now = time.monotonic()
        over = [seq for seq, until in self._resting.items() if until <= now]
        for seq in over:
            del self._resting[seq]
        if over:
            self._news.set()

    def _ended(self, seq: int) -> None:
        self._carrying.pop(seq, None)
        self._left.add(seq)
        self._news.set()

    async def _read(self, without: list[int]) -> list[Change]:
        module = await asyncio.to_thread(import_module, "petalbus.petals.proxies.localdb.queue")
        try:
            found: list[Change] = await asyncio.to_thread(module.read_items, self._file, 2 * AT_ONCE, without)
        except sqlite3.Error:  # an older file, a busy or a damaged one: the proxy knows what to do
            async with self._opened() as proxy:
                found = await proxy.sync_items(2 * AT_ONCE, without)
        return found

    async def _carry(self, change: Change) -> None:
        """Until it is done, parked, or has to rest without its turn."""
        carrying = _Carrying(self, change)
        self._waiting.add(change.seq)
        self._news.set()  # while it waits for its turn another may begin
        problem, park = "", False
        try:
            problem = await carrying.run(begun=lambda: self._waiting.discard(change.seq))
            park = bool(problem)
        except (NotThere, Gone):  # to be deleted, and not there; or nobody wants it any more
            pass
        except TableError as error:
            problem, park = str(error), not error.passes
        except Exception as error:  # noqa: BLE001  # a fault of ours: neither this change nor the others may be lost by it
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._waiting.discard(change.seq)
            self._kept.discard(change.seq)
        try:
            if problem:
                await self.fail(change, problem, park=park, counts=park or carrying.counts)
            else:
                async with self._opened() as proxy:
                    await proxy.sync_acknowledge(change.seq)
        except RuntimeError as error:  # the file is in trouble: the change stays, and is carried again
            log.warning("a carried change stays in the local database", change=change.key, error=str(error))
            await asyncio.sleep(self._look)
        if problem and not park:
            rest = min(_MOST_REST_S, _FIRST_REST_S * 2.0 ** min(carrying.attempts, 20))
            rest = rest if carrying.counts else max(rest, _UNCOUNTED_REST_S)  # it would not grow
            self._resting[change.seq] = time.monotonic() + rest

    async def fail(self, change: Change, problem: str, *, counts: bool, park: bool = False) -> None:
        """Write down why, count the try, park the change. Raises DatabaseError, ProxyNotReady."""
        log.warning("a change of the local database is not carried", change=change.key, parked=park, error=problem)
        async with self._opened() as proxy:
            await proxy.sync_fail(change.seq, problem, park=park, counts=counts)

    def keep(self, seq: int) -> bool:
        """Whether a change may rest with its turn."""
        if seq not in self._kept and len(self._kept) >= KEPT:
            return False
        self._kept.add(seq)
        self._news.set()  # while it rests another may begin
        return True

    async def remember(self, seq: int, number: int) -> None:
        """Write down a change's number. Nothing may be written under it before that.

        Raises Gone when there is no such change any more, DatabaseError, ProxyNotReady.
        """
        async with self._opened() as proxy:
            if not await proxy.sync_number(seq, number):
                raise Gone(f"change {seq} is not in the local database any more")

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


class Gone(Exception):
    """A change was acknowledged or dropped by somebody else."""


class _Carrying:
    """One change on its way. Between its tries it keeps its item's turn, so that no later write overtakes it.

    ``attempts``: those that count; ``counts``: whether the last one did that the file does not know of yet.
    """

    def __init__(self, queue: LocalQueue, change: Change) -> None:
        self.attempts = change.attempts
        self.counts = False
        self._queue = queue
        self._change = change
        self._machine = ""
        self._served = queue.handler.link.successes

    async def run(self, *, begun: Callable[[], None]) -> str:
        """Why it must be parked although nothing was refused; empty when it is done. Raises TableError, Gone.

        ``begun``: called when it has its item's turn.
        """
        number = _Number(self._queue, self._change)
        done = await self._queue.handler.carry(self._write, _silent, number, self._failed, begun=begun)
        if done.verdict is not Verdict.SUPERSEDED:
            return ""
        if done.stored_by == self._machine:  # its members may be nowhere: that is for people to decide
            return _TOO_LATE
        log.warning("a change of the local database came too late: another writer was later", change=self._change.key)
        return ""

    def _write(self, machine: str) -> Write:
        self._machine = machine
        return _write(self._change, machine)

    async def _failed(self, error: TableError) -> TableError | None:
        """None: it rests and keeps its turn. A try counts if others were done since the last one."""
        handler = self._queue.handler
        counts = handler.link.successes > self._served and not isinstance(error, Busy)
        self._served = handler.link.successes
        self.attempts += counts
        if counts and self.attempts >= handler.options.most_tries:
            return Refused(f"given up after {self.attempts} tries, while others were done: {error}")
        if not self._queue.keep(self._change.seq):
            self.counts = counts
            return error
        await self._queue.fail(self._change, str(error), counts=counts)
        return None


class _Number:
    """The number of a change: drawn once, and kept in its row. See ``numbers.Source``."""

    def __init__(self, queue: LocalQueue, change: Change) -> None:
        self._queue = queue
        self._change = change
        self._known = change.number
        self._numbers = queue.handler.numbers

    async def draw(self) -> Drawn:
        """See Source. Raises Gone."""
        if self._known:
            return Drawn(self._known, fresh=False)
        drawn = await self._numbers.draw("", self._change.made)
        await self._queue.remember(self._change.seq, drawn.number)
        self._known = drawn.number
        return drawn

    async def again(self, stored: int) -> int | None:
        """See Source. Raises Gone."""
        number = await self._numbers.recover("", stored)
        if number is not None:
            await self._queue.remember(self._change.seq, number)
            self._known = number
        return number


async def _silent(_reason: str) -> None:
    """It stays in the file; the status says what it waits for."""


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
