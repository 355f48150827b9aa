"""Callbacks of petals, each with a queue and a task of its own: a slow one delays nobody."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from petalbus.petals.exits import contained
from petalbus.petals.heavy import run_heavy
from petalbus.petals.owner import acting, is_of

Callback = Callable[..., Awaitable[Any]]

MAX_WAITING: Final = 1000
"""Calls that wait for one callback; beyond that the oldest goes, and is counted."""


class Listener:
    """One callback: called with what ``put`` was given, one call after the other, in order."""

    def __init__(self, what: str, callback: Callback, *, cpu_heavy: bool, log: logging.Logger) -> None:
        if not inspect.iscoroutinefunction(callback):
            raise TypeError(f"the callback of {what} must be 'async def', {callback!r} is not")
        self.what = what
        self.callback = callback
        self.called = 0
        self.dropped = 0
        self.failed = 0
        self._log = log
        self._registered_by = acting()
        self._ended = False
        self._cpu_heavy = cpu_heavy
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def is_of(self, petal: object) -> bool:
        """Whether the callback is a petal's."""
        return is_of(petal, self.callback, self._registered_by)

    def put(self, *arguments: Any) -> None:
        """Call it soon. On the proxy's loop."""
        if self._ended:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                self._log.warning("a callback of %s is too slow: %d calls dropped so far", self.what, self.dropped)
        self._waiting.append(arguments)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"callback-{self.what}")

    def end(self) -> None:
        """End; what waits is not called any more. A call under way goes on: it may be the one that ends it."""
        self._ended = True
        self._waiting.clear()
        self._arrived.set()

    def stop(self) -> None:
        """End at once, also in the middle of a call."""
        self.end()
        if self._task is not None:
            self._task.cancel()

    @property
    def waiting(self) -> int:
        """Calls that are still to come."""
        return len(self._waiting)

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._ended:
            while self._waiting:
                arguments = self._waiting.popleft()
                self.called += 1
                try:
                    with contained():
                        await (run_heavy(self.callback, *arguments) if self._cpu_heavy else self.callback(*arguments))
                except Exception:  # noqa: BLE001  # a petal's own fault: it is logged with its name, and counted
                    self.failed += 1
                    name = getattr(self.callback, "__qualname__", repr(self.callback))
                    self._log.exception("callback %s of %s failed", name, self.what)
            if not self._ended:
                self._arrived.clear()
                await self._arrived.wait()
