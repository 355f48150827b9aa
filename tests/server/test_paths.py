"""Where the files of a bus are, whatever the directory's name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from petalbus.daemon.paths import (
    MAX_SOCKET_PATH_BYTES,
    DataDirectoryError,
    DataPaths,
    default_data_dir,
    write_atomically,
)
from petalbus.daemon.server import EmbeddedServer

from support.servers import kill_leftovers, plain_client


def test_the_default_is_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG; a relative value is ignored, as the specification says."""
    monkeypatch.delenv("PETALBUS_DATA", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_data_dir() == Path("/var/state/petalbus")
    monkeypatch.setenv("HOME", "/home/pilot")
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert default_data_dir() == Path("/home/pilot/.local/state/petalbus")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert DataPaths.of().root == Path("/home/pilot/.local/state/petalbus")


def test_a_directory_named_in_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """PETALBUS_DATA, for programs as for the command line; an empty one is none; one that is given wins."""
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    monkeypatch.setenv("HOME", "/home/pilot")
    monkeypatch.setenv("PETALBUS_DATA", "~/flight")
    assert default_data_dir() == DataPaths.of().root == Path("/home/pilot/flight")
    assert DataPaths.of("/elsewhere").root == Path("/elsewhere")
    monkeypatch.setenv("PETALBUS_DATA", "")
    assert default_data_dir() == Path("/var/state/petalbus")


def test_two_names_of_one_directory_are_one_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a symlink, `~` or a relative path."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataPaths.of("link") == DataPaths.of(tmp_path / "real") == DataPaths.of("~/link")


@pytest.mark.parametrize("runtime", [True, False], ids=["in XDG_RUNTIME_DIR", "in tmp"])
async def test_a_path_too_long_for_a_socket_works(
    runtime: bool, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket goes to a short private directory, and the tools learn of it by the URL."""
    short = data_dir.parent / "run"
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short) if runtime else "")
    long = tmp_path / ("d" * 120)
    try:
        async with EmbeddedServer(long) as server:
            path = server.paths.socket
            assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
            assert path.parent.parent == (short if runtime else Path("/tmp"))
            assert path.parent.stat().st_mode & 0o077 == 0
            client = plain_client(server.url)
            assert await client.ping()
            await client.aclose()
        path.parent.rmdir()  # nothing is left in it
    finally:
        kill_leftovers(long)


@pytest.mark.parametrize("name", ["with space", "per%20cent?#&", 'quote"back\\slash', "ümläut→"])
async def test_any_directory_name_works(name: str, data_dir: Path) -> None:
    """In the server's configuration and in the URL."""
    odd = data_dir / name
    try:
        async with EmbeddedServer(odd) as server:
            client = plain_client(server.url)
            assert await client.set("k", "v")
            await client.aclose()
            assert server.paths.socket.parent == odd
            assert (odd / "server" / "appendonlydir").is_dir()
    finally:
        kill_leftovers(odd)


def test_a_socket_directory_that_somebody_prepared_is_refused(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open to others, or a symlink: it could lead anywhere."""
    short = data_dir.parent / "run"
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    paths = DataPaths.of(tmp_path / ("d" * 120))
    trap = paths.socket.parent
    trap.mkdir()
    trap.chmod(0o777)
    with pytest.raises(DataDirectoryError, match="only this user can enter; remove it"):
        paths.create()
    trap.rmdir()
    trap.symlink_to(tmp_path)
    with pytest.raises(DataDirectoryError, match="only this user can enter; remove it"):
        paths.create()


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    """With the directory, the cause and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryError, match=r"file/data: Not a directory; choose another with --data DIR"):
        DataPaths.of(tmp_path / "file" / "data").create()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    """Readers see the old text or the new one, whole."""
    target = tmp_path / "f"
    write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\udc80")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
