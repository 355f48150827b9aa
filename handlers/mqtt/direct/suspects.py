"""Topics for which the broker ends the connection, as AWS IoT does with what its policy forbids.

closed right after messages to some topics -> they are suspected: each is sent alone, once
closed again while one was alone, and the broker let us in afterwards -> that one is quarantined
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

DIRECTLY: Final = 2.0
"""Seconds between a message and the end of the connection for which it may be the cause."""

QUARANTINE: Final = 600.0
"""Seconds for which a topic is refused here. After that one message is tried again: policies change."""

_MOST: Final = 256


class Suspects:
    """What is known about topics, across connections. A broker that went away altogether accuses nobody."""

    def __init__(self) -> None:
        self._suspected: OrderedDict[str, None] = OrderedDict()
        self._accused: str | None = None
        self._until: OrderedDict[str, float] = OrderedDict()

    def closed(self, recent: Iterable[str], alone: str | None) -> None:
        """The broker ended a connection, after ``recent`` topics; ``alone``: nothing but this one was under way."""
        self._accused = alone
        for topic in recent:
            self._suspected[topic] = None
        while len(self._suspected) > _MOST:
            self._suspected.popitem(last=False)

    def reached(self) -> str | None:
        """The broker let us in again, so it had meant it. Returns the topic that is quarantined by that."""
        topic, self._accused = self._accused, None
        if topic is not None:
            self._until[topic] = time.monotonic() + QUARANTINE
            self._suspected.pop(topic, None)
            while len(self._until) > _MOST:
                self._until.popitem(last=False)
        return topic

    def unreachable(self) -> None:
        """The broker cannot be reached: the end of the connection was its own end, or the network's."""
        self._accused = None
        self._suspected.clear()

    def passed(self, topic: str) -> None:
        """The broker took a message on this topic."""
        self._suspected.pop(topic, None)

    def suspected(self, topic: str) -> bool:
        """Whether a message on this topic must travel alone."""
        return topic in self._suspected

    def quarantined(self, topic: str) -> bool:
        """Whether a message on this topic must not be sent."""
        until = self._until.get(topic)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        del self._until[topic]
        self._suspected[topic] = None
        return False

    def forget(self) -> None:
        """We are somebody else to the broker now: other rules hold."""
        self.__init__()  # type: ignore[misc]  # everything as at first

    def describe(self) -> list[str]:
        """The quarantined topics."""
        now = time.monotonic()
        return [topic for topic, until in self._until.items() if until > now]
