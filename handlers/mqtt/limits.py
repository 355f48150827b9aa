"""AWS IoT's limits of one connection, kept by us: a clear error before, in place of a closed connection after."""

from __future__ import annotations

from petalbus.handlers.mqtt.options import EgressOptions


class Budget:
    """Messages and bytes a second. A burst of one second's worth is allowed; times are seconds of a monotonic clock."""

    def __init__(self, options: EgressOptions, *, now: float) -> None:
        self._rates = (options.rate, options.bytes_rate)
        self._left = [options.rate, options.bytes_rate]
        self._at = now

    def wait(self, size: int, now: float) -> float:
        """Seconds until a message of ``size`` bytes may leave; 0: now."""
        self._refill(now)
        wanted = (1.0, min(float(size), self._rates[1]))  # one larger than a second's worth needs a full second
        short = [(want - left) / rate for want, left, rate in zip(wanted, self._left, self._rates, strict=True)]
        return max(0.0, *short)

    def take(self, size: int, now: float) -> None:
        """A message of ``size`` bytes leaves."""
        self._refill(now)
        self._left[0] -= 1.0
        self._left[1] -= float(size)

    def _refill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        self._left = [min(rate, left + passed * rate) for left, rate in zip(self._left, self._rates, strict=True)]


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
