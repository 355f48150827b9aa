"""Topics for which the broker ends the connection, as AWS IoT does with what its policy forbids.

the connection ended right after messages to some topics -> they are suspected: each is sent alone, once
it ended again while one was alone                       -> the next time the broker must give a sign of life first
ended so three times in a row, or once with the word "not authorized", and it let us in afterwards -> quarantined

Networks, proxies and other programs with our client id end connections, too. Where MQTT 5 is spoken, an end
without a word accuses nobody.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from petalbus.handlers.mqtt.direct.errors import Blame

DIRECTLY: Final = 2.0
"""Seconds between a message and the end of the connection for which it may be the cause."""

QUARANTINE: Final = 30.0
"""Seconds for which a topic is refused here at first. After that one message is tried again: policies change. Each
further time it is twice as long, up to ``LONGEST``."""

LONGEST: Final = 600.0

ENOUGH: Final = 3
"""So many times in a row a connection must have ended for a topic, where the broker does not say why."""

_MOST: Final = 256


class Suspects:
    """What is known about topics, across connections. A broker that went away altogether accuses nobody."""

    def __init__(self) -> None:
        self._suspected: OrderedDict[str, None] = OrderedDict()
        self._accused: tuple[str, Blame] | None = None
        self._times: OrderedDict[str, int] = OrderedDict()
        self._until: OrderedDict[str, float] = OrderedDict()
        self._span: OrderedDict[str, float] = OrderedDict()

    def closed(self, recent: Iterable[str], alone: str | None, blame: Blame) -> None:
        """A connection ended, after ``recent`` topics; ``alone``: nothing but this one was under way."""
        for topic in recent:
            self._suspected[topic] = None
        if alone is not None:
            self._times.setdefault(alone, 0)
        self._accused = None if alone is None or blame < Blame.JUDGED else (alone, blame)
        _shorten(self._suspected)
        _shorten(self._times)

    def reached(self) -> str | None:
        """The broker let us in again, so it had meant it. Returns the topic that is quarantined by that."""
        accused, self._accused = self._accused, None
        if accused is None:
            return None
        topic, blame = accused
        self._times[topic] = self._times.get(topic, 0) + 1
        if blame < Blame.FORBIDDEN and self._times[topic] < ENOUGH:
            return None
        span = self._span[topic] = min(LONGEST, 2 * self._span[topic]) if topic in self._span else QUARANTINE
        self._until[topic] = time.monotonic() + span
        self._suspected.pop(topic, None)
        _shorten(self._until)
        _shorten(self._span)
        return topic

    def unreachable(self) -> None:
        """The broker cannot be reached: the end of the connection was its own end, or the network's."""
        self._accused = None
        self._suspected.clear()
        self._times.clear()

    def passed(self, topic: str) -> None:
        """The broker took a message on this topic."""
        if topic in self._suspected or topic in self._span:
            for known in (self._suspected, self._times, self._span):
                known.pop(topic, None)

    def suspected(self, topic: str) -> bool:
        """Whether a message on this topic must travel alone."""
        return topic in self._suspected

    def wary(self, topic: str) -> bool:
        """Whether a connection has ended already while a message on this topic travelled alone."""
        return topic in self._times

    def quarantined(self, topic: str) -> bool:
        """Whether a message on this topic must not be sent."""
        until = self._until.get(topic)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        del self._until[topic]
        self._suspected[topic] = None
        self._times[topic] = ENOUGH - 1  # it was found guilty: one more time is enough
        return False

    def forget(self) -> None:
        """We are somebody else to the broker now: other rules hold."""
        self.__init__()  # type: ignore[misc]  # everything as at first

    def describe(self) -> list[str]:
        """The quarantined topics."""
        now = time.monotonic()
        return [topic for topic, until in self._until.items() if until > now]


def _shorten(known: OrderedDict[str, Any]) -> None:
    while len(known) > _MOST:
        known.popitem(last=False)
