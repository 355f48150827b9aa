"""A token bucket on the monotonic clock."""

from __future__ import annotations


class TokenBucket:
    """Allows ``rate`` tokens a second on average, and a burst of one second's worth."""

    __slots__ = ("_last", "_tokens", "rate", "refused")

    def __init__(self, rate: float, *, now: float) -> None:
        if rate <= 0:
            raise ValueError(f"rate {rate!r} must be positive; use None for no limit")
        self.rate = rate
        self.refused = 0
        self._tokens = max(1.0, rate)
        self._last = now

    def take(self, now: float) -> bool:
        """Take one token at monotonic time ``now``; False when there is none."""
        self._tokens = min(max(1.0, self.rate), self._tokens + (now - self._last) * self.rate)
        self._last = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        return True
