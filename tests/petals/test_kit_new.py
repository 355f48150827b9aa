"""`petalbus petal new`: the package that it makes is installed, found and tested as it stands; names are checked."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from petalbus._version import __version__
from petalbus.daemon.cli.app import run

from support.procs import child_environment

LONGEST = "a-petal-name-of-thirty-two-chars"
assert len(LONGEST) == 32


def new(name: str, directory: Path, *options: str) -> int:
    return run(["petal", "new", name, "--dir", str(directory), *options])


def program(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a program with our packages (and ``path``) importable; its output. Fails when it does."""
    environment = child_environment()
    if path is not None:
        environment["PYTHONPATH"] += f":{path}"
    environment["PYTHONWARNINGS"] = ""  # pip's own are not ours
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_generated_package_is_installed_found_and_its_test_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("battery-watch", tmp_path) == 0
    package = tmp_path / "petal-battery-watch"
    assert f"made {package} with 7 files" in capsys.readouterr().out
    site = tmp_path / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", site)
    program(*pip, package, cwd=tmp_path)
    info = site / f"petalbus-{__version__}.dist-info"  # what an installed petalbus tells pytest
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: petalbus\nVersion: {__version__}\n")
    points = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    fixtures = "".join(f"{name} = {module}\n" for name, module in points["pytest11"].items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{fixtures}")

    found = program(
        "-c",
        "from importlib.metadata import entry_points\n"
        "for point in entry_points(group='petal.plugins'):\n"
        "    if point.name == 'petal_battery_watch': print(point.load().name)",
        cwd=tmp_path,
        path=site,
    )
    assert found.strip() == "battery-watch"
    assert "2 passed" in program("-m", "pytest", "-q", "-W", "error", cwd=package, path=site)


def test_its_test_can_fail(tmp_path: Path) -> None:
    """A petal that forgets the level fails the generated test."""
    assert new("leaky", tmp_path) == 0
    package = tmp_path / "petal-leaky"
    plugin = package / "src" / "petal_leaky" / "plugin.py"
    broken = plugin.read_text().replace("self.level = parse(record, SetLevel).level", "parse(record, SetLevel)")
    assert broken != plugin.read_text()
    plugin.write_text(broken)
    with pytest.raises(AssertionError, match="1 failed, 1 passed"):
        program("-m", "pytest", "-q", "-p", "petalbus.petals.testing.plugin", cwd=package)


@pytest.mark.parametrize("name", ["a", "battery-watch", LONGEST])
def test_it_is_clean_under_its_own_linter(name: str, tmp_path: Path) -> None:
    assert new(name, tmp_path) == 0
    package = tmp_path / f"petal-{name}"
    program("-m", "ruff", "check", "--no-cache", ".", cwd=package)
    program("-m", "ruff", "format", "--no-cache", "--check", ".", cwd=package)


@pytest.mark.slow
def test_it_is_clean_under_strict_type_checking(tmp_path: Path) -> None:
    assert new("camera", tmp_path) == 0
    program("-m", "mypy", "--cache-dir", tmp_path / "cache", cwd=tmp_path / "petal-camera")


def test_all_names_follow_from_one(tmp_path: Path) -> None:
    """With or without the prefix that distributions have."""
    assert new("petal-night-flight", tmp_path) == 0
    package = tmp_path / "petal-night-flight"
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "petal-night-flight"
    points = project["entry-points"]["petal.plugins"]
    assert points == {"petal_night_flight": "petal_night_flight.plugin:NightFlightPetal"}
    assert project["dependencies"] == [f"petalbus>={__version__}"]
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    assert files == [
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/petal_night_flight/__init__.py",
        "src/petal_night_flight/plugin.py",
        "src/petal_night_flight/py.typed",
        "tests/test_night_flight.py",
    ]
    assert not [path for path in package.rglob("*") if path.is_file() and "$" in path.read_text()]


def test_what_was_made_is_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new("camera", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["petal"], told["directory"]) == ("camera", str(tmp_path / "petal-camera"))
    assert "src/petal_camera/plugin.py" in told["files"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Battery Watch", "'battery-watch' would do"),
        ("battery_watch", "'battery-watch' would do"),
        ("9lives", "beginning with a letter"),
        ("../evil", "'evil' would do"),
        ("", "is no name for a petal"),
        ("petal-", "is no name for a petal"),
        ("a--b", "'a-b' would do"),
        ("ümlaut", "'mlaut' would do"),
        (LONGEST + "s", "32 characters at most"),
        ("vehicle", "on every bus"),
        ("petal-echo", "on every bus"),
    ],
)
def test_a_wrong_name_is_refused_with_one_that_would_do(
    name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(name, tmp_path) == 2
    assert hint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a folder nor a file nor a link that leads nowhere."""
    for name, make in (
        ("folder", lambda path: path.mkdir()),
        ("file", lambda path: path.write_text("mine")),
        ("link", lambda path: path.symlink_to("nowhere")),
    ):
        make(tmp_path / f"petal-{name}")
        assert new(name, tmp_path) == 1
        assert "is there already; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "petal-file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new("camera", tmp_path / "missing") == 1
    assert "is no directory" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert new("camera", tmp_path / "file") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
