"""The vehicle's measurements: the best possible by formula and by simulation, and a real run of all of them."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from cli.conftest import run_process
from petalbus.daemon.bench.vehicle.best import best_seconds, oracle_seconds
from petalbus.daemon.bench.vehicle.damage import found_percent
from petalbus.daemon.bench.vehicle.params import NUMBER, WINDOW, Wire


@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2, 0.3, 0.5])
def test_the_formula_is_what_an_all_knowing_sender_needs(loss: float) -> None:
    """Where every loss is known at once; so nothing can be much under it."""
    formula = best_seconds(NUMBER, loss=loss, window=WINDOW, trip=0.1)
    simulated = mean(oracle_seconds(NUMBER, loss=loss, window=WINDOW, trip=0.1, seed=seed) for seed in range(300))
    assert formula == pytest.approx(simulated, rel=0.15)


def test_a_perfect_wire_takes_whole_windows() -> None:
    assert best_seconds(100, loss=0.0, window=20, trip=0.1) == pytest.approx(0.5)
    assert oracle_seconds(100, loss=0.0, window=20, trip=0.1, seed=1) == pytest.approx(0.5)


def test_what_is_allowed_grows_with_the_loss() -> None:
    allowed = [Wire(loss=loss, trip=0.1).allowed for loss in (0.0, 0.1, 0.2, 0.3, 0.5)]
    assert allowed == [1.25, 1.25, 1.35, 1.5, 1.8]


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_quick_run_measures_everything_and_loses_nothing() -> None:
    """What does not depend on how busy the machine is must be met here, too."""
    answer = run_process("mav", "bench", "--quick", "--seeds", "1", "--json", timeout=170)
    assert answer.code == 0, answer.err
    lines = {line["what"]: line for line in json.loads(answer.out)}
    for word in (
        "not recorded",
        "memory a frame",
        "file a frame",
        "answered",
        "wrong type",
        "intact frames found",
    ):
        found = [line for what, line in lines.items() if word in what]
        assert found
        assert all(line["met"] for line in found), found
    assert all(line["value"] > 0 for what, line in lines.items() if "not recorded" not in what)
    sendings = [line["value"] for what, line in lines.items() if "sendings" in what]
    assert max(sendings) < 1.6, "one seed may be unlucky"
    for operation in ("all parameters", "setting parameters", "FTP download", "FTP upload", "mission upload"):
        beside = [line for what, line in lines.items() if what.startswith(operation)]
        assert len(beside) == 2, operation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_intact_frames_are_found_between_damaged_ones(seed: int) -> None:
    assert set(found_percent(frames=2000, seed=seed).values()) == {100.0}
