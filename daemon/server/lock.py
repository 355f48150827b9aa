"""The two locks of a data directory. Both are `flock`s: the kernel frees them when their last holder ends, however.

`bus.lock` belongs to the daemon. `server.lock` is handed to the embedded server's process as an open file, which the
server knows nothing about and keeps for life: so the next daemon learns for certain, without trusting any file's
content, whether a server of a killed daemon still writes to this directory's append-only file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server.errors import DataDirectoryInUse


def try_lock(path: Path) -> int | None:
    """Open and lock ``path`` (made if missing); the open descriptor, or ``None`` if another holds the lock.

    The lock lasts until every copy of the descriptor is closed. It is not inherited unless handed on explicitly.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class DataLock:
    """The right to run a bus on a data directory. One daemon has it; it ends with the process.

    ``patience`` is how long (seconds, monotonic) an occupied lock is asked for again: a daemon that is just ending, or
    a tool that looks whether the lock is held, must not make a start fail.
    """

    def __init__(self, paths: DataPaths, *, patience: float = 0.3) -> None:
        self._paths = paths
        self._patience = patience
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    async def acquire(self) -> None:
        """Take the lock. Raises ``DataDirectoryInUse`` with the owner's process id, ``DataDirectoryError``."""
        if self.held:
            return
        self._paths.create()
        until = time.monotonic() + self._patience
        while (descriptor := try_lock(self._paths.bus_lock)) is None:
            if time.monotonic() >= until:
                raise DataDirectoryInUse(self._paths.root, read_owner(self._paths))
            await asyncio.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two daemons hold two locks of one name."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def read_owner(paths: DataPaths) -> int | None:
    """The process id that the owner of the lock wrote into it; ``None`` if it says none."""
    try:
        text = paths.bus_lock.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock ``path`` now. Takes it for an instant if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
