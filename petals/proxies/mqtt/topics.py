"""Topic subscriptions of petals: callbacks by filter, each with a queue of its own: a slow one delays nobody."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from petalbus.handlers.mqtt.words import matches
from petalbus.petals.heavy import run_heavy

log = logging.getLogger("MQTTProxy")

Callback = Callable[[str, dict[str, Any]], Awaitable[Any]]
MAX_WAITING: Final = 1000
"""Messages that wait for one callback; beyond that the oldest goes, and is counted."""


class Listener:
    """One callback, its queue and its task."""

    def __init__(self, pattern: str, callback: Callback, *, cpu_heavy: bool) -> None:
        if not inspect.iscoroutinefunction(callback):
            raise TypeError(f"the callback of MQTT topic {pattern!r} must be 'async def', {callback!r} is not")
        self.pattern = pattern
        self.callback = callback
        self.dropped = 0
        self.failed = 0
        self._cpu_heavy = cpu_heavy
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def put(self, topic: str, message: dict[str, Any]) -> None:
        """Hand a message over. On the proxy's loop."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
            log.warning("a callback of %s is too slow: %d messages dropped so far", self.pattern, self.dropped)
        self._waiting.append((topic, message))
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"mqtt-callback-{self.pattern}")

    async def stop(self) -> None:
        """End the task; what waits is not delivered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            while self._waiting:
                topic, message = self._waiting.popleft()
                try:
                    if self._cpu_heavy:
                        await run_heavy(self.callback, topic, message)
                    else:
                        await self.callback(topic, message)
                except Exception:
                    self.failed += 1
                    log.exception("a callback of MQTT topic %s failed", self.pattern)
            self._arrived.clear()
            await self._arrived.wait()


class Topics:
    """All topic subscriptions of one proxy."""

    def __init__(self) -> None:
        self._listeners: dict[str, Listener] = {}
        self._next = itertools.count(1).__next__

    def add(self, pattern: str, callback: Callback, *, cpu_heavy: bool = False) -> str:
        """A further callback; its id. Raises TypeError when it is not async, ValueError when the filter is empty."""
        if not pattern:
            raise ValueError("an MQTT topic must not be empty")
        name = f"topic-{self._next()}"
        self._listeners[name] = Listener(pattern, callback, cpu_heavy=cpu_heavy)
        return name

    def remove(self, pattern: str) -> list[Listener]:
        """Take all callbacks of a filter out; the caller stops them."""
        found = [name for name, listener in self._listeners.items() if listener.pattern == pattern]
        return [self._listeners.pop(name) for name in found]

    def deliver(self, topic: str, message: dict[str, Any]) -> None:
        """Give a message to every callback whose filter it fits."""
        for listener in self._listeners.values():
            if matches(listener.pattern, topic):
                listener.put(topic, message)

    @property
    def patterns(self) -> dict[str, int]:
        """Filters, and how many callbacks each has."""
        found: dict[str, int] = {}
        for listener in self._listeners.values():
            found[listener.pattern] = found.get(listener.pattern, 0) + 1
        return found

    async def stop(self) -> None:
        """End all callbacks."""
        listeners, self._listeners = list(self._listeners.values()), {}
        await asyncio.gather(*(listener.stop() for listener in listeners))
