"""The embedded server's life: started, used, killed, restarted, stopped. Every server here is a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.exceptions
import uvloop

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server import EmbeddedServer, ServerCrashLoop, ServerStartError, config
from petalbus.daemon.server.find import ServerBinary
from petalbus.daemon.server.process import ProcessIdentity, holders

from support.servers import SERVERS, plain_client, poll_until, server_id


async def run_command(url: str, *words: str | bytes) -> object:
    client = plain_client(url)
    try:
        return await client.execute_command(*words)
    finally:
        await client.aclose()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("binary", SERVERS, ids=server_id)
def test_one_start_serves_and_one_stop_ends_it(
    binary: ServerBinary, new_loop: Callable[[], asyncio.AbstractEventLoop], data_dir: Path
) -> None:
    """Every server found, under both event loops: ready within the 1.5 s of `petalbus up`, gone after the stop."""

    async def life() -> None:
        began = time.monotonic()
        async with EmbeddedServer(data_dir, binary=binary.path) as server:
            assert time.monotonic() - began < 1.5
            assert server.binary is not None
            assert (server.binary.kind, server.binary.version) == (binary.kind, binary.version)
            assert await run_command(server.url, "SET", "k", "v")
            identity = ProcessIdentity.of(server.pid or 0)
            assert identity is not None
        assert not identity.alive()
        assert server.pid is None

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(life())
    assert not DataPaths.of(data_dir).socket.exists()
    assert "ready to exit" in DataPaths.of(data_dir).server_log.read_text(), "it was not stopped in order"


async def test_only_this_user_can_reach_it(data_dir: Path) -> None:
    """Private directories, a private socket, no TCP port."""
    async with EmbeddedServer(data_dir) as server:
        paths = server.paths
        for path, mode in ((data_dir, 0o700), (paths.server_dir, 0o700), (paths.socket, 0o700)):
            assert stat.S_IMODE(path.stat().st_mode) == mode, path
        assert stat.S_IMODE(paths.server_config.stat().st_mode) == 0o600
        assert await run_command(server.url, "CONFIG", "GET", "port") == [b"port", b"0"]


async def test_an_existing_shared_directory_keeps_its_mode(data_dir: Path) -> None:
    """`--data /srv/shared` must not lock other users out of a directory that is not ours to close."""
    data_dir.mkdir(mode=0o755)
    data_dir.chmod(0o755)
    async with EmbeddedServer(data_dir) as server:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o755
        assert stat.S_IMODE(server.paths.server_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_the_server_keeps_what_was_chosen(fsync: str, data_dir: Path) -> None:
    """Memory ceiling with `noeviction`, append-only file on with the chosen fsync, no snapshots."""
    async with EmbeddedServer(data_dir, memory_mb=48, fsync=fsync) as server:  # type: ignore[arg-type]
        for name, value in (
            ("maxmemory", str(48 << 20)),
            ("maxmemory-policy", "noeviction"),
            ("appendonly", "yes"),
            ("appendfsync", "always" if fsync == "always" else "no"),
            ("save", ""),
            ("databases", "1"),
        ):
            assert await run_command(server.url, "CONFIG", "GET", name) == [name.encode(), value.encode()]


async def test_everysec_is_done_from_outside_and_only_when_something_was_written(data_dir: Path) -> None:
    """I1: the server never holds a write back for a slow fsync; what it wrote is brought to the disk about once a
    second.
    """
    async with EmbeddedServer(data_dir) as server:
        server.flusher.flush()
        before = server.flusher.flushes
        server.flusher.flush()
        assert server.flusher.flushes == before
        await run_command(server.url, "SET", "key", "value")
        server.flusher.flush()
        assert server.flusher.flushes == before + 1
        await run_command(server.url, "SET", "key", "again")
        async with asyncio.timeout(10):
            while server.flusher.flushes < before + 2:
                await asyncio.sleep(0.05)


async def test_a_full_memory_refuses_and_never_evicts(data_dir: Path) -> None:
    """Above the ceiling writes fail loudly, and what was stored before is still there."""
    stored = 0
    async with EmbeddedServer(data_dir, memory_mb=16) as server:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            for number in range(64):
                await run_command(server.url, "SET", f"k{number}", os.urandom(1 << 20))
                stored += 1
        assert stored > 4
        assert await run_command(server.url, "DBSIZE") == stored


@pytest.mark.parametrize("binary", SERVERS, ids=server_id)
async def test_kill_9_of_the_server_loses_nothing(binary: ServerBinary, data_dir: Path) -> None:
    """I1: every acknowledged entry is there again after the server was killed and restarted by its supervisor."""
    async with EmbeddedServer(data_dir, binary=binary.path) as server:
        restarted: asyncio.Queue[int] = asyncio.Queue()
        supervision = asyncio.create_task(server.supervise(on_restart=restarted.put_nowait), name="supervise")
        url = server.url
        acknowledged = []
        for round_ in range(3):
            client = plain_client(url)
            acknowledged += [await client.xadd("s", {"n": f"{round_}.{number}"}) for number in range(100)]
            killed = server.pid
            os.kill(killed or 0, signal.SIGKILL)
            pid = await asyncio.wait_for(restarted.get(), 10)
            await client.aclose()
            assert pid == server.pid != killed
            client = plain_client(url)
            entries = await client.xrange("s")
            await client.aclose()
            assert [entry[0] for entry in entries] == acknowledged
        assert server.restarts == 3
        assert server.url == url
    await asyncio.wait_for(supervision, 5)


async def test_wait_reports_how_the_server_ended(data_dir: Path) -> None:
    """A death is noticed at once, with its signal."""
    async with EmbeddedServer(data_dir) as server:
        ending = asyncio.create_task(server.wait(), name="wait")
        os.kill(server.pid or 0, signal.SIGKILL)
        assert await asyncio.wait_for(ending, 5) == -signal.SIGKILL


async def test_a_server_that_dies_again_and_again_is_given_up(data_dir: Path) -> None:
    """Restarts are bounded: after too many within the window the supervisor says so instead of trying for ever."""
    async with EmbeddedServer(data_dir, max_restarts=2) as server:

        def kill(pid: int) -> None:
            os.kill(pid, signal.SIGKILL)

        kill(server.pid or 0)
        with pytest.raises(ServerCrashLoop, match="ended 3 times within 60 s"):
            await asyncio.wait_for(server.supervise(on_restart=kill), 20)
        assert server.restarts == 2


async def test_stop_during_a_restart_leaves_no_server(data_dir: Path) -> None:
    """A stop that meets the supervisor in the middle of a restart ends both."""
    server = EmbeddedServer(data_dir)
    await server.start()
    supervision = asyncio.create_task(server.supervise(), name="supervise")
    os.kill(server.pid or 0, signal.SIGKILL)
    log = server.paths.server_log
    while log.read_text().count("just started") < 2:  # the second process has begun, and is not yet ready
        await asyncio.sleep(0.001)
    await server.stop()
    await asyncio.wait_for(supervision, 5)
    assert holders(server.paths.server_lock) == []


SLOW_LOAD = "\nkey-load-delay 500\n"  # microseconds a key: a big file on a slow card


async def fill(data: Path, number: int) -> None:
    async with EmbeddedServer(data) as server:
        client = plain_client(server.url)
        async with client.pipeline(transaction=False) as pipe:
            for key in range(number):
                pipe.set(f"k{key}", "v")
            await pipe.execute()
        await client.aclose()


async def test_a_server_that_loads_for_long_is_waited_for(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """start() returns when everything is there, not when the server first answers."""
    await fill(data_dir, 3000)
    monkeypatch.setattr("petalbus.daemon.server.config._TEXT", config._TEXT + SLOW_LOAD)
    began = time.monotonic()
    async with EmbeddedServer(data_dir) as server:
        assert time.monotonic() - began > 1.4
        assert await run_command(server.url, "DBSIZE") == 3000


async def test_a_stop_does_not_wait_for_a_long_load(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor is in the middle of a restart that takes 10 s: a stop ends both, soon."""
    await fill(data_dir, 20_000)
    server = EmbeddedServer(data_dir)
    await server.start()
    supervision = asyncio.create_task(server.supervise(), name="supervise")
    monkeypatch.setattr("petalbus.daemon.server.config._TEXT", config._TEXT + SLOW_LOAD)
    os.kill(server.pid or 0, signal.SIGKILL)
    log = server.paths.server_log
    before = log.read_text().count("just started")
    while log.read_text().count("just started") == before:
        await asyncio.sleep(0.001)
    began = time.monotonic()
    await server.stop()
    await supervision
    assert time.monotonic() - began < 4
    assert holders(server.paths.server_lock) == []
    monkeypatch.undo()
    async with EmbeddedServer(data_dir) as again:
        assert await run_command(again.url, "DBSIZE") == 20_000


