"""How often something that fails may be started again, and when it is given up. Pure: time comes from the caller."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """``restarts`` within ``window`` seconds are allowed; the pauses are doubled from ``first`` to ``most`` seconds.

    ``failures`` handler runs that fail one after the other count as one failure of the petal.
    """

    restarts: int = 5
    window: float = 300.0
    first: float = 0.5
    most: float = 30.0
    failures: int = 10


class Budget:
    """Counts failures in monotonic time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.total = 0
        self._failed: deque[float] = deque()

    def failed(self, now: float) -> float | None:
        """It failed at ``now``: seconds until the next attempt, or None when there shall be no further one."""
        self.total += 1
        self._failed.append(now)
        while self._failed and now - self._failed[0] > self.limits.window:
            self._failed.popleft()
        if len(self._failed) > self.limits.restarts:
            return None
        return min(self.limits.most, self.limits.first * 2.0 ** (len(self._failed) - 1))

    def reset(self) -> None:
        """Somebody looked after it: all attempts are free again."""
        self._failed.clear()


class Breaker:
    """Opens after so many failures in a row."""

    def __init__(self, limit: int) -> None:
        self.failures = 0
        self._limit = limit

    def note(self, *, ok: bool) -> bool:
        """One run ended; True when that was the failure too many (once)."""
        if ok:
            self.failures = 0
            return False
        self.failures += 1
        return self.failures == self._limit
