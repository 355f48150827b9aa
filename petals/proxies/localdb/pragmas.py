"""How every connection is set up."""

from __future__ import annotations

import sqlite3
from typing import Final

BUSY_SECONDS: Final = 5.0
_WAL_BYTES: Final = 16 << 20  # a longer write-ahead log is cut to this when all of it is in the file


def prepare(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Set what is not kept in the file (and WAL, which is)."""
    connection.execute("PRAGMA journal_mode = WAL")
    # The log reaches the disk by the flush that follows a second after a write (store.py), not with each commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    page_size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_size)}")
