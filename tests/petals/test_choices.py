"""Which petals run: proxies.yaml, settings and decisions; how often a failing one is tried. Pure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from petalbus.daemon.petals.budget import Breaker, Budget, Limits
from petalbus.daemon.petals.choices import Choices, Decisions, Yaml, read_yaml, words
from petalbus.daemon.petals.errors import ChoicesError

FILE = """
enabled_petals: [flight_records, petal-warehouse]
startup_petals: [user-journey]
enabled_proxies: [redis, db, ext_mavlink]
petals: {custom: "my.module:Mine"}
petal_dependencies: {petal-warehouse: [redis, ext_mavlink]}
proxy_dependencies: {ftp_mavlink: [ext_mavlink]}
isolation: {petal-warehouse: process}
"""


def choices(tmp_path: Path, *, file: str | None = None, **settings: Any) -> Choices:
    path = tmp_path / "proxies.yaml"
    if file is not None:
        path.write_text(file)
    decisions = Decisions(tmp_path / "petals.json")
    decisions.load()
    return Choices(SimpleNamespace(**settings), read_yaml(path), decisions)


def test_without_any_configuration_everything_found_runs(tmp_path: Path) -> None:
    """But for what ships with PetalBus."""
    made = choices(tmp_path)
    assert made.runs(["a"]) == (True, "found")
    assert made.runs(["echo"], shipped=True)[0] is False
    assert made.isolation(["a"]) == "daemon"
    assert made.yaml == Yaml()


def test_an_existing_installations_file_is_honoured(tmp_path: Path) -> None:
    """enabled_petals, startup_petals, enabled_proxies, petals, petal_dependencies; by either name of a petal."""
    made = choices(tmp_path, file=FILE)
    assert made.runs(["petal-flight-log", "flight_records"])[0] is True
    assert made.runs(["user-journey"])[0] is True
    assert made.runs(["other"]) == (False, "proxies.yaml does not enable it")
    assert made.yaml.first == ("user-journey",)
    assert made.yaml.proxies == ("redis", "db", "ext_mavlink")
    assert made.yaml.targets == {"custom": "my.module:Mine"}
    assert made.needs(["petal-warehouse", "petal_warehouse"]) == ("redis", "ext_mavlink")
    assert made.isolation(["petal-warehouse"]) == "process"


def test_settings_go_before_the_file_and_decisions_before_both(tmp_path: Path) -> None:
    settings = {"petals_enabled": "other", "petals_disabled": "flight_records", "petals_isolation": "process"}
    made = choices(tmp_path, file=FILE, **settings)
    assert made.runs(["flight_records"]) == (False, "setting petals_disabled")
    assert made.runs(["other"]) == (True, "setting petals_enabled")
    assert made.runs(["petal-warehouse"])[0] is False
    assert made.runs(["Mine"], named=True) == (True, "setting petals_paths")
    assert made.isolation(["other"]) == "process"
    made.decisions.make("flight_records", runs=True)
    made.decisions.make("other", runs=False)
    again = choices(tmp_path, file=FILE, **settings)
    assert again.runs(["flight_records"]) == (True, "petalbus petals")
    assert again.runs(["other"]) == (False, "petalbus petals")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("[1, 2", "cannot be read"),
        ("- a list", "must be a mapping"),
        ("enabled_petals: name", "enabled_petals must be a list"),
        ("petals: {a: 1}", "petals must map"),
        ("petal_dependencies: [a]", "petal_dependencies must map"),
        ("isolation: {a: moon}", "use daemon or process"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, file: str, says: str) -> None:
    with pytest.raises(ChoicesError, match=says):
        choices(tmp_path, file=file)


def test_damaged_decisions_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "petals.json").write_text('{"enabled": [')
    assert choices(tmp_path).runs(["a"]) == (True, "found")


def test_names_come_as_lists_and_as_text() -> None:
    assert words(" a, b ,,c") == words(["a", "b", "c"]) == ("a", "b", "c")
    assert words(None) == words("") == ()


def test_the_budget_of_restarts() -> None:
    """Pauses are doubled; too many failures within the window end it; old ones are forgotten."""
    budget = Budget(Limits(restarts=3, window=100, first=1, most=3))
    assert [budget.failed(now) for now in (0, 1, 2, 3)] == [1, 2, 3, None]
    budget.reset()
    assert budget.failed(4) == 1
    assert [budget.failed(now) for now in (200, 201)] == [1, 2]
    assert budget.total == 7


def test_the_breaker_opens_once() -> None:
    breaker = Breaker(3)
    assert [breaker.note(ok=ok) for ok in (False, False, True, False, False, False, False)] == [
        False,
        False,
        False,
        False,
        False,
        True,
        False,
    ]
