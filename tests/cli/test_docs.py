"""The README's example runs as it stands there, and its commands are the ones that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .conftest import Buses, Daemon
from support.procs import child_environment

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_runs(buses: Buses) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    state = buses.directory()
    daemon = Daemon(state / "petalbus", "--sim", XDG_STATE_HOME=str(state))
    try:
        daemon.ready()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=child_environment({"XDG_STATE_HOME": str(state)}),
        )
    finally:
        daemon.close()
    result, frame = done.stdout.splitlines()
    assert result == "MAV_RESULT_ACCEPTED"
    assert frame.startswith("mavlink.")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_two_commands_of_the_readme_are_there() -> None:
    for name in ("scripts/up", "scripts/test"):
        assert name in README
        assert os.access(ROOT / name, os.X_OK)


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "docs" / "cli.md", ROOT / "docs" / "configuration.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def test_exit_codes_are_documented() -> None:
    from petalbus.daemon.cli.exits import Exit

    table = (ROOT / "docs" / "cli.md").read_text()
    assert set(re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)) == {str(int(code)) for code in Exit}
