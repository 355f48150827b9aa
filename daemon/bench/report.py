"""The run for people: one table a scenario, and one of the targets."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from petalbus.daemon.bench.result import RunResult
from petalbus.daemon.bench.scenarios.base import Scenario
from petalbus.daemon.bench.stats import median
from petalbus.daemon.bench.targets import Series, Target

FOREIGN_MUCH = 0.05
"""Part of the core's time that others may use before the report says that it is not to be relied on."""

_COLOURS = {"pass": "green", "miss": "red", "not measured": "yellow"}


def print_report(console: Console, result: RunResult, scenarios: Sequence[Scenario], targets: Sequence[Target]) -> None:
    """Print everything that was measured."""
    for scenario in scenarios:
        _print_scenario(console, result, scenario)
    names = {scenario.NAME for scenario in scenarios}
    _print_targets(console, result, [target for target in targets if target.value.scenario in names])
    if result.foreign is not None and result.foreign > FOREIGN_MUCH:
        text = f"other programs used {result.foreign:.0%} of the measured core; measure again when it is quiet"
        console.print(f"[yellow]disturbed[/] {text}", highlight=False)
    for name, reason in result.skipped.items():
        console.print(f"[yellow]skipped[/] {name}: {reason}", highlight=False)
    for failure in result.failures:
        console.print(f"[red]failed[/] {failure}", highlight=False)


def _print_scenario(console: Console, result: RunResult, scenario: Scenario) -> None:
    labels = list(dict.fromkeys(s.label for s in result.figures if s.scenario == scenario.NAME))
    if not labels:
        return
    console.print(f"\n{scenario.TITLE} (medians of {result.rounds} round{'s' * (result.rounds > 1)})", highlight=False)
    table = Table()
    table.add_column("")
    for figure, unit in scenario.UNITS.items():
        table.add_column(f"{figure.removesuffix('_us')}, {unit}", justify="right")
        if figure in scenario.COMPARED:
            table.add_column("x ours", justify="right")
    for label in labels:
        cells = [label]
        for figure in scenario.UNITS:
            series = Series(scenario.NAME, label, figure)
            value = result.median(series)
            cells.append("" if value is None else _number(value))
            if figure in scenario.COMPARED:
                ratios = result.ratios(series, Series(scenario.NAME, "petalbus", figure))
                cells.append(_number(median(ratios)) if ratios and label != "petalbus" else "")
        table.add_row(*cells)
    console.print(table)


def _print_targets(console: Console, result: RunResult, targets: Sequence[Target]) -> None:
    if not targets:
        return
    console.print("\ntargets (medians of the rounds' ratios)", highlight=False)
    table = Table()
    for heading in ("what", "ratio", "rounds", "target", ""):
        table.add_column(heading, justify="right" if heading in ("ratio", "target") else "left")
    for target in targets:
        check = result.check(target)
        spread = f"{_number(min(check.rounds))} to {_number(max(check.rounds))}" if check.rounds else ""
        ratio = "" if check.ratio is None else _number(check.ratio)
        word = f"[{_COLOURS[check.judgement]}]{check.judgement}[/]"
        table.add_row(target.text, ratio, spread, f"{target.bound} {target.limit:g}", word)
    console.print(table)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
