"""Every scenario of `petalbus bench`, played for real with tiny counts: the figures are complete and make sense.

How fast anything is is not judged here: machines that run tests are busy.
"""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from petalbus.daemon.bench.process import allowed_cores
from petalbus.daemon.bench.result import RunResult
from petalbus.daemon.bench.run import Settings, run
from petalbus.daemon.bench.scenarios.all import SCENARIOS
from petalbus.daemon.bench.scenarios.base import Scenario
from petalbus.daemon.bench.sizes import Sizes
from petalbus.daemon.bench.targets import TARGETS, Series, Target

TINY = Sizes(
    requests=40,
    requests_slow=20,
    requests_warmup=5,
    oneway=40,
    oneway_warmup=5,
    stream=300,
    stream_slow=150,
    stream_fast=300,
    publish=200,
    publish_slow=100,
    backlog=1_500,
    backlog_others=300,
    probes=15,
    starts=160,
)

OWN = frozenset({"petalbus", "floor", "c-floor", "redis-py"})
FOREIGN = frozenset({"faststream", "jetstream"})

LABELS = {
    "request": {"petalbus", "floor", "redis-py"},
    "beside": {"petalbus", "petalbus-beside"},
    "oneway": {"petalbus", "petalbus-topic", "floor", "redis-py"},
    "stream": {"petalbus", "petalbus-topic", "floor", "redis-py"},
    "publish": {"petalbus", "petalbus-send", "floor", "redis-py"},
    "drain": {"petalbus", "floor", "redis-py"},
    "critical": {"petalbus", "floor", "redis-py"},
    "share": {"petalbus"},
}

FOREIGN_LABELS = {
    "request": {"faststream", "nats-core"},
    "oneway": {"faststream", "jetstream"},
    "stream": {"faststream", "jetstream"},
    "publish": {"faststream", "jetstream"},
    "drain": {"faststream", "jetstream"},
    "critical": {"faststream"},
}


def scenario_named(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if name == scenario.NAME)


async def play(name: str, peers: frozenset[str]) -> RunResult:
    settings = Settings(
        scenarios=[scenario_named(name)], rounds=1, sizes=TINY, core=allowed_cores()[-1], server=None, peers=peers
    )
    result, machine = await run(settings, Console(quiet=True))
    assert result.failures == []
    assert machine["pinned_to"] == allowed_cores()[-1]
    return result


def check_figures(result: RunResult, name: str, label: str) -> None:
    for figure in scenario_named(name).UNITS:
        values = result.figures[Series(name, label, figure)]
        assert len(values) == 1, (label, figure)
        assert values[0] is not None
        assert math.isfinite(values[0])
        assert values[0] > 0 or figure == "over_ms", (label, figure, values)
    p50, p99 = (result.median(Series(name, label, figure)) for figure in ("p50_us", "p99_us"))
    if p50 is not None and p99 is not None:
        assert 1 < p50 <= p99 < 20e6, (label, p50, p99)  # more than a microsecond, less than twenty seconds


def test_every_scenario_is_tested() -> None:
    assert set(LABELS) == {scenario.NAME for scenario in SCENARIOS}


@pytest.mark.processes
@pytest.mark.parametrize("name", LABELS)
async def test_scenario_gives_all_its_figures(name: str) -> None:
    result = await play(name, OWN)
    expected = set(LABELS[name])
    if "c-floor" in scenario_named(name).PEERS and "c-floor" not in result.skipped:
        expected.add("c-floor")
    assert {series.label for series in result.figures} == expected
    for label in expected:
        check_figures(result, name, label)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", FOREIGN_LABELS)
async def test_other_systems_are_measured_where_they_are_installed(name: str) -> None:
    result = await play(name, FOREIGN)
    wanted = FOREIGN.intersection(scenario_named(name).PEERS)
    assert set(result.skipped) <= wanted
    present = {label for label in FOREIGN_LABELS[name] if label.replace("nats-core", "jetstream") not in result.skipped}
    assert {series.label for series in result.figures} == present
    for label in present:
        check_figures(result, name, label)
    if not present:
        pytest.skip(f"none of them is installed: {result.skipped}")


@pytest.mark.processes
async def test_urgent_work_overtakes_and_low_is_not_starved() -> None:
    """I4, as far as a disturbed machine can show it: CRITICAL does not wait for the backlog, LOW gets its share."""
    backlog_seconds = TINY.backlog * 0.001
    critical = (await play("critical", frozenset({"petalbus"}))).median(Series("critical", "petalbus", "p50_us"))
    assert critical is not None
    assert critical / 1e6 < backlog_seconds / 5
    share = (await play("share", frozenset({"petalbus"}))).median(Series("share", "petalbus", "low_share"))
    assert share is not None
    assert 2 < share < 20


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_names_figures_that_exist(target: Target) -> None:
    for series in (target.value, target.base):
        if series is None:
            continue
        labels = LABELS[series.scenario] | FOREIGN_LABELS.get(series.scenario, set()) | {"c-floor"}
        assert series.label in labels
        assert series.figure in scenario_named(series.scenario).UNITS
