"""`scripts/up` and `scripts/test`: what they do before anything of PetalBus runs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from support.procs import ROOT

SERVERS = "requirements-servers.lock"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout reduced to what the scripts look at, under a name with a space."""
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("pyproject.toml", "requirements-dev.lock", "requirements-servers.lock"):
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


@pytest.mark.alone
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


def make_checks(clone: Path, python: str) -> None:
    """A development environment in which ruff and mypy find nothing and ``python -m pytest`` is a shell's line.

    Other calls of its Python are real. The environment of programs for tests is there, and empty.
    """
    programs = make_environment(clone, "dev") / "bin"
    (programs / "python").unlink()
    apart = clone / ".venv-servers"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(apart)], check=True)
    stamp = hashlib.sha256((clone / SERVERS).read_bytes()).hexdigest()
    (apart / ".petalbus-servers").write_text(f"{clone} {stamp}  -\n")
    begun = f'[ "$1 $2" = "-m pytest" ] || exec {sys.executable} "$@"'
    for name, code in (("python", f"{begun}\n{python}"), ("ruff", "exit 0"), ("mypy", "exit 0")):
        (programs / name).write_text(f"#!/bin/sh\n{code}\n")
        (programs / name).chmod(0o755)


@pytest.fixture
def few_programs(tmp_path: Path) -> str:
    """A PATH with what the scripts cannot do without, and no apt-get."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in (
        "bash",
        "sh",
        "env",
        "cat",
        "sha256sum",
        "dirname",
        "grep",
        "id",
        "ln",
        "mkdir",
        "mktemp",
        "rm",
        "sed",
        "tail",
        "tee",
    ):
        (programs / name).symlink_to(shutil.which(name) or name)
    return str(programs)


def test_missing_programs_are_named_with_what_is_left_out(clone: Path, few_programs: str) -> None:
    """Neither root nor sudo (here: no apt-get at all): the tests run without them, and it says without which."""
    make_checks(clone, 'printf "[%s]" "$@"')
    done = run("test", "-k", "a b", clone=clone, PATH=few_programs)
    assert done.stdout == "[-m][pytest][-k][a b]", done.stderr
    for line in (
        "not Debian; install them yourself: redis-server redis-tools",
        "skipped without redis-server: tests on",
    ):
        assert line in done.stderr


def make_package(folder: Path, version: str) -> None:
    """A wheel whose program ``ministack`` tells its version."""
    inside, about = "ministack.py", f"ministack-{version}.dist-info"
    texts = {
        inside: f"def main():\n    print('ministack {version}')\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: ministack\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\nministack = ministack:main\n",
    }
    texts[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*texts, f"{about}/RECORD"))
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"ministack-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in texts.items():
            wheel.writestr(name, text)


def test_programs_for_tests_come_from_an_environment_of_their_own(
    clone: Path, few_programs: str, tmp_path: Path
) -> None:
    """Made once, and again when the lock changes; found before the machine's, and no Python with them.

    Without an index the tests run, and it says what is skipped; a run of a few tests does not try that again.
    """
    make_checks(clone, "ministack; command -v python || echo no python")
    shutil.rmtree(clone / ".venv-servers")
    (Path(few_programs) / "ministack").write_text("#!/bin/sh\necho another\n")
    (Path(few_programs) / "ministack").chmod(0o755)
    lock, index, installs = clone / SERVERS, tmp_path / "index", "installing programs for tests"

    def test(*arguments: str) -> tuple[list[str], str]:
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
        done = run("test", *arguments, clone=clone, PATH=few_programs, **pip)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[:2], done.stderr

    lock.write_text("ministack==1.0\n")
    said, errors = test("-x")
    assert (said, installs in errors) == (["another", "no python"], True)
    assert re.search(r"skipped: tests with ministack .*ministack==1\.0", errors), errors
    said, errors = test("-x")
    assert (said[0], installs in errors, "skipped: tests with ministack" in errors) == ("another", False, True)
    make_package(index, "1.0")
    said, errors = test()
    assert (said, installs in errors) == (["ministack 1.0", "no python"], True)
    said, errors = test("-x")
    assert (said[0], "ministack" in errors) == ("ministack 1.0", False)
    make_package(index, "2.0")
    lock.write_text("ministack==2.0\n")
    assert test("-x")[0] == ["ministack 2.0", "no python"]


def test_versions_of_programs_for_tests_are_exact() -> None:
    """They are installed as they stand there, without a look at what they need."""
    lines = [line for line in (ROOT / SERVERS).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.match(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; |$)", line)] == []
    assert {line.partition("==")[0] for line in lines} >= {"ministack", "moto", "mavproxy", "pymavlink"}


RUN = """
for mark; do :; done
echo "$# words, $4 at a time, $mark"
[ "$mark" != "$FAILING" ] || { echo "FAILED tests/test_x.py::test_y - $mark"; echo "1 failed"; exit 1; }
echo "2 passed"
"""


@pytest.mark.parametrize(("failing", "told"), [("", []), ("not alone", ["together"]), ("alone", ["alone"])])
def test_all_of_it_is_two_runs_and_one_summary(clone: Path, few_programs: str, failing: str, told: list[str]) -> None:
    """Both run, whichever fails; then the summary, and an exit code that says whether anything failed."""
    make_checks(clone, RUN)
    done = run("test", clone=clone, PATH=few_programs, FAILING=failing, JOBS="5")
    said, summary = done.stdout.splitlines(), []
    while said[-1].startswith(("FAILED", "together:", "alone:")):
        summary.insert(0, said.pop())
    assert [line.rpartition(", ")[2] for line in said if "words" in line] == ["not alone", "alone"]
    assert summary[-2:] == [f"{name}: {'1 failed' if name in told else '2 passed'}" for name in ("together", "alone")]
    assert summary[:-2] == [f"FAILED tests/test_x.py::test_y - {failing}" for _ in told]
    assert done.returncode == (1 if told else 0), done.stderr
    assert ("not green: " + " ".join(told) in done.stderr) == bool(told)


def test_continuous_integration_runs_the_same() -> None:
    """`.ci/run` is nothing but `scripts/test`."""
    code = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert code == ['exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test" "$@"']
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
