"""`scripts/up` and `scripts/test`: what they do before anything of PetalBus runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.procs import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout reduced to what the scripts look at, under a name with a space."""
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("pyproject.toml", "requirements-dev.lock"):
        shutil.copy(ROOT / name, checkout / name)
    return checkout


def run(script: str, *arguments: str, clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(
        [str(clone / "scripts" / script), *arguments],
        cwd=clone.parent,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def make_environment(clone: Path, mode: str) -> Path:
    """An environment as a first run leaves it, but with programs that tell how they were called."""
    environment = clone / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    program = environment / "bin" / "petalbus"
    program.write_text('#!/bin/sh\nprintf "[%s]" petalbus "$@"\n')
    program.chmod(0o755)
    stamp = subprocess.run(
        ["bash", "-c", "cat pyproject.toml requirements-dev.lock | sha256sum"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.rstrip("\n")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (environment / f".petalbus-{mode}").write_text(f"{version} {clone} {stamp}\n")
    return environment


@pytest.mark.parametrize("mode", ["run", "dev"])
def test_up_starts_a_bus_with_a_simulated_vehicle_and_passes_arguments_on(mode: str, clone: Path) -> None:
    """The second run costs less than a second before the program itself; a development environment serves as well."""
    make_environment(clone, mode)
    began = time.monotonic()
    done = run("up", "--data", "a dir", clone=clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[petalbus][up][--sim][--data][a dir]"
    assert time.monotonic() - began < 1.0


def test_a_changed_dependency_is_installed(clone: Path) -> None:
    """The stamp no longer fits: it installs (and here cannot, for the environment has no pip), and says so."""
    environment = make_environment(clone, "run")
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    done = run("up", clone=clone)
    assert done.returncode != 0
    assert "installing PetalBus, versions as in requirements-dev.lock" in done.stderr
    assert "the installation failed" in done.stderr
    assert not (environment / ".petalbus-run").exists(), "a failed installation was stamped as good"
    assert "[petalbus]" not in done.stdout


@pytest.mark.parametrize("script", ["up", "test"])
@pytest.mark.parametrize("python", ["/nowhere/python3", "false"])
def test_an_interpreter_that_does_not_fit_is_refused(script: str, python: str, clone: Path) -> None:
    """Before anything is made."""
    done = run(script, clone=clone, PYTHON=python)
    assert done.returncode != 0
    assert f"PYTHON={python} is not a Python 3.11, 3.12 or 3.13" in done.stderr
    assert not list(clone.glob(".venv*"))


def test_missing_programs_are_named_with_what_is_left_out(clone: Path, tmp_path: Path) -> None:
    """Neither root nor sudo (here: no apt-get at all): the tests run without them, and it says without which."""
    environment = make_environment(clone, "dev")
    python = environment / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nprintf "[%s]" "$@"\n')
    python.chmod(0o755)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "env", "cat", "sha256sum", "dirname", "grep", "id"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = run("test", "-k", "a b", clone=clone, PATH=str(programs))
    assert done.stdout == "[-m][pytest][-k][a b]", done.stderr
    for line in (
        "not Debian; install them yourself: redis-server redis-tools",
        "skipped without redis-server: tests on",
    ):
        assert line in done.stderr


def test_continuous_integration_runs_the_same() -> None:
    """`.ci/run` is nothing but `scripts/test`."""
    code = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert code == ['exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test" "$@"']
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
