"""The sync queue: changes that wait for a link to carry them elsewhere. They are in the file, and outlive everything.

The changes of one key leave in the order in which they were made: only its oldest one is shown. A change that cannot be
carried (``sync_fail(..., park=True)``) is parked: it is kept, and lets the later ones of its key pass.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.localdb.atomic import atomically
from petalbus.petals.proxies.localdb.errors import QueryRefused, QueueFull

T = TypeVar("T")

MAX_CHANGES: Final = 100_000
MAX_BYTES: Final = 256 << 20
MAX_BODY: Final = 1 << 20
_ERROR_LENGTH: Final = 1000

_IS_ITEM: Final = "operation IN ('set', 'update', 'delete') AND json_type(body, '$.table_name') = 'text'"
_TURN: Final = """
    SELECT seq, key, operation, body, attempts, error, made, number FROM petalbus_sync AS one
    WHERE parked = 0 AND NOT EXISTS (
        SELECT 1 FROM petalbus_sync AS older WHERE older.key = one.key AND older.parked = 0 AND older.seq < one.seq
    )
    ORDER BY attempts, seq LIMIT ?
"""
_IS_WANTED: Final = f"{_IS_ITEM} AND seq NOT IN (SELECT value FROM json_each(?))"  # noqa: S608  # our own words
_ITEMS: Final = _TURN.replace("WHERE parked = 0", f"WHERE parked = 0 AND {_IS_WANTED}", 1)
_PARKED: Final = """
    SELECT seq, key, operation, body, attempts, error, made, number FROM petalbus_sync
    WHERE parked = 1 ORDER BY seq LIMIT ?
"""
_BY_TABLE: Final = f"""
    SELECT json_extract(body, '$.table_name'), COUNT(*), MIN(made) FROM petalbus_sync
    WHERE parked = 0 AND {_IS_ITEM} GROUP BY 1 ORDER BY 1
"""  # noqa: S608  # our own words


@dataclass(frozen=True, slots=True)
class Change:
    """One change. ``seq`` grows; ``attempts``: how often it failed, ``error``: why the last time.

    ``made``: when, in microseconds of the wall clock; it never goes back, whatever the clock does. ``number``: the one
    under which it is carried, 0 before that.
    """

    seq: int
    key: str
    operation: str
    body: Any
    attempts: int
    error: str | None
    made: int = 0
    number: int = 0


class SyncQueue(BaseProxy):
    """The queue's calls. All raise DatabaseError's kinds, and ProxyNotReady while the file cannot be used."""

    _max_changes: int = MAX_CHANGES

    async def sync_append(self, key: str, operation: str, body: Any) -> int:
        """Add a change; its ``seq``. Raises QueueFull (100,000 changes, 256 MiB), QueryRefused for what is no JSON."""
        text = json_text(body)

        def work(connection: sqlite3.Connection) -> int:
            return add(connection, key, operation, text, self._max_changes)

        return await self._own(atomically(work), writes=True)

    async def sync_pending(self, limit: int = 100) -> list[Change]:
        """What may be carried now: the oldest change of each key, those that failed less often first."""
        return await self._own(lambda connection: _changes(connection, _TURN, limit), writes=False)

    async def sync_items(self, limit: int = 100, without: Collection[int] = ()) -> list[Change]:
        """As ``sync_pending``, of those that item calls have appended: the daemon carries these to the cloud.

        ``without``: ``seq`` of changes that are not wanted, because they are under way.
        """
        return await self._own(lambda connection: _items(connection, limit, without), writes=False)

    async def sync_waiting(self) -> list[dict[str, Any]]:
        """How many changes of items wait: ``table``, ``waiting``, ``oldest`` (microseconds of the wall clock)."""

        def work(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = connection.execute(_BY_TABLE).fetchall()
            return [{"table": table, "waiting": count, "oldest": oldest} for table, count, oldest in rows]

        return await self._own(work, writes=False)

    async def sync_parked(self, limit: int = 100) -> list[Change]:
        """What was given up, the oldest first."""
        return await self._own(lambda connection: _changes(connection, _PARKED, limit), writes=False)

    async def sync_acknowledge(self, *seqs: int) -> int:
        """These were carried: forget them. How many of them were there."""
        return await self._own(atomically(lambda connection: _remove(connection, seqs)), writes=True)

    async def sync_fail(self, seq: int, error: str, *, park: bool = False, counts: bool = True) -> bool:
        """It was not carried. ``park``: give it up, and keep it. ``counts``: as an attempt. False: no such change."""
        change = "UPDATE petalbus_sync SET attempts = attempts + ?, error = ?, parked = max(parked, ?) WHERE seq = ?"
        params = (int(counts), str(error)[:_ERROR_LENGTH], int(park), seq)
        return await self._own(lambda connection: connection.execute(change, params).rowcount > 0, writes=True)

    async def sync_number(self, seq: int, number: int) -> bool:
        """Remember under which number it is carried, for whoever carries it again. False: there is no such change."""
        change = "UPDATE petalbus_sync SET number = ? WHERE seq = ?"
        return await self._own(lambda connection: connection.execute(change, (number, seq)).rowcount > 0, writes=True)

    async def sync_retry_items(self) -> int:
        """Try all parked changes again that item calls have made; how many."""
        change = f"UPDATE petalbus_sync SET attempts = 0, parked = 0 WHERE parked = 1 AND {_IS_ITEM}"  # noqa: S608  # our own words
        return await self._own(lambda connection: int(connection.execute(change).rowcount), writes=True)

    async def sync_retry(self, seq: int) -> bool:
        """Try a parked change again, as if it were new. False when it is not parked."""
        change = "UPDATE petalbus_sync SET attempts = 0, parked = 0 WHERE seq = ? AND parked = 1"
        return await self._own(lambda connection: connection.execute(change, (seq,)).rowcount > 0, writes=True)

    async def sync_drop(self, seq: int) -> bool:
        """Forget a parked change. False when it is not parked."""
        change = "DELETE FROM petalbus_sync WHERE seq = ? AND parked = 1"
        return await self._own(lambda connection: connection.execute(change, (seq,)).rowcount > 0, writes=True)

    async def sync_statistics(self) -> dict[str, int]:
        """``changes`` (parked ones included), ``parked``, ``bytes`` of bodies, ``limit`` of changes."""
        return await self._own(lambda connection: statistics(connection, self._max_changes), writes=False)

    async def _own(self, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        """Run our own statements; part of the calling task's transaction when it has one."""
        raise NotImplementedError


