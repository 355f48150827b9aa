"""Who, when and which boot: the stamps that every record carries.

Order and age never depend on the wall clock: ``mono`` counts CLOCK_BOOTTIME nanoseconds, which all processes of one
machine share and which goes on while the machine sleeps; ``boot_id`` says which boot it belongs to.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Final


def _read_boot_id() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        text = os.urandom(16).hex()
    return short_boot_id(text.strip())


def short_boot_id(text: str) -> str:
    """The first 12 hex digits of a boot id, which is all that a record needs; also of the kernel's full form."""
    return text.replace("-", "")[:12].lower()


BOOT_ID: Final = _read_boot_id()
"""The first 48 bits of the kernel's random boot id, in hex."""


def boot_clock_ns() -> int:
    """Nanoseconds of CLOCK_BOOTTIME: never set back, the same for every process of this boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """The clock that a bus counts its stamps and deadlines on: here this machine's boot clock, as it begins.

    A client on another machine than its bus sets ``boot_id`` and ``offset`` (ns to add to its own boot clock).
    """

    __slots__ = ("boot_id", "offset")

    def __init__(self) -> None:
        self.boot_id = BOOT_ID
        self.offset = 0

    def now_ns(self) -> int:
        """Nanoseconds on the bus's boot clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.offset


class _IdSource:
    """Unique ids without asking the kernel for each: random start per process, then a counter."""

    def __init__(self) -> None:
        self._reseed()
        os.register_at_fork(after_in_child=self._reseed)

    def _reseed(self) -> None:
        self._prefix = f"{time.time_ns() // 1_000_000:011x}{os.urandom(6).hex()}"
        self._next = itertools.count().__next__

    def __call__(self) -> str:
        return f"{self._prefix}{self._next():x}"


new_id = _IdSource()
"""Make a message id: start time of the process, 48 random bits, a counter."""
