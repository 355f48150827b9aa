"""Several statements as one: all of them, or none."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.localdb.atomic import BEGIN, COMMIT, ROLLBACK
from petalbus.petals.proxies.localdb.errors import DatabaseBusy, DatabaseError, QueryRefused
from petalbus.petals.proxies.localdb.sql import SqlCalls

if TYPE_CHECKING:
    from petalbus.petals.proxies.localdb.store import Database

T = TypeVar("T")

OPEN_SECONDS: Final = 60.0

logger = logging.getLogger(__name__)

_current: contextvars.ContextVar[Transaction | None] = contextvars.ContextVar("localdb_transaction", default=None)


class Transaction(SqlCalls):
    """``async with db.transaction() as tx``: leaving it commits, an exception or a cancellation undoes everything.

    The proxy's own calls belong to it too when the task that opened it makes them; other tasks wait for their turn.
    One that is open for more than 60 s is undone, so that nobody is kept from writing for ever.
    """

    def __init__(self, home: asyncio.AbstractEventLoop | None, database: Callable[[], Awaitable[Database]]) -> None:
        self._home = home
        self._find = database
        self._database: Database | None = None
        self._task: asyncio.Task[Any] | None = None
        self._token: contextvars.Token[Transaction | None] | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._open = False
        self._expired = False

    async def __aenter__(self) -> Self:
        if self._database is not None or joined(self._find) is not None:
            raise QueryRefused("a transaction inside of a transaction: use the one that is open")
        # Elsewhere its calls come home in tasks of their own, with the context of the caller.
        self._task = asyncio.current_task() if asyncio.get_running_loop() is self._home else None
        await at_home(self._home, self._begin)
        self._token = _current.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        await at_home(self._home, self._end, error is None)

    async def _perform(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        writes: bool,  # noqa: ARG002  # all of it is on the writing connection
        whole: bool = False,
    ) -> T:
        return await self.part(work, whole=whole)

    async def part(self, work: Callable[[sqlite3.Connection], T], *, whole: bool = False) -> T:
        """Run a petal's ``work`` as a part of it, from any loop."""
        if whole and self._database is not None:
            return await at_home(self._home, self.run, self._database.whole(work), True)
        return await at_home(self._home, self.run, work)

    async def run(self, work: Callable[[sqlite3.Connection], T], trusted: bool = False) -> T:
        """Run ``work`` as a part of it, on the proxy's loop."""
        if not self._open or self._database is None:
            raise self._over()

        def part(connection: sqlite3.Connection) -> T:
            if not connection.in_transaction:  # SQLite itself undoes one that meets a full disk, for example
                raise DatabaseError("the transaction was undone after an error; begin again")
            return work(connection)

        return await self._database.in_turn(part, trusted=trusted)

    def is_of(self, find: object) -> bool:
        """True when the calling task may go on in it. ``find``: what it was made with."""
        return self._open and self._find == find and (self._task is None or self._task is asyncio.current_task())

    async def _begin(self) -> None:
        database = await self._find()
        await database.take_turn()
        try:
            await database.in_turn(lambda connection: connection.execute(BEGIN).close(), trusted=True)
        except BaseException:
            # Cancelled, it may yet begin: what undoes it comes after it in the same thread.
            self._ending = asyncio.create_task(self._undo(database), name="localdb-undo")
            raise
        self._database, self._open = database, True
        self._limit = asyncio.get_running_loop().call_later(OPEN_SECONDS, self._expire)

    async def _end(self, commit: bool) -> None:
        if not self._open or self._database is None:
            if commit:
                raise self._over()
            return
        self._close()
        end = self._commit if commit else self._undo
        self._ending = asyncio.create_task(end(self._database), name="localdb-end-transaction")
        await asyncio.shield(self._ending)

    def _close(self) -> None:
        self._open = False
        if self._limit is not None:
            self._limit.cancel()

    def _expire(self) -> None:
        if self._open and self._database is not None:
            self._expired = True
            self._close()
            logger.error("a transaction on %s was open for %g s: it is undone", self._database.file, OPEN_SECONDS)
            self._ending = asyncio.create_task(self._undo(self._database), name="localdb-undo")

    def _over(self) -> DatabaseError:
        if self._expired:
            return DatabaseBusy(f"the transaction was open for more than {OPEN_SECONDS:g} s and was undone")
        return QueryRefused("the transaction is not open: use it inside of `async with db.transaction() as tx`")

    async def _commit(self, database: Database) -> None:
        try:
            await database.in_turn(_commit, trusted=True, always=True)
        finally:
            database.give_turn()

    async def _undo(self, database: Database) -> None:
        try:
            await database.in_turn(_undo, trusted=True, always=True)
        except DatabaseError as error:
            logger.warning("a transaction on %s could not be undone: %s", database.file, error)
        finally:
            database.give_turn()


def joined(find: object) -> Transaction | None:
    """The transaction that the calling task has open on the database of ``find``."""
    found = _current.get()
    return found if found is not None and found.is_of(find) else None


async def at_home(home: asyncio.AbstractEventLoop | None, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await ``call(*args)`` on the proxy's loop, whichever loop this is."""
    if home is None or home is asyncio.get_running_loop():
        return await call(*args)
    if home.is_closed():
        raise ProxyNotReady("the local database cannot be used: the loop it was started on is closed")

    async def there() -> T:
        return await call(*args)

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), home))


def _commit(connection: sqlite3.Connection) -> None:
    if not connection.in_transaction:
        raise DatabaseError("the transaction was undone after an error; begin again")
    try:
        connection.execute(COMMIT)
    except sqlite3.Error:  # a deferred constraint: it would stay open
        _undo(connection)
        raise


def _undo(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute(ROLLBACK)
