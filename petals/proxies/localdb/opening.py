"""Opens the file: looks whether it holds together, and sets it aside when it does not. It blocks: a thread's work.

Every process that has the file open holds a shared lock on ``<file>.lock``, so that nobody renames it under another's
feet. The lock lies beside the file because closing the file itself anywhere in a process would end SQLite's own locks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from petalbus.petals.proxies.localdb.errors import DAMAGE, DatabaseDamaged, DatabaseError, primary_code, translated
from petalbus.petals.proxies.localdb.pragmas import BUSY_SECONDS, prepare

CHECK_SECONDS: Final = 3.0
KEPT_ASIDE: Final = 5
_STEPS: Final = 20_000
_BESIDE: Final = ("-wal", "-shm")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Opened:
    """What was found. ``integrity``: ``ok``, ``new``, or ``not checked to the end`` (a large file).

    ``identity``: device and inode of the file, to notice that somebody put another one in its place.
    """

    lock: int
    integrity: str
    identity: tuple[int, int] = (0, 0)
    set_aside: list[Path] = field(default_factory=list)

    def close(self) -> None:
        """Give the shared lock back."""
        os.close(self.lock)


def open_file(file: Path, max_bytes: int) -> Opened:
    """Make the file usable. Raises DatabaseError or OSError when that is not possible now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        opened = Opened(lock, "")
        _shared(lock, file)
        problem = _look(file, max_bytes, opened)
        if problem:
            opened.set_aside = _set_aside(file, lock, problem)
            _begin_anew(file, max_bytes, opened)
        found = file.stat()
        opened.identity = (found.st_dev, found.st_ino)
    except BaseException:
        os.close(lock)
        raise
    return opened


def _begin_anew(file: Path, max_bytes: int, opened: Opened) -> None:
    problem = _look(file, max_bytes, opened)
    if problem:
        raise DatabaseDamaged(f"{file}: a new file is damaged as well ({problem}): look at the disk")


def set_aside_before(file: Path) -> list[Path]:
    """Damaged files that were kept, the oldest first."""
    found = [one for one in file.parent.glob(f"{file.name}.damaged-*") if not one.name.endswith(_BESIDE)]
    return sorted(found, key=lambda one: (one.stat().st_mtime_ns, one.name))


def _look(file: Path, max_bytes: int, opened: Opened) -> str:
    """What is wrong with the file's content; empty when nothing is."""
    opened.integrity = "ok" if file.exists() and file.stat().st_size else "new"
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        prepare(connection, max_bytes)
        until = time.monotonic() + CHECK_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        code = primary_code(error)
        if code == sqlite3.SQLITE_INTERRUPT:
            opened.integrity = f"not checked to the end: it took more than {CHECK_SECONDS:g} s"
            return ""
        if code in DAMAGE:
            return str(error)
        raise translated(error, file, "") from error
    finally:
        connection.close()
    return "" if answer == "ok" else answer


def _shared(lock: int, file: Path) -> None:
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise DatabaseError(f"{file}: another process is setting it aside") from None
            time.sleep(0.05)
        else:
            return


def _set_aside(file: Path, lock: int, problem: str) -> list[Path]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatabaseDamaged(
            f"{file} is damaged ({problem}) and another process has it open: stop that one, so that it can be set aside"
        ) from None
    try:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        kept = next(
            name
            for number in range(1, 10_000)
            if not (name := file.with_name(f"{file.name}.damaged-{stamp}-{number}")).exists()
        )
        for end in _BESIDE:
            if (beside := Path(f"{file}{end}")).exists():
                beside.rename(f"{kept}{end}")
        file.rename(kept)
        logger.error(
            "the local database %s was damaged (%s): it is kept as %s, and a new one begun", file, problem, kept
        )
        _limit(file)
    finally:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return [kept]


def _limit(file: Path) -> None:
    """A disk that damages every file must not be filled with them: the smallest goes, it held the least."""
    kept = set_aside_before(file)
    while len(kept) > KEPT_ASIDE:
        smallest = min(kept, key=lambda one: one.stat().st_size)
        logger.warning("more than %d damaged databases are kept: %s is deleted", KEPT_ASIDE, smallest)
        for end in ("", *_BESIDE):
            Path(f"{smallest}{end}").unlink(missing_ok=True)
        kept.remove(smallest)
