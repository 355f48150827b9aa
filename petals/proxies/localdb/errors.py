"""What the local database raises.

DatabaseError (a ProxyError)
├── QueryRefused       (also a ValueError) not run: a name, a value, a statement or its size is not acceptable
├── QueryFailed        SQLite could not run it: no such table, wrong syntax, ...
│   └── ConstraintFailed   it would break UNIQUE, NOT NULL, CHECK or a foreign key
├── MigrationRefused   a step was changed after it had been applied, or the file is newer than the program
├── QueueFull          the sync queue has reached its limit: what was to be written with it was not written
├── DiskFull           no room on the disk, or the file has reached its own limit
├── DatabaseDamaged    the file does not hold together; it is set aside when it is opened again
└── DatabaseBusy       (also a ProxyTimeout) a statement took too long, or somebody else writes for too long
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from petalbus.petals.proxies.errors import ProxyError, ProxyTimeout


class DatabaseError(ProxyError):
    """Base of what the local database raises. ``status``: the number of the same error in an item call's answer."""

    code = "database"
    status = 500


class QueryRefused(DatabaseError, ValueError):
    """It was not run, and never will be as it stands."""

    code = "query_refused"
    status = 400


class QueryFailed(DatabaseError):
    """SQLite could not run it. ``sqlite``: its own name of the error, such as ``SQLITE_ERROR``."""

    code = "query_failed"

    def __init__(self, message: str, sqlite: str = "") -> None:
        super().__init__(message)
        self.sqlite = sqlite


class ConstraintFailed(QueryFailed):
    """It would break a constraint; nothing was written."""

    code = "constraint_failed"
    status = 409


class MigrationRefused(DatabaseError):
    """The recorded steps and the given ones do not fit together; nothing was applied."""

    code = "migration_refused"


class QueueFull(DatabaseError):
    """The sync queue takes no more before some of its changes have been acknowledged."""

    code = "sync_queue_full"
    status = 507


class DiskFull(DatabaseError):
    """There was no room for it; nothing was written."""

    code = "disk_full"
    status = 507


class DatabaseDamaged(DatabaseError):
    """The file does not hold together."""

    code = "database_damaged"
    status = 503


class DatabaseBusy(DatabaseError, ProxyTimeout):
    """It did not get its turn, or was stopped because it took too long; nothing was written."""

    code = "database_busy"
    status = 503


DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT})


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's number of an error without its extension; 0 when it is not SQLite that refused."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def translated(error: sqlite3.Error | OverflowError | UnicodeError, file: Path, refusal: str) -> DatabaseError:
    """An error of ours for one of SQLite's. ``refusal``: what the guard said last."""
    if not isinstance(error, sqlite3.Error):
        return QueryRefused(f"a parameter cannot be stored: {error}")
    code, name = primary_code(error), getattr(error, "sqlite_errorname", None) or ""
    if code == sqlite3.SQLITE_AUTH:
        return QueryRefused(refusal or str(error))
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{file}: no room for it: the disk is full, or the file has reached its limit; free some space")
    if code in DAMAGE:
        return DatabaseDamaged(f"{file}: the file is damaged ({error}); it is set aside and a new one begun")
    if code in _BUSY:
        return DatabaseBusy(f"{file}: it took too long and was stopped ({error}); nothing was written")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return ConstraintFailed(str(error), name)
    if code in (0, sqlite3.SQLITE_RANGE):  # refused by Python's module: several statements, wrong parameters
        return QueryRefused(f"{error}; give one statement, with a parameter for each placeholder")
    return QueryFailed(f"{error} ({name}; {file})", name)
