"""The calls that take SQL, or make it: the same ones on the proxy and inside of a transaction."""

from __future__ import annotations

import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from petalbus.petals.proxies.localdb import words
from petalbus.petals.proxies.localdb.errors import QueryRefused
from petalbus.petals.proxies.localdb.words import Params, Where

T = TypeVar("T")

MAX_ROWS: Final = 10_000
MAX_ANSWER_BYTES: Final = 64 << 20
_BATCH: Final = 256
_COMMENTS: Final = r"(?:\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*"  # read in one way only: it must not stall
_INSERTING: Final = re.compile(_COMMENTS + r"(?:INSERT|REPLACE|WITH)\b", re.IGNORECASE | re.DOTALL)
_READING: Final = re.compile(_COMMENTS + r"(?:SELECT|VALUES|WITH|EXPLAIN|PRAGMA)\b", re.IGNORECASE | re.DOTALL)


class Rows(list[dict[str, Any]]):
    """The rows that a statement gave (none for one that only writes), and what it did.

    ``changed``: rows inserted, updated or deleted. ``last_id``: the row id that the last INSERT was given, or None.
    """

    changed: int = 0
    last_id: int | None = None


class SqlCalls(ABC):
    """What a petal calls. All of them raise DatabaseError's kinds, and ProxyNotReady while the file cannot be used."""

    async def execute_query(self, sql: str, params: Params | None = None, *, limit: int = MAX_ROWS) -> Rows:
        """Run any one statement; ``params`` are bound to its ``?`` or ``:name``. Over ``limit`` rows: QueryRefused."""
        statement = words.query(sql, params)

        def work(connection: sqlite3.Connection) -> Rows:
            return _rows(connection, statement, limit)

        writes = _READING.match(sql) is None
        # what begins with WITH may do either: where it writes, it is undone as a whole, too
        return await self._perform(work, writes=writes, whole=_INSERTING.match(sql) is not None or writes)

    async def fetch_one(self, sql: str, params: Params | None = None) -> dict[str, Any] | None:
        """The first row as a dictionary, or None when there is none."""
        statement = words.query(sql, params)

        def work(connection: sqlite3.Connection) -> dict[str, Any] | None:
            cursor = connection.execute(*statement)
            row = cursor.fetchone()
            found = None if row is None else dict(zip(_names(cursor), row, strict=True))
            cursor.close()
            return found

        return await self._perform(work, writes=_READING.match(sql) is None)

    async def fetch_all(self, sql: str, params: Params | None = None, *, limit: int = MAX_ROWS) -> list[dict[str, Any]]:
        """All rows as dictionaries. More than ``limit`` rows, or than 64 MiB of text and bytes: QueryRefused."""
        return await self.execute_query(sql, params, limit=limit)

    async def insert(self, table: str, data: Mapping[str, Any]) -> int:
        """Insert one row; its row id (the value of an INTEGER PRIMARY KEY)."""
        statement = words.insert(table, data)

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(*statement).lastrowid or 0

        return await self._perform(work, writes=True)

    async def update(self, table: str, data: Mapping[str, Any], where: Where) -> int:
        """Change the rows whose columns equal ``where`` (None equals NULL); how many those were. ``ALL``: every row."""
        statement = words.update(table, data, where)
        return await self._perform(lambda connection: _changed(connection, statement), writes=True)

    async def delete(self, table: str, where: Where) -> int:
        """Delete the rows whose columns equal ``where``; how many those were. ``ALL``: every row."""
        statement = words.delete(table, where)
        return await self._perform(lambda connection: _changed(connection, statement), writes=True)

    @abstractmethod
    async def _perform(self, work: Callable[[sqlite3.Connection], T], *, writes: bool, whole: bool = False) -> T:
        """Run ``work`` where it belongs. ``writes`` False: it looks as if it only read.

        ``whole``: it may raise after it has written, which must then be undone.
        """
        ...


def _changed(connection: sqlite3.Connection, statement: words.Statement) -> int:
    return max(0, connection.execute(*statement).rowcount)


def _rows(connection: sqlite3.Connection, statement: words.Statement, limit: int) -> Rows:
    cursor = connection.execute(*statement)
    rows = Rows()
    names = _names(cursor)
    size = 0
    try:
        while names and (batch := cursor.fetchmany(_BATCH)):
            for row in batch:
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                rows.append(dict(zip(names, row, strict=True)))
            if len(rows) > limit or size > MAX_ANSWER_BYTES:
                what = f"{limit} rows" if len(rows) > limit else f"{MAX_ANSWER_BYTES >> 20} MiB"
                raise QueryRefused(f"the answer has more than {what}: add LIMIT, or ask for a part at a time")
    finally:
        cursor.close()
    rows.changed = max(0, cursor.rowcount)
    rows.last_id = cursor.lastrowid if _INSERTING.match(statement.sql) else None
    return rows


def _names(cursor: sqlite3.Cursor) -> list[str]:
    return [column[0] for column in cursor.description or ()]
