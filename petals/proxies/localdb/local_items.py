"""Items in the local file: one row each, the document as JSON text."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import orjson

from petalbus.petals.proxies.localdb.atomic import atomically
from petalbus.petals.proxies.localdb.errors import QueryRefused
from petalbus.petals.proxies.localdb.items import OWNER, Filter, Item, ItemStore, NoItem
from petalbus.petals.proxies.localdb.queue import add, json_text
from petalbus.petals.proxies.localdb.sql import MAX_ANSWER_BYTES, MAX_ROWS

T = TypeVar("T")

_ONE: Final = "SELECT body, deleted FROM petalbus_items WHERE table_name = ? AND key_name = ? AND key_value = ?"
_PUT: Final = """
    INSERT INTO petalbus_items (table_name, key_name, key_value, body, deleted) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (table_name, key_name, key_value) DO UPDATE SET body = excluded.body, deleted = excluded.deleted
"""


class Run(Protocol):
    """How work gets to the file: the proxy's ``_own``."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        """Run it."""
        ...


class LocalItems(ItemStore):
    """All items of the file belong to this machine, whatever it was called when they were written."""

    def __init__(self, run: Run, max_changes: int) -> None:
        self._run = run
        self._max_changes = max_changes

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item."""

        def work(connection: sqlite3.Connection) -> tuple[str, int] | None:
            found: tuple[str, int] | None = connection.execute(_ONE, (table, key, value)).fetchone()
            return found

        row = await self._run(work, writes=False)
        if row is None or row[1]:
            raise NoItem(_missing(table, key, value, deleted=row is not None))
        return _document(row[0], machine)

    async def scan(self, machine: str, table: str, filters: Sequence[Filter]) -> list[Item]:
        """The items, in the order in which they were first written."""
        query, params = _scan(table, machine, filters)

        def work(connection: sqlite3.Connection) -> list[Item]:
            return [_document(text, machine) for text in _texts(connection, query, params, table)]  # in the thread

        return await self._run(work, writes=False)

    async def put(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Item:
        """Write it whole."""
        item = {key: value, **data}
        deleted = item.get("deleted") is True
        text = json_text(item)

        def work(connection: sqlite3.Connection) -> None:
            self._write(connection, (table, key, value), text, deleted=deleted, operation="set", sync=sync)

        await self._run(atomically(work), writes=True)
        return _document(text, machine)

    async def change(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Item:
        """Change members."""

        def work(connection: sqlite3.Connection) -> str:
            row = connection.execute(_ONE, (table, key, value)).fetchone()
            if row is not None and row[1]:
                raise NoItem(_missing(table, key, value, deleted=True) + "; set_item makes it anew")
            before = orjson.loads(row[0]) if row is not None else {key: value}
            item = {**before, **data}
            text = json_text(item)
            deleted = item.get("deleted") is True
            self._write(connection, (table, key, value), text, deleted=deleted, operation="update", sync=sync)
            return text

        return _document(await self._run(atomically(work), writes=True), machine)

    async def remove(self, machine: str, table: str, key: str, value: str, *, sync: bool) -> Item:
        """Mark it."""

        def work(connection: sqlite3.Connection) -> str:
            row = connection.execute(_ONE, (table, key, value)).fetchone()
            if row is None or row[1]:
                raise NoItem(_missing(table, key, value, deleted=row is not None))
            text = json_text({**orjson.loads(row[0]), "deleted": True})
            self._write(connection, (table, key, value), text, deleted=True, operation="delete", sync=sync)
            return text

        return _document(await self._run(atomically(work), writes=True), machine)

    def _write(
        self,
        connection: sqlite3.Connection,
        where: tuple[str, str, str],
        text: str,
        *,
        deleted: bool,
        operation: str,
        sync: bool,
    ) -> None:
        connection.execute(_PUT, (*where, text, int(deleted)))
        if sync:
            table, key, value = where
            change = {"table_name": table, "filter_key": key, "filter_value": value, "data": orjson.Fragment(text)}
            add(connection, f"{table}/{key}/{value}", operation, orjson.dumps(change).decode(), self._max_changes)


def _document(text: str, machine: str) -> Item:
    item: Item = orjson.loads(text)
    item[OWNER] = machine
    return item


def _scan(table: str, machine: str, filters: Sequence[Filter]) -> tuple[str, list[Any]]:
    query, params = "SELECT body FROM petalbus_items WHERE table_name = ? AND deleted = 0", [table]
    for one in filters:
        name, value = one["filter_key_name"], one["filter_key_value"]
        if not isinstance(name, str) or '"' in name:
            raise QueryRefused(f"filter_key_name {name!r} must be a text without quotation marks")
        if name == OWNER:
            query += " AND ? = ?"
            params += [machine, value]
            continue
        path = f'$."{name}"'
        # Programs write filter values as texts: "3" finds the number 3, "true" finds true.
        query += " AND ? = CASE json_type(body, ?) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
        query += " ELSE CAST(json_extract(body, ?) AS TEXT) END"
        params += [_as_text(value), path, path]
    return f"{query} ORDER BY rowid", params


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _texts(connection: sqlite3.Connection, query: str, params: Sequence[Any], table: str) -> list[str]:
    texts, size = [], 0
    cursor = connection.execute(query, params)
    for (text,) in cursor:
        texts.append(text)
        size += len(text)
        if len(texts) > MAX_ROWS or size > MAX_ANSWER_BYTES:
            cursor.close()
            raise QueryRefused(
                f"the scan of {table!r} has more than {MAX_ROWS} items or {MAX_ANSWER_BYTES >> 20} MiB: give filters"
            )
    return texts


def _missing(table: str, key: str, value: str, *, deleted: bool) -> str:
    return f"there is no item {key} = {value!r} in {table!r}" + (": it was deleted" if deleted else "")
