"""Names the petal that holds up the event loop.

The loop notes four times a second that it lives; a thread looks, as often, whether that note is late, and if so at what
the loop's thread is doing. Between two looks both sleep.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Final

BEAT: Final = 0.25
"""Seconds between two notes."""

LATE: Final = 0.1
"""Seconds that a note may be late."""

Blocked = Callable[[str, float, str], None]
"""Called on the loop, once it is free again: petal, seconds, and where it was."""


class Watchdog:
    """``packages``: each petal's own packages; it may be changed while it runs."""

    def __init__(self, packages: Mapping[str, Iterable[str]], blocked: Blocked) -> None:
        self._packages = packages
        self._blocked = blocked
        self._beat = 0.0
        self._thread_id = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the loop to be watched."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._note()
        self._thread = threading.Thread(target=self._watch, name="petalbus-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join(2 * BEAT)

    def _note(self) -> None:
        assert self._loop is not None
        self._beat = time.monotonic()
        self._timer = self._loop.call_later(BEAT, self._note)

    def _watch(self) -> None:
        seen = 0.0
        while not self._stopping.wait(max(0.01, self._beat + BEAT + LATE - time.monotonic())):
            beat = self._beat
            if time.monotonic() - beat < BEAT + LATE or beat == seen:
                # alive; or told already, and still the same
                self._stopping.wait(LATE if beat == seen else 0.0)
                continue
            seen = beat
            frame = sys._current_frames().get(self._thread_id)  # Python's own way to look
            found = self._petal_in(frame)
            if found is not None:
                self._wait_and_tell(beat, *found)

    def _wait_and_tell(self, beat: float, petal: str, where: str) -> None:
        while self._beat == beat and not self._stopping.wait(0.02):
            pass
        loop = self._loop
        if loop is not None and not loop.is_closed() and not self._stopping.is_set():
            loop.call_soon_threadsafe(self._blocked, petal, self._beat - beat - BEAT, where)

    def _petal_in(self, frame: FrameType | None) -> tuple[str, str] | None:
        """The petal nearest to what runs, and the line of it."""
        owners = {package: petal for petal, packages in self._packages.items() for package in packages}
        while frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            petal = owners.get(module) or owners.get(module.partition(".")[0])
            if petal is not None:
                return petal, f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
            frame = frame.f_back
        return None
