"""Makes one piece of work all or nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

# Prepared statements are kept by their text, and what is kept is not judged again: a petal's own COMMIT must be another
# text than ours, or the guard would never see it.
BEGIN: Final = "BEGIN IMMEDIATE /* the proxy's own */"
COMMIT: Final = "COMMIT /* the proxy's own */"
ROLLBACK: Final = "ROLLBACK /* the proxy's own */"
_SAVE: Final = "SAVEPOINT petalbus /* the proxy's own */"
_BACK: Final = "ROLLBACK TO petalbus /* the proxy's own */"
_RELEASE: Final = "RELEASE petalbus /* the proxy's own */"


def atomically(function: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    """The function in a transaction of its own, or in a part of the one that is open: all of it or nothing."""

    def run(connection: sqlite3.Connection) -> T:
        inner = connection.in_transaction
        connection.execute(_SAVE if inner else BEGIN)
        try:
            result = function(connection)
            connection.execute(_RELEASE if inner else COMMIT)
        except BaseException:
            # An error such as a full disk may have rolled everything back already.
            if connection.in_transaction:
                connection.execute(_BACK if inner else ROLLBACK)
                if inner:
                    connection.execute(_RELEASE)
            raise
        return result

    return run
