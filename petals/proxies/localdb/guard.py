"""What a petal's own SQL must not do on a connection that others share: asked by SQLite for every part of it."""

from __future__ import annotations

import sqlite3
from typing import Final

from petalbus.petals.proxies.localdb.words import OWN

_READING_PRAGMAS: Final = frozenset(
    {
        "compile_options",
        "database_list",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "page_count",
        "page_size",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
_READ_WITHOUT_VALUE: Final = frozenset(
    {"application_id", "foreign_keys", "journal_mode", "synchronous", "user_version"}
)
_ROWS: Final = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})
_SHAPE: Final = frozenset(
    {
        sqlite3.SQLITE_ALTER_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_DROP_TRIGGER,
        sqlite3.SQLITE_DROP_VIEW,
        sqlite3.SQLITE_DROP_VTABLE,
    }
)
_TEMPORARY: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
    }
)


class Guard:
    """The authorizer of one connection. ``trusted``: our own statements run; ``refusal``: why the last one did not."""

    __slots__ = ("refusal", "trusted")

    def __init__(self) -> None:
        self.trusted = True
        self.refusal = ""

    def __call__(self, action: int, one: str | None, two: str | None, *_: str | None) -> int:
        """SQLite's question whether a statement may do one thing."""
        if self.trusted:
            return sqlite3.SQLITE_OK
        refusal = _refusal(action, one or "", two or "")
        if refusal is None:
            return sqlite3.SQLITE_OK
        self.refusal = refusal
        return sqlite3.SQLITE_DENY


def _refusal(action: int, one: str, two: str) -> str | None:
    if action in (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT):
        return f"{one} is refused: the connection is shared; use `async with db.transaction()`"
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return "other files cannot be attached: the connection is shared"
    if action == sqlite3.SQLITE_PRAGMA:
        allowed = one in _READING_PRAGMAS or (one in _READ_WITHOUT_VALUE and not two) or one == "defer_foreign_keys"
        return None if allowed else f"PRAGMA {one} is refused: the connection is shared"
    if action in _TEMPORARY:
        return f"temporary {one!r} is refused: the connection is shared; make a table and drop it"
    if (action in _ROWS and _ours(one)) or (action in _SHAPE and (_ours(one) or _ours(two))):
        return f"tables that begin with {OWN!r} belong to the proxy: use its calls to change them"
    return None


def _ours(name: str) -> bool:
    return name.lower().startswith(OWN)
