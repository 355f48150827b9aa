"""The entry point: options, exit codes, the JSON document of a real quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bench import main
from petalbus.daemon.bench.process import allowed_cores, child_environment

OPTIONS: dict[str, Any] = {
    "quick": True,
    "rounds": 1,
    "only": None,
    "pin": None,
    "output": None,
    "json_output": False,
    "server": None,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"only": ["speed"]}, "no scenario 'speed'; there are request, beside"),
        ({"peers": ["kafka"]}, "no peer 'kafka'; there are petalbus, floor"),
        ({"pin": "99999"}, "pin '99999'"),
        ({"pin": "first"}, "pin 'first'"),
        ({"rounds": 0}, "rounds 0"),
        ({"output": Path("/no/such/directory/bench.json")}, "no file in an existing directory"),
        ({"server": Path("/no/such/server")}, "/no/such/server"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(
    change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(**{**OPTIONS, **change}) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.processes
def test_a_quick_run_prints_nothing_but_its_document_and_writes_it_to_the_file(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    core = allowed_cores()[-1]
    command = [sys.executable, "-m", "petalbus.daemon.bench", "--quick", "--json", "--only", "share", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--pin", str(core), "--output", str(output)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert json.loads(output.read_text()) == read
    assert read["schema_version"] == 1
    assert read["settings"] == {"quick": True, "rounds": 2, "scenarios": ["share"], "peers": None}
    assert read["machine"]["pinned_to"] == core
    assert read["machine"]["python"].startswith("3.")
    assert any(word in read["machine"]["server"] for word in ("valkey", "redis"))
    assert 0 <= read["foreign_load"] <= 1
    assert read["failures"] == []
    shares = [figure for figure in read["figures"] if figure["figure"] == "low_share"]
    assert [len(figure["rounds"]) for figure in shares] == [2]
    assert [check["name"] for check in read["checks"]] == ["share"]
    assert "round 2 of 2" in done.stderr
