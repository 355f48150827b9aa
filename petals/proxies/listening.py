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
        self._cpu_heavy = cpu_heavy
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def owner(self) -> object:
        """The object whose method the callback is."""
        return getattr(self.callback, "__self__", None)

    def put(self, *arguments: Any) -> None:
        """Call it soon. On the proxy's loop."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                self._log.warning("a callback of %s is too slow: %d calls dropped so far", self.what, self.dropped)
        self._waiting.append(arguments)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"callback-{self.what}")

    def stop(self) -> None:
        """End; what waits is not called any more."""
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
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
            self._arrived.clear()
            await self._arrived.wait()
