"""One daemon a data directory, and how the tools find it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from petalbus._version import __version__
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server import (
    DataDirectoryInUse,
    DataLock,
    EmbeddedServer,
    NoRunningBus,
    announce,
    discover,
    update,
    withdraw,
)

from support.procs import Children

OWNER = """
import asyncio, sys, time
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server import DataLock, announce

async def main():
    paths = DataPaths.of(sys.argv[1])
    lock = DataLock(paths)
    await lock.acquire()
    announce(paths, url="redis://user:pw@127.0.0.1:1", bus="b1", server_pid=77)
    print("ready", flush=True)
    sys.stdin.readline()
    lock.release()
    print("released", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


async def test_a_second_daemon_is_told_who_runs_the_directory(children: Children, data_dir: Path) -> None:
    """With the process id of the first and what to do; and nothing of the first is touched."""
    owner = await children.code(OWNER, str(data_dir))
    await owner.line("ready")
    with pytest.raises(DataDirectoryInUse, match=rf"started by process {owner.pid}\).*--data DIR") as caught:
        await EmbeddedServer(data_dir).start()
    assert caught.value.pid == owner.pid
    assert discover(data_dir).daemon_pid == owner.pid
    await owner.write("go\n")
    await owner.line("released")
    async with EmbeddedServer(data_dir) as server:
        assert server.pid


async def test_the_lock_of_a_killed_daemon_is_free(children: Children, data_dir: Path) -> None:
    """kill -9 leaves no stale lock."""
    owner = await children.code(OWNER, str(data_dir))
    await owner.line("ready")
    owner.kill()
    await owner.wait()
    lock = DataLock(DataPaths.of(data_dir))
    await lock.acquire()
    assert lock.held
    lock.release()


async def test_the_owner_is_read_right_after_a_longer_one(data_dir: Path) -> None:
    """A killed daemon left its process id in the lock file, with more digits than ours."""
    paths = DataPaths.of(data_dir)
    paths.create()
    paths.bus_lock.write_text("12345678901234567890\n")
    lock = DataLock(paths)
    await lock.acquire()
    with pytest.raises(DataDirectoryInUse, match=rf"process {os.getpid()}\)"):
        await DataLock(paths, patience=0).acquire()
    lock.release()


async def test_two_objects_of_one_process_exclude_each_other(data_dir: Path) -> None:
    """The lock is of the object, not of the process."""
    first, second = DataLock(DataPaths.of(data_dir)), DataLock(DataPaths.of(data_dir), patience=0)
    await first.acquire()
    with pytest.raises(DataDirectoryInUse):
        await second.acquire()
    first.release()
    await second.acquire()
    second.release()


async def test_the_running_bus_is_found_with_all_that_is_known_of_it(children: Children, data_dir: Path) -> None:
    """Address, name, processes, version; in a file that only its user reads, for it may hold a password."""
    owner = await children.code(OWNER, str(data_dir))
    await owner.line("ready")
    running = discover(data_dir)
    assert running.url == "redis://user:pw@127.0.0.1:1"
    assert (running.bus, running.daemon_pid, running.server_pid) == ("b1", owner.pid, 77)
    assert running.version == __version__
    assert len(running.token) == 32
    assert stat.S_IMODE(DataPaths.of(data_dir).bus_file.stat().st_mode) == 0o600


async def test_a_daemon_that_was_killed_is_not_taken_for_a_running_bus(children: Children, data_dir: Path) -> None:
    """Its file is still there; the reader says that the process has ended, and what to do."""
    owner = await children.code(OWNER, str(data_dir))
    await owner.line("ready")
    owner.kill()
    await owner.wait()
    with pytest.raises(NoRunningBus, match=rf"process {owner.pid}, has ended.*petalbus up"):
        discover(data_dir)


async def test_a_daemon_in_a_container_is_found_by_its_lock(children: Children, data_dir: Path) -> None:
    """Its process id means nothing outside; the lock on the shared directory does."""
    owner = await children.code(OWNER, str(data_dir))
    await owner.line("ready")
    file = DataPaths.of(data_dir).bus_file
    fields = json.loads(file.read_text())
    file.write_text(json.dumps({**fields, "daemon_pid": 1, "daemon_started": 1}))
    assert discover(data_dir).daemon_pid == 1


def test_no_bus_is_said_with_the_directory_and_what_to_do(data_dir: Path) -> None:
    """Both for a directory that is not there and for one that is empty."""
    for _ in range(2):
        with pytest.raises(NoRunningBus, match=rf"in {data_dir}: none is here; start one with `petalbus up`"):
            discover(data_dir)
        data_dir.mkdir(exist_ok=True)


async def test_a_bus_that_is_just_starting_is_told_apart(data_dir: Path) -> None:
    """The lock is held, the file is not yet written."""
    lock = DataLock(DataPaths.of(data_dir))
    await lock.acquire()
    with pytest.raises(NoRunningBus, match="just starting or stopping"):
        discover(data_dir)
    lock.release()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"url": "x", "and": "more"}', "\x00\x00"])
def test_a_damaged_description_is_said(content: str, data_dir: Path) -> None:
    """Not a traceback."""
    data_dir.mkdir()
    DataPaths.of(data_dir).bus_file.write_text(content)
    with pytest.raises(NoRunningBus, match="damaged or of another version"):
        discover(data_dir)


async def test_announce_update_withdraw(data_dir: Path) -> None:
    """The life of the file: a new token a run, the server's new process after a restart, nothing at the end."""
    paths = DataPaths.of(data_dir)
    async with EmbeddedServer(data_dir) as server:
        first = announce(paths, url=server.url, server_pid=server.pid)
        second = announce(paths, url=server.url, server_pid=server.pid)
        assert first.token != second.token
        update(paths, second.with_server(4711))
        assert discover(data_dir) == second.with_server(4711)
        withdraw(paths)
        with pytest.raises(NoRunningBus):
            discover(data_dir)
        assert [one.name for one in data_dir.iterdir() if one.name.startswith(".bus")] == []
