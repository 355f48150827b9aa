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
    """``value`` divided by ``base`` (where there is none, the bare value) in each round; judged by the median."""

    name: str
    text: str
    value: Series
    base: Series | None
    bound: Bound
    limit: float

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches it."""
        return ratio <= self.limit if self.bound == "at most" else ratio >= self.limit


_REQUEST = Series("request", "petalbus", "p50_us")
_ONEWAY = Series("oneway", "petalbus", "p50_us")
_STREAM = Series("stream", "petalbus", "per_s")
_PUBLISH = Series("publish", "petalbus", "many_per_s")

TARGETS: tuple[Target, ...] = (
    Target(
        "request.floor", "request/reply p50: ours / the floor's",
        _REQUEST, Series("request", "floor", "p50_us"), "at most", 4.0,
    ),
    Target(
        "request.faststream", "request/reply p50: FastStream's / ours",
        Series("request", "faststream", "p50_us"), _REQUEST, "at least", 12.0,
    ),
    Target(
        "beside", "request/reply p50: with 1,000 records/s beside it / at rest",
        Series("beside", "petalbus-beside", "p50_us"), Series("beside", "petalbus", "p50_us"), "at most", 1.15,
    ),
    Target(
        "oneway.floor", "one-way p50: ours / the floor's",
        _ONEWAY, Series("oneway", "floor", "p50_us"), "at most", 5.0,
    ),
    Target(
        "oneway.faststream", "one-way p50: ours / FastStream's",
        _ONEWAY, Series("oneway", "faststream", "p50_us"), "at most", 0.25,
    ),
    Target(
        "oneway.jetstream", "one-way p50: ours / JetStream's",
        _ONEWAY, Series("oneway", "jetstream", "p50_us"), "at most", 0.25,
    ),
    Target(
        "stream.c-floor", "produce to consume: ours / the C floor's",
        _STREAM, Series("stream", "c-floor", "per_s"), "at least", 0.13,
    ),
    Target(
        "stream.faststream", "produce to consume: ours / FastStream's",
        _STREAM, Series("stream", "faststream", "per_s"), "at least", 10.0,
    ),
    Target(
        "stream.jetstream", "produce to consume: ours / JetStream's",
        _STREAM, Series("stream", "jetstream", "per_s"), "at least", 2.5,
    ),
    Target(
        "stream.telemetry", "produce to consume: our telemetry / the C floor's",
        Series("stream", "petalbus-topic", "per_s"), Series("stream", "c-floor", "per_s"), "at least", 0.2,
    ),
    Target(
        "publish.redis-py", "publish from 64 tasks: ours / redis-py's",
        _PUBLISH, Series("publish", "redis-py", "many_per_s"), "at least", 8.0,
    ),
    Target(
        "critical", "CRITICAL behind LOW, start p99 beyond one running handler, ms",
        Series("critical", "petalbus", "over_ms"), None, "at most", 5.0,
    ),
    Target(
        "share", "LOW under constant HIGH load, % of the starts",
        Series("share", "petalbus", "low_share"), None, "at least", 5.0,
    ),
)  # fmt: skip
