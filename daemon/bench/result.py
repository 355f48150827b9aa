"""The figures of a run, the ratios made from them, and what they were judged to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from petalbus.daemon.bench.stats import median
from petalbus.daemon.bench.targets import Series, Target

SCHEMA_VERSION = 1
"""Version of the JSON document; raised when a member changes its meaning or goes."""

Judgement = Literal["pass", "miss", "not measured"]


@dataclass(frozen=True, slots=True)
class Check:
    """One target and what came of it. ``ratio`` is the median of the rounds' ratios, which are in ``rounds``."""

    target: Target
    ratio: float | None
    rounds: list[float]
    judgement: Judgement


@dataclass(slots=True)
class RunResult:
    """What one run measured: figures[series][round] is one value, or None where that turn failed."""

    figures: dict[Series, list[float | None]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    foreign: float | None = None
    """Part (0 to 1) of the measured core's time that other programs used meanwhile; None when nothing was pinned."""

    def add(self, scenario: str, label: str, round_number: int, figures: Mapping[str, float]) -> None:
        """Keep the figures of one turn in round ``round_number`` (from 0)."""
        for name, value in figures.items():
            values = self.figures.setdefault(Series(scenario, label, name), [])
            values.extend([None] * (round_number - len(values)))
            values.append(value)

    def median(self, series: Series) -> float | None:
        """The median over the rounds that have it."""
        values = [value for value in self.figures.get(series, ()) if value is not None]
        return median(values) if values else None

    def ratios(self, value: Series, base: Series | None) -> list[float]:
        """Round by round, one divided by the other, of the rounds that have both."""
        if base is None:
            return [one for one in self.figures.get(value, ()) if one is not None]
        pairs = zip(self.figures.get(value, ()), self.figures.get(base, ()), strict=False)
        return [one / other for one, other in pairs if one is not None and other]

    def check(self, target: Target) -> Check:
        """Judge one target."""
        ratios = self.ratios(target.value, target.base)
        if not ratios:
            return Check(target, None, [], "not measured")
        ratio = median(ratios)
        return Check(target, ratio, ratios, "pass" if target.met(ratio) else "miss")


def document(
    result: RunResult, targets: Iterable[Target], *, machine: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The run as one JSON document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": dict(machine),
        "settings": dict(settings),
        "foreign_load": result.foreign,
        "skipped": result.skipped,
        "failures": result.failures,
        "figures": [
            {
                "scenario": series.scenario,
                "label": series.label,
                "figure": series.figure,
                "median": result.median(series),
                "rounds": values,
            }
            for series, values in result.figures.items()
        ],
        "checks": [_check(result.check(target)) for target in targets],
    }


def _check(check: Check) -> dict[str, Any]:
    target = check.target
    return {
        "name": target.name,
        "text": target.text,
        "ratio": check.ratio,
        "rounds": check.rounds,
        "bound": target.bound,
        "limit": target.limit,
        "judgement": check.judgement,
    }
