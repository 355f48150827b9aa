"""AWS IoT's limits of one connection, kept by us: a clear error before, in place of a closed connection after."""

from __future__ import annotations

from typing import Final

from petalbus.handlers.mqtt.options import EgressOptions

_BURST: Final = 0.1
"""Of a second's worth, so much may leave at once; the second brings the rest. Brokers count what comes in any second,
and AWS IoT drops what is too much without a word."""

_HEAD_BYTES: Final = 64
"""Bytes of a message beside topic and payload: packet type, lengths, packet id, the record's id, expiry."""


class Budget:
    """Messages and bytes a second: no more messages than that in any second. Times in seconds, monotonic."""

    def __init__(self, options: EgressOptions, *, now: float) -> None:
        rates = (options.rate, options.bytes_rate)
        self._most = (max(1.0, _BURST * options.rate), max(1.0, _BURST * options.bytes_rate))
        self._rates = tuple((1 - _BURST) * rate for rate in rates)
        self._left = list(self._most)
        self._at = now

    def wait(self, size: int, now: float) -> float:
        """Seconds until a message of ``size`` bytes may leave; 0: now."""
        self._refill(now)
        wanted = (1.0, min(float(size), self._most[1]))  # a larger one leaves, and those after it wait for longer
        short = [(want - left) / rate for want, left, rate in zip(wanted, self._left, self._rates, strict=True)]
        return max(0.0, *short)

    def take(self, size: int, now: float) -> None:
        """A message of ``size`` bytes leaves."""
        self._refill(now)
        self._left[0] -= 1.0
        self._left[1] -= float(size)

    def _refill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        limits = zip(self._left, self._rates, self._most, strict=True)
        self._left = [min(most, left + passed * rate) for left, rate, most in limits]


def size_of(topic: str, payload: bytes) -> int:
    """Bytes that a message takes on the wire, about."""
    return _HEAD_BYTES + len(topic.encode(errors="replace")) + len(payload)


def topic_problem(topic: str, options: EgressOptions) -> str | None:
    """Why nothing can be published to a topic; None when it may be."""
    if not topic:
        return "the topic is empty"
    if any(sign in topic for sign in "+#\0"):
        return f"topic {topic!r} holds a wildcard or a zero; a message goes to one topic"
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        return "the topic is no text that UTF-8 can write"
    if size > options.max_topic:
        return f"topic {topic[:40]!r}... has {size} bytes; at most {options.max_topic} are allowed"
    levels = topic.count("/") + 1
    if levels > options.max_levels:
        return f"topic {topic!r} has {levels} levels; at most {options.max_levels} are allowed"
    if "None" in topic.split("/"):
        return f"topic {topic!r} has a level 'None': something was not known when it was made"
    return None
