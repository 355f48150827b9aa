"""Who else used the measured core: without knowing that, nobody can tell a slow program from a busy machine."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS: Final = (3, 4)
"""In a line of /proc/stat: idle, and waiting for a disk."""

_COUNTED: Final = 8
"""Fields that add up to the whole time; guest time, behind them, is counted in user time already."""


def core_seconds(core: int) -> tuple[float, float]:
    """Seconds since boot that a core was busy (with anything, being stolen included), and in all."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            ticks = [int(field) for field in fields[:_COUNTED]]
            whole = sum(ticks)
            return (whole - sum(ticks[index] for index in _IDLE_FIELDS)) / _TICKS, whole / _TICKS
    raise ValueError(f"the machine has no core {core}")


def process_seconds(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes, and all children that have ended, have used so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(_one(pid) for pid in pids)


def _one(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Watch:
    """Adds up, over all turns, the time of one core and the part of it that others used."""

    def __init__(self, core: int | None, servers: Iterable[int]) -> None:
        self._core = core
        self._servers = tuple(servers)
        self._start = (0.0, 0.0, 0.0)
        self._foreign = 0.0
        self._whole = 0.0

    def start(self, children: Iterable[int]) -> None:
        """A turn begins."""
        if self._core is not None:
            self._start = (*core_seconds(self._core), process_seconds((*self._servers, *children)))

    def stop(self, children: Iterable[int]) -> None:
        """A turn has ended, its children not yet."""
        if self._core is None:
            return
        busy, whole = core_seconds(self._core)
        ours = process_seconds((*self._servers, *children)) - self._start[2]
        self._foreign += max(0.0, busy - self._start[0] - ours)
        self._whole += whole - self._start[1]

    @property
    def foreign(self) -> float | None:
        """The part (0 to 1) of the core's time that other programs used during the turns; None when nobody knows."""
        return self._foreign / self._whole if self._whole else None