async def test_a_frozen_server_is_stopped_in_order(data_dir: Path) -> None:
    """SIGSTOP: it answers nothing, so it is told by signal; what it had acknowledged is there afterwards."""
    server = EmbeddedServer(data_dir)
    await server.start()
    await run_command(server.url, "SET", "k", "v")
    identity = ProcessIdentity.of(server.pid or 0)
    assert identity is not None
    identity.signal(signal.SIGSTOP)
    await server.stop()
    assert not identity.alive()
    async with EmbeddedServer(data_dir) as again:
        assert await run_command(again.url, "GET", "k") == b"v"


async def test_a_server_busy_with_a_script_is_stopped(data_dir: Path) -> None:
    """A script without an end: INFO is refused then, SHUTDOWN NOSAVE is not."""
    server = EmbeddedServer(data_dir)
    await server.start()
    await run_command(server.url, "CONFIG", "SET", "busy-reply-threshold", "50")
    runaway = asyncio.create_task(run_command(server.url, "EVAL", "while true do end", "0"), name="runaway")
    client = plain_client(server.url)
    with pytest.raises(redis.exceptions.ResponseError, match="BUSY"):
        for _ in range(1000):
            await client.ping()
            await asyncio.sleep(0.005)
    await client.aclose()
    await asyncio.wait_for(server.stop(), 10)
    assert holders(server.paths.server_lock) == []
    with pytest.raises(redis.exceptions.ConnectionError):
        await runaway


