"""Settings: where they come from, which one wins, and what is said about a wrong one (docs/configuration.md)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.config import NAMES, ConfigError, Settings, load, parse_assignments
from petalbus.daemon.config_example import example

from .conftest import Cli, run_process

ROOT = Path(__file__).resolve().parents[2]


def file_in(data: Path, text: str) -> None:
    """Write the settings file of a data directory."""
    data.mkdir(parents=True, exist_ok=True)
    (data / "petalbus.toml").write_text(text)


def test_nothing_configured_needs_nothing(tmp_path: Path) -> None:
    loaded = load({"data": tmp_path}, environment={})
    assert loaded.settings.data == tmp_path
    assert loaded.settings.redis is None
    assert not loaded.settings.sim_enabled
    assert {origin for name, origin in loaded.origins.items() if name != "data"} == {"default"}
    assert loaded.warnings == ()


def test_each_source_wins_over_the_weaker_ones_and_is_named_as_the_origin(tmp_path: Path) -> None:
    file_in(tmp_path, "memory_mb = 100\nlog_level = 'error'\nstop_timeout = 3\n[mavlink]\nmax_altitude = 40\n")
    environment = {"PETALBUS_MEMORY_MB": "200", "PETALBUS_LOG_LEVEL": "warning"}
    loaded = load({"data": tmp_path, "memory_mb": "300"}, environment=environment)
    shown = {name: (value, origin) for name, value, origin in loaded.shown()}
    assert shown["memory_mb"] == (300, "command line")
    assert shown["log_level"] == ("warning", "environment PETALBUS_LOG_LEVEL")
    assert shown["stop_timeout"] == (3.0, f"file {tmp_path / 'petalbus.toml'}")
    assert shown["mavlink_max_altitude"] == (40.0, f"file {tmp_path / 'petalbus.toml'}")
    assert shown["fsync"] == ("everysec", "default")


def test_the_data_directory_may_come_from_the_environment_and_decides_which_file_is_read(tmp_path: Path) -> None:
    file_in(tmp_path / "there", "bus = 'other'\n")
    loaded = load({}, environment={"PETALBUS_DATA": str(tmp_path / "there")})
    assert loaded.settings.bus == "other"
    assert loaded.origins["data"] == "environment PETALBUS_DATA"


def test_a_named_file_is_used_in_place_of_the_one_in_the_data_directory(tmp_path: Path) -> None:
    file_in(tmp_path, "bus = 'here'\n")
    named = tmp_path / "named.toml"
    named.write_text("bus = 'named'\n")
    assert load({"data": tmp_path, "config": named}, environment={}).settings.bus == "named"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    assert load({"data": tmp_path}, environment={"PETALBUS_REDIS": ""}).settings.redis is None


@pytest.mark.parametrize(
    ("given", "environment", "file", "words"),
    [
        ({"memory_mb": "lots"}, {}, "", ["memory_mb", "'lots'", "command line", "integer"]),
        ({}, {"PETALBUS_FSYNC": "never"}, "", ["fsync", "'never'", "PETALBUS_FSYNC", "'everysec' or 'always'"]),
        ({}, {}, "memory_mb = 1", ["memory_mb", "petalbus.toml", "greater than or equal to 16"]),
        ({}, {}, "memry_mb = 64", ["petalbus.toml", "'memry_mb'", "did you mean 'memory_mb'"]),
        ({}, {}, "[mavlink]\nendpont = 'x'", ["'mavlink_endpont'", "did you mean 'mavlink_endpoint'"]),
        ({}, {}, "data = '/x'", ["'data' cannot be set here", "--data"]),
        ({}, {}, "memory_mb = = 1", ["petalbus.toml", "is not TOML", "line 1"]),
        ({"config": "/nowhere/at/all.toml"}, {}, "", ["/nowhere/at/all.toml", "no such file"]),
        ({"bus": "two words"}, {}, "", ["bus", "'two words'", "pattern"]),
        ({"colour": "red"}, {}, "", ["'colour'", "petalbus config show"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_place_and_what_would_be_right(
    tmp_path: Path, given: dict[str, Any], environment: dict[str, str], file: str, words: list[str]
) -> None:
    file_in(tmp_path, file)
    with pytest.raises(ConfigError) as caught:
        load({"data": tmp_path, **given}, environment=environment)
    for word in words:
        assert word in str(caught.value)


def test_a_misspelt_variable_is_not_ignored_in_silence(tmp_path: Path) -> None:
    loaded = load({"data": tmp_path}, environment={"PETALBUS_MEMRY_MB": "64", "PETALBUS_TRACEBACK": "1", "OTHER": "x"})
    (warning,) = loaded.warnings
    assert "PETALBUS_MEMRY_MB" in warning
    assert "did you mean 'memory_mb'" in warning


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    loaded = load({"data": tmp_path, "redis": "redis://user:geheim@host:6379/0"}, environment={})
    assert loaded.settings.redis == "redis://user:geheim@host:6379/0"
    assert "geheim" not in str(list(loaded.shown()))
    with pytest.raises(ConfigError) as caught:
        load({"data": tmp_path, "redis": "redis://user:geheim@host:6379/0", "memory_mb": 0}, environment={})
    assert "geheim" not in str(caught.value)


def test_assignments_of_the_command_line() -> None:
    assert parse_assignments(["memory_mb=64", "redis=redis://h?a=b"]) == {"memory_mb": "64", "redis": "redis://h?a=b"}
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_assignments(["memory_mb"])
    with pytest.raises(ConfigError, match="did you mean 'sim_autopilot'"):
        parse_assignments(["sim_autopilt=px4"])


def test_the_example_names_every_setting_of_the_file_and_its_defaults_are_the_real_ones(tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", example(), flags=re.MULTILINE)
    content = tomllib.loads(text)
    names = {f"{table}_{name}" for table, inner in content.items() if isinstance(inner, dict) for name in inner}
    names |= {name for name, value in content.items() if not isinstance(value, dict)}
    assert names == set(NAMES) - {"data", "config"}
    file_in(tmp_path, text)
    settings = load({"data": tmp_path}, environment={}).settings
    for name, field in Settings.model_fields.items():
        if name in names and field.default is not None:
            assert getattr(settings, name) == field.default, name


def test_the_documentation_names_every_setting() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in NAMES if f"`{name}`" not in text]
    assert not missing


def test_config_show_prints_values_and_origins(tmp_path: Path, cli_on: Callable[[Path], Cli]) -> None:
    file_in(tmp_path, "memory_mb = 77\n")
    cli = cli_on(tmp_path)
    table = cli.ok("config", "show", "--origin").out
    assert re.search(rf"^memory_mb +77 +file {re.escape(str(tmp_path))}/petalbus.toml *$", table, re.MULTILINE)
    assert re.search(r"^fsync +everysec +default *$", table, re.MULTILINE)
    told = cli.json("config", "show", "--origin", "--set", "fsync=always")
    assert told["fsync"] == {"value": "always", "origin": "command line"}
    assert told["data"] == {"value": str(tmp_path), "origin": "command line"}
    assert cli.json("config", "show")["memory_mb"] == 77
    assert set(told) == set(NAMES)


def test_config_show_with_a_broken_file_ends_as_wrong_usage(tmp_path: Path, cli_on: Callable[[Path], Cli]) -> None:
    file_in(tmp_path, "memory_mb = 'much'\n")
    answer = cli_on(tmp_path)("config", "show")
    assert answer.code == 2
    assert answer.err.startswith("petalbus: setting memory_mb = 'much' (from the file ")
    assert len(answer.err.splitlines()) == 1


def test_config_example_is_what_a_file_may_hold(tmp_path: Path, cli_on: Callable[[Path], Cli]) -> None:
    file_in(tmp_path, cli_on(tmp_path).ok("config", "example").out)
    assert cli_on(tmp_path).json("config", "show", "--origin")["bus"] == {"value": "petalbus", "origin": "default"}


def test_config_show_as_a_process_with_settings_from_the_environment(tmp_path: Path) -> None:
    answer = run_process("config", "show", "--json", "--origin", PETALBUS_DATA=str(tmp_path), PETALBUS_SIM_ENABLED="1")
    assert answer.object["sim_enabled"] == {"value": True, "origin": "environment PETALBUS_SIM_ENABLED"}
    assert answer.object["data"]["origin"] == "environment PETALBUS_DATA"
