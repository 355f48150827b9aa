"""Topic subscriptions of petals: callbacks by filter, each with a queue of its own: a slow one delays nobody."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from petalbus.handlers.mqtt.words import matches
from petalbus.petals.proxies.listening import Listener

log = logging.getLogger("MQTTProxy")

Callback = Callable[[str, dict[str, Any]], Awaitable[Any]]


class TopicListener(Listener):
    """One callback of a topic or filter."""

    def __init__(self, pattern: str, callback: Callback, *, cpu_heavy: bool) -> None:
        super().__init__(f"MQTT topic {pattern!r}", callback, cpu_heavy=cpu_heavy, log=log)
        self.pattern = pattern


class Topics:
    """All topic subscriptions of one proxy."""

    def __init__(self) -> None:
        self._listeners: dict[str, TopicListener] = {}
        self._next = itertools.count(1).__next__

    def add(self, pattern: str, callback: Callback, *, cpu_heavy: bool = False) -> str:
        """A further callback; its id. Raises TypeError when it is not async, ValueError when the filter is empty."""
        if not pattern:
            raise ValueError("an MQTT topic must not be empty")
        name = f"topic-{self._next()}"
        self._listeners[name] = TopicListener(pattern, callback, cpu_heavy=cpu_heavy)
        return name

    def remove(self, pattern: str) -> list[TopicListener]:
        """Take all callbacks of a filter out; the caller stops them."""
        found = [name for name, listener in self._listeners.items() if listener.pattern == pattern]
        return [self._listeners.pop(name) for name in found]

    def remove_of(self, petal: object) -> tuple[int, set[str]]:
        """End all callbacks of a petal; how many there were, and filters that have no callback any more."""
        theirs = {name: one for name, one in self._listeners.items() if one.is_of(petal)}
        for name, listener in theirs.items():
            del self._listeners[name]
            listener.stop()
        return len(theirs), {one.pattern for one in theirs.values()} - self.patterns.keys()

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
        for listener in listeners:
            listener.stop()
        await asyncio.gather(*(listener.ended() for listener in listeners))