def read_items(file: Path, limit: int, without: Collection[int] = ()) -> list[Change]:
    """``sync_items`` of a file that nobody here has open, and that is not kept open. Blocks. Raises sqlite3.Error."""
    # not read-only: the log of somebody who was killed must be read, too
    connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, timeout=1.0, isolation_level=None)
    try:
        connection.execute("PRAGMA query_only = ON")
        return _items(connection, limit, without)
    finally:
        connection.close()


def add(connection: sqlite3.Connection, key: str, operation: str, text: str, limit: int) -> int:
    """Append one change; part of the transaction that is open."""
    facts = _facts(connection)
    if facts["sync_changes"] >= limit or facts["sync_bytes"] + len(text) > MAX_BYTES:
        raise QueueFull(
            f"the sync queue is full ({facts['sync_changes']} changes, {facts['sync_bytes']} bytes): nothing was "
            "written; it takes more when a link has carried some"
        )
    made = max(time.time_ns() // 1000, facts["sync_made"] + 1)
    connection.execute("UPDATE petalbus_facts SET value = ? WHERE name = 'sync_made'", (made,))
    row = connection.execute(
        "INSERT INTO petalbus_sync (key, operation, body, made) VALUES (?, ?, ?, ?)", (key, operation, text, made)
    )
    return row.lastrowid or 0


def statistics(connection: sqlite3.Connection, limit: int) -> dict[str, int]:
    """What ``sync_statistics`` tells."""
    facts = _facts(connection)
    parked = connection.execute("SELECT COUNT(*) FROM petalbus_sync WHERE parked = 1").fetchone()[0]
    return {"changes": facts["sync_changes"], "parked": parked, "bytes": facts["sync_bytes"], "limit": limit}


def json_text(body: Any) -> str:
    """A JSON document of 1 MiB at most. NaN and infinities become null. Raises QueryRefused."""
    try:
        text = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise QueryRefused(f"it cannot be written as JSON: {error}") from None
    if len(text) > MAX_BODY:
        raise QueryRefused(f"it has {len(text)} bytes as JSON; {MAX_BODY} are allowed")
    return text.decode()


def _facts(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT name, value FROM petalbus_facts").fetchall())


def _items(connection: sqlite3.Connection, limit: int, without: Collection[int]) -> list[Change]:
    return _changes(connection, _ITEMS, limit, orjson.dumps(list(without)).decode())


def _changes(connection: sqlite3.Connection, query: str, limit: int, *params: str) -> list[Change]:
    found = connection.execute(query, (*params, max(1, min(limit, 1000)))).fetchall()
    return [Change(seq, key, operation, orjson.loads(body), *rest) for seq, key, operation, body, *rest in found]


def _remove(connection: sqlite3.Connection, seqs: tuple[int, ...]) -> int:
    return sum(connection.execute("DELETE FROM petalbus_sync WHERE seq = ?", (seq,)).rowcount for seq in seqs)
