"""From figures to ratios to judgements: pure arithmetic."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from petalbus.daemon.bench.report import print_report
from petalbus.daemon.bench.result import SCHEMA_VERSION, RunResult, document
from petalbus.daemon.bench.scenarios.all import SCENARIOS
from petalbus.daemon.bench.stats import latency_us, median, percentile
from petalbus.daemon.bench.targets import TARGETS, Series, Target

OURS = Series("request", "petalbus", "p50_us")
FLOOR = Series("request", "floor", "p50_us")


def target(limit: float, *, base: Series | None = FLOOR) -> Target:
    return Target("name", "text", OURS, base, "at most", limit)


def result_of(ours: list[float | None], floor: list[float | None]) -> RunResult:
    result = RunResult(rounds=len(ours))
    for label, values in (("petalbus", ours), ("floor", floor)):
        for number, value in enumerate(values):
            if value is not None:
                result.add("request", label, number, {"p50_us": value})
    return result


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # the machine was three times slower in the second round: the ratio of that round still counts as it is
    check = result_of([100, 330, 120], [50, 150, 40]).check(target(2.2))
    assert check.rounds == [2.0, 2.2, 3.0]
    assert check.ratio == 2.2
    assert check.judgement == "pass"
    assert result_of([100], [50]).check(target(1.9)).judgement == "miss"


def test_a_bound_can_be_from_below_and_a_figure_can_stand_alone() -> None:
    at_least = Target("name", "text", OURS, None, "at least", 5.0)
    assert result_of([5.0], []).check(at_least).judgement == "pass"
    assert result_of([4.9], []).check(at_least).judgement == "miss"


def test_a_round_in_which_one_failed_is_left_out() -> None:
    check = result_of([100, None, 90], [50, 10, None]).check(target(3))
    assert check.rounds == [2.0]
    assert result_of([100, None, 90], []).figures[OURS] == [100, None, 90]


def test_what_was_not_measured_is_neither_passed_nor_missed() -> None:
    check = result_of([100], []).check(target(3))
    assert (check.ratio, check.judgement) == (None, "not measured")


def test_the_document_is_json_with_a_version_and_everything_in_it() -> None:
    result = result_of([100, 110], [50, 50])
    result.skipped["faststream"] = "not installed"
    result.failures.append("one turn")
    result.foreign = 0.25
    text = json.dumps(document(result, TARGETS, machine={"cores": 2}, settings={"quick": True}))
    read = json.loads(text)
    assert read["schema_version"] == SCHEMA_VERSION
    assert read["machine"] == {"cores": 2}
    assert read["skipped"] == {"faststream": "not installed"}
    assert read["failures"] == ["one turn"]
    assert read["foreign_load"] == 0.25
    assert {
        "scenario": "request",
        "label": "petalbus",
        "figure": "p50_us",
        "median": 105.0,
        "rounds": [100, 110],
    } in read["figures"]
    checks = {check["name"]: check for check in read["checks"]}
    assert set(checks) == {target.name for target in TARGETS}
    assert checks["request.floor"]["judgement"] == "pass"
    assert checks["request.faststream"]["judgement"] == "not measured"


def test_the_report_says_ratio_target_and_judgement_and_what_was_wrong() -> None:
    result = result_of([500], [100])
    result.skipped["jetstream"] = "there is no nats-server on PATH"
    result.failures.append("stream, redis-py, round 1: it ended")
    result.foreign = 0.4
    console = Console(file=io.StringIO(), width=160)
    print_report(console, result, SCENARIOS, TARGETS)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    row = next(line for line in text.splitlines() if "ours / the floor's" in line and "request" in line)
    assert "5" in row
    assert "at most 4" in row
    assert "miss" in row
    for words in ("skipped jetstream: there is no nats-server", "failed stream, redis-py", "40%"):
        assert words in text


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_and_enough_lie_below(values: list[float], part: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, part)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= part * len(ordered) - 1e-6
    with pytest.raises(ValueError, match="0 to 1"):
        percentile(ordered, part + 1.01)


@given(st.lists(st.integers(1, 10**12), min_size=1))
def test_a_latency_summary_is_in_order_and_in_microseconds(times: list[int]) -> None:
    summary = latency_us(times)
    steps = [summary[name] for name in ("p50_us", "p90_us", "p99_us", "max_us")]
    assert all(one <= other for one, other in pairwise(steps))
    assert summary["max_us"] == max(times) / 1000
    assert summary["samples"] == len(times)


def test_medians() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        median([])
