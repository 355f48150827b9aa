"""Runs a coroutine on a clock of its own: nobody waits in earnest, and the same seed gives the same times.

Time nearly stands still while there is something to do, then jumps to the next timer. Datagrams to this machine
are there as soon as they are sent, so that a link and a simulated vehicle in one loop work over real UDP.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")
_THREAD_S = 10.0
_LOOK_S = 1e-6  # what looking at the clock takes: no two timers are due at the same time, and they keep their order


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # which class it is depends on the system
    """Never waits: when nothing is there it moves the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        # without any timer a thread is at work
        ready = super().select(_THREAD_S if timeout is None else 0)
        if not ready:
            assert timeout is not None, "nothing will ever happen"
            self.now += max(0.0, timeout)
        return ready


def run_on_own_clock(main: Coroutine[Any, Any, T]) -> T:
    """Run it; ``time.monotonic()`` and the loop go by the clock that jumps."""
    selector = _Jumping()

    def now() -> float:
        selector.now += _LOOK_S
        return selector.now

    class Loop(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return now()

    with patch.object(time, "monotonic", now):
        loop = Loop(selector)
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
