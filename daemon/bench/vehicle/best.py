"""The best that can be done with parameters over a bad wire: a formula, and an oracle that simulates it.

Both know which message is lost the moment it should have arrived, and ask again at once; nobody can be faster.
"""

from __future__ import annotations

import heapq
import math
import random
from typing import Final

_EULER: Final = 0.5772


def best_seconds(number: int, *, loss: float, window: int, trip: float) -> float:
    """The time that ``number`` parameters take at least, on average. ``loss`` is each way, ``trip`` is seconds."""
    if loss <= 0.0:
        return trip * math.ceil(number / window)
    arrives = (1.0 - loss) ** 2
    last = min(number, window)
    full = max(0, number - window) / (arrives * window)
    tail = (math.log(last) + _EULER) / math.log(1.0 / (1.0 - arrives))
    return trip * (full + tail + 0.5)


def oracle_seconds(number: int, *, loss: float, window: int, trip: float, seed: int) -> float:
    """The same by simulation, with one seed's luck."""
    rng = random.Random(seed)  # noqa: S311  # luck that can be repeated
    arrives = (1.0 - loss) ** 2
    flying = [trip] * min(number, window)
    left, now = number - len(flying), 0.0
    heapq.heapify(flying)
    while flying:
        now = heapq.heappop(flying)
        if rng.random() >= arrives:
            heapq.heappush(flying, now + trip)
        elif left:
            left -= 1
            heapq.heappush(flying, now + trip)
    return now
