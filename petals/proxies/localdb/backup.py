"""A copy of the file while it is used: made beside its name, checked, brought to the disk, then renamed. Blocks."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

from petalbus.petals.proxies.localdb.errors import DatabaseError, QueryRefused, translated

_PAGES: Final = 512


def copy(file: Path, to: Path, stop: threading.Event) -> int:
    """Copy what is committed now; the copy's size in bytes. ``stop``: give up between two pieces.

    Raises DatabaseError and OSError; then there is no new copy, and an older one of that name is as it was.
    """
    to = to.expanduser().absolute()
    if to.resolve() == file.resolve():
        raise QueryRefused(f"the backup cannot be {to}: that is the database itself")
    to.parent.mkdir(parents=True, exist_ok=True)
    unfinished = to.with_name(f".{to.name}.{os.getpid()}.part")
    unfinished.unlink(missing_ok=True)
    try:
        _copy(file, unfinished, stop)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        size = unfinished.stat().st_size
        unfinished.replace(to)
    finally:
        unfinished.unlink(missing_ok=True)
    directory = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return size


def _copy(file: Path, to: Path, stop: threading.Event) -> None:
    def look(_status: int, _remaining: int, _total: int) -> None:
        if stop.is_set():
            raise DatabaseError(f"the backup of {file} was given up")

    source = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    target = sqlite3.connect(to, isolation_level=None)
    try:
        # What is read stays the same while others write: without this the copy would begin anew at every write.
        source.execute("BEGIN")
        source.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        source.backup(target, pages=_PAGES, progress=look, sleep=0)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        answer = target.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise DatabaseError(f"the backup of {file} does not hold together: {answer}")
    except sqlite3.Error as error:
        raise translated(error, to, "") from error
    finally:
        target.close()
        source.close()
