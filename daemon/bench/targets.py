"""What PetalBus must reach, as ratios: the table that a run is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of one label in one scenario."""

    scenario: str
    label: str
    figure: str


@dataclass(frozen=True, slots=True)
class Target:
    """``value`` divided by ``base`` (or the bare value, where there is no base), in each round; judged by its median."""

    name: str
    text: str
    value: Series
    base: Series | None
    bound: Bound
    limit: float

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches it."""
        return ratio <= self.limit if self.bound == "at most" else ratio >= self.limit


def _request(label: str) -> Series:
    return Series("request", label, "p50_us")


TARGETS: tuple[Target, ...] = (
    Target(
        "request.floor", "request/reply p50 against the floor's",
        _request("petalbus"), _request("floor"), "at most", 4.0,
    ),
    Target(
        "request.faststream", "FastStream's request/reply p50 against ours",
        _request("faststream"), _request("petalbus"), "at least", 12.0,
    ),
)  # fmt: skip
