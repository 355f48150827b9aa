"""A token bucket for every source, and no more of them than a bus has applications."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bus.ratelimit import TokenBucket

MAX_SOURCES: Final = 4096
"""Sources that are told apart at a time; beyond that the one first seen is forgotten."""


class SourceRates:
    """Allows each source ``rate`` events a second, and a burst of one second's worth."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, source: str, now: float) -> bool:
        """Count one event of a source at monotonic time ``now``; False when it is one too many."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= MAX_SOURCES:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[source] = TokenBucket(self.rate, now=now)
        return bucket.take(now)
