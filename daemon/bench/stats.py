"""The few statistics that the bench needs."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of the ordered values lie: nearest rank, no interpolation."""
    if not ordered:
        raise ValueError("no values")
    if not 0.0 <= part <= 1.0:
        raise ValueError(f"part {part}: it is 0 to 1")
    return ordered[min(len(ordered) - 1, max(0, math.ceil(part * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def latency_us(nanoseconds: Sequence[int]) -> dict[str, float]:
    """A summary of times measured in nanoseconds, in microseconds."""
    ordered = sorted(nanoseconds)
    summary = {f"p{round(part * 100)}_us": percentile(ordered, part) / 1e3 for part in (0.5, 0.9, 0.99)}
    return {**summary, "max_us": ordered[-1] / 1e3, "samples": float(len(ordered))}
