"""The attempts at one write: its turn at the item, its number, and what an unexpected error means."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.database import words
from petalbus.handlers.database.errors import Away, Failing, Refused, TableError
from petalbus.handlers.database.writes import Policy, Verdict, Write

if TYPE_CHECKING:
    from petalbus.handlers.database.numbers import Drawn, Source
    from petalbus.handlers.database.tables import Done, Tables

_RENUMBERED: Final = 4
"""New numbers for one write in one attempt."""

log = logging.getLogger(__name__)


class Turns:
    """One write of an item at a time, whichever way it came; in the order in which they asked."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, write: Write) -> AsyncIterator[None]:
        """Wait for the item's turn. Raises Refused for a key that cannot be."""
        try:
            key = words.order_key(write.table, write.key, write.value)
        except UnicodeError as error:
            raise Refused(f"{write}: {error}") from None
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[key]
            if users > 1:
                self._locks[key] = (lock, users - 1)
            else:
                del self._locks[key]


class Attempts:
    """Call it for each attempt. ``make``: the write of a machine; ``policy``: of a table. All raise TableError."""

    def __init__(
        self,
        tables: Tables,
        make: Callable[[str], Write],
        source: Source,
        *,
        machine: Callable[[], str | None],
        policy: Callable[[str], Policy],
    ) -> None:
        self._tables = tables
        self._make = make
        self._source = source
        self._machine = machine
        self._policy = policy
        self._drawn: Drawn | None = None
        self._tried = False
        self._faults: set[str] = set()

    def looked_at(self) -> Write:
        """The write, of whichever machine. Raises Refused for what can be none."""
        return self._made("")

    async def numbered(self) -> Drawn:
        """Its number, which is drawn once: call it as soon as it has its item's turn. Raises Refused.

        What waits for the cloud has its number on the disk by then, and what is refused has one, too: tried again,
        both are older than what was done since.
        """
        if self._drawn is None:
            self._drawn = await self._source.draw()
        return self._drawn

    async def __call__(self) -> Done:
        """One attempt, within the item's turn."""
        drawn = await self.numbered()
        machine = self._machine()
        if not machine:
            raise Away("the machine id is not known: set machine_id")
        write = self._made(machine)
        tried = self._tried
        for _ in range(_RENUMBERED):
            done = await self._written(replace(write, seq=drawn.number))
            another = await self._renumbered(write, done, tried=tried) if drawn.fresh else None
            if another is None:
                return done
            self._drawn = drawn = drawn._replace(number=another)
            tried = False
        raise Failing(f"{write}: the cloud has higher and higher numbers of this machine: is there another one?")

    async def _written(self, write: Write) -> Done:
        before, self._tried = self._tried, True
        try:
            return await self._tables.write(write, self._policy(write.table))
        except TableError as error:
            if not error.passes:
                self._tried = before
            raise
        except Exception as error:  # noqa: BLE001  # see below
            # A fault of ours or of the settings: the write is not to blame. Its text may hold a secret.
            if type(error).__name__ not in self._faults:  # it may come back at each attempt
                self._faults.add(type(error).__name__)
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("%s failed with %s:\n%s", write, type(error).__name__, where)  # noqa: TRY400  # not its text
            raise Failing(f"{write}: {type(error).__name__} inside of the handler: see the daemon's log") from None

    async def _renumbered(self, write: Write, done: Done, *, tried: bool) -> int | None:
        """A new number for one that is fresh, where the cloud shows that ours were lost.

        A higher one of ours is older than this: since it was drawn we have the item's turn. An equal one was drawn
        twice, unless this was ``tried`` before: then it may be our own.
        """
        stored = _whole(done.stored_seq)
        if done.verdict is Verdict.APPLY or done.stored_by != write.machine or stored is None:
            return None
        if done.verdict is Verdict.REPEATED and tried:
            return None
        return await self._source.again(stored)

    def _made(self, machine: str) -> Write:
        try:
            return self._make(machine)
        except TableError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever a record may hold
            raise Refused(f"it can never be written: {type(error).__name__}: {error}"[:500]) from None


def _whole(number: Any) -> int | None:
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal) or number != number:  # noqa: PLR0124  # NaN
        return None
    try:
        return int(number)
    except (OverflowError, ValueError):
        return None