async def test_a_tail_cut_by_a_power_loss_loads(data_dir: Path) -> None:
    """I7: the half-written last command is dropped, everything before it is there."""
    async with EmbeddedServer(data_dir) as server:
        for number in range(10):
            await run_command(server.url, "SET", f"k{number}", "v")
    cut_last_file(server.paths, 7)
    async with EmbeddedServer(data_dir) as again:
        assert await run_command(again.url, "DBSIZE") == 9


async def test_damage_in_the_middle_is_told_and_leaves_nothing_running(data_dir: Path) -> None:
    """The server refuses such a file: the error has its words, and comes at once, not after a time limit."""
    async with EmbeddedServer(data_dir) as server:
        for number in range(100):
            await run_command(server.url, "SET", f"k{number}", "v" * 20)
    file = last_file(server.paths)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
    file.write_bytes(content)
    broken = EmbeddedServer(data_dir)
    began = time.monotonic()
    with pytest.raises(ServerStartError, match=r"Bad file format reading the append only file"):
        await broken.start()
    assert time.monotonic() - began < 5
    assert holders(broken.paths.server_lock) == []
    assert holders(broken.paths.bus_lock) == []
    assert broken.pid is None


async def test_a_cancelled_start_leaves_nothing_running(data_dir: Path) -> None:
    """Cancelled while the server is being started: no process, no lock remain, and the next start works."""
    server = EmbeddedServer(data_dir)
    starting = asyncio.create_task(server.start(), name="start")
    while not server.paths.server_state.exists():  # the process exists, and is not yet ready
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert holders(server.paths.server_lock) == []
    async with EmbeddedServer(data_dir) as again:
        assert await run_command(again.url, "PING")


async def test_a_rewrite_left_behind_by_a_killed_server_does_not_block_the_restart(data_dir: Path) -> None:
    """The forked writer of a killed server is ended, so that two processes never write one directory."""
    async with EmbeddedServer(data_dir) as server:
        restarted: asyncio.Queue[int] = asyncio.Queue()
        supervision = asyncio.create_task(server.supervise(on_restart=restarted.put_nowait), name="supervise")
        for number in range(20):
            await run_command(server.url, "SET", f"k{number}", "v")
        await run_command(server.url, "CONFIG", "SET", "rdb-key-save-delay", "1000000")
        await run_command(server.url, "BGREWRITEAOF")
        poll_until(lambda: len(holders(server.paths.server_lock)) == 2, "the rewrite has begun")
        os.kill(server.pid or 0, signal.SIGKILL)
        pid = await asyncio.wait_for(restarted.get(), 5)
        assert [one.pid for one in holders(server.paths.server_lock)] == [pid]
        assert await run_command(server.url, "DBSIZE") == 20
    await supervision


def test_senseless_choices_are_refused(data_dir: Path) -> None:
    """With the name of the setting, before anything is started."""
    with pytest.raises(ValueError, match="memory_mb"):
        EmbeddedServer(data_dir, memory_mb=1)
    with pytest.raises(ValueError, match="fsync"):
        EmbeddedServer(data_dir, fsync="no")  # type: ignore[arg-type]
    assert not data_dir.exists()


def last_file(paths: DataPaths) -> Path:
    """The append-only file that is being written."""
    return max((paths.server_dir / "appendonlydir").glob("*.incr.aof"))


def cut_last_file(paths: DataPaths, size: int) -> None:
    file = last_file(paths)
    os.truncate(file, file.stat().st_size - size)
