"""Processes that may not be our children: who is it, is it alive, tell it, wait for it.

A bare process id is reused by the kernel, so a process is known by its id, its start time and the boot it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from petalbus.schemas.stamps import BOOT_ID

_ENDED: Final = frozenset({"", "Z", "X"})


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot; ``started`` is its start in clock ticks since boot."""

    pid: int
    started: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has this id now; ``None`` if there is none, or it is only a zombie."""
        state, started = _look(pid)
        return None if state in _ENDED else cls(pid, started, BOOT_ID)

    def alive(self) -> bool:
        """Whether exactly this process runs (a zombie does not)."""
        state, started = _look(self.pid)
        return state not in _ENDED and self._is(started)

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; ``False`` if it has ended. Never reaches another process that got the same id later."""
        with self._handle() as handle:
            if handle is None or not self.alive():
                return False
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return False
            return True

    async def gone(self, timeout: float | None = None) -> bool:
        """Wait until it has ended with all its threads, so that all its files are closed and its locks free.

        At most ``timeout`` seconds (monotonic); ``False`` if it still runs then.
        """
        with self._handle() as handle:
            if handle is None or _readable(handle):
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
        """A pidfd of exactly this process; ``None`` if there is nothing left of it."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # The id was looked up after the handle was taken: if it is still the same process, so is the handle.
            # A zombie counts here: its first thread may have ended while others still hold its files open.
            yield handle if self._is(_look(self.pid)[1]) else None
        finally:
            os.close(handle)

    def _is(self, started: int) -> bool:
        return started == self.started and self.boot_id == BOOT_ID


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


def _readable(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def _look(pid: int) -> tuple[str, int]:
    """State letter and start (clock ticks since boot) of a process; ``("", 0)`` if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    state, *fields = text.rpartition(")")[2].split()  # the program's name, in brackets, may contain anything
    return state, int(fields[18])
