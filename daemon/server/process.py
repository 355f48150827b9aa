"""Processes that may not be our children: who is it, is it alive, tell it, wait for it.

A bare process id is reused by the kernel, so a process is known by its id, its start time and the boot it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from petalbus.schemas.stamps import BOOT_ID


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot; ``started`` is its start in clock ticks since boot."""

    pid: int
    started: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has this id now; ``None`` if there is none, or it is only a zombie."""
        started = _start_ticks(pid)
        return None if started is None else cls(pid, started, BOOT_ID)

    def alive(self) -> bool:
        """Whether exactly this process runs (a zombie does not)."""
        return self.boot_id == BOOT_ID and _start_ticks(self.pid) == self.started

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; ``False`` if it has ended. Never reaches another process that got the same id later."""
        with self._handle() as handle:
            if handle is None:
                return False
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return False
            return True

    async def gone(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most ``timeout`` seconds (monotonic); ``False`` if it still runs then."""
        with self._handle() as handle:
            if handle is None:
                return True
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(handle, ended.set)
            try:
                async with asyncio.timeout(timeout):
                    await ended.wait()
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(handle)
            return True

    @contextlib.contextmanager
    def _handle(self) -> Iterator[int | None]:
        """A pidfd of exactly this process; ``None`` if it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # The id was looked up after the handle was taken: if it is still the same process, so is the handle.
            yield handle if self.alive() else None
        finally:
            os.close(handle)


def holders(path: Path) -> list[ProcessIdentity]:
    """The other processes of this user that have ``path`` open, by way of /proc."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid() and _has_open(entry.name, wanted):
            identity = ProcessIdentity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def _has_open(pid: str, wanted: os.stat_result) -> bool:
    try:
        names = list(Path("/proc", pid, "fd").iterdir())
    except OSError:  # it ended, or is another user's: those cannot hold a lock of a private directory
        return False
    for name in names:
        with contextlib.suppress(OSError):
            if os.path.samestat(name.stat(), wanted):
                return True
    return False


def _start_ticks(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # the program's name, in brackets, may contain anything
    return None if state in {"Z", "X"} else int(fields[18])
