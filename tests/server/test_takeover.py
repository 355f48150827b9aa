"""What the next daemon does with the server of one that was killed. The daemons are real processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server import EmbeddedServer
from petalbus.daemon.server.find import ServerBinary
from petalbus.daemon.server.handle import ServerState
from petalbus.daemon.server.process import ProcessIdentity, holders

from support.procs import Child, Children
from support.servers import SERVERS, kill_leftovers, plain_client, poll_until

DAEMON = """
import asyncio, sys, uvloop
{preparation}
from petalbus.daemon.server import EmbeddedServer

async def main():
    async with EmbeddedServer(sys.argv[1], memory_mb=64) as server:
        print("ready", server.pid, server.adopted, flush=True)
        await server.supervise()

with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
    runner.run(main())
"""


async def start_daemon(
    children: Children, data: Path, preparation: str = "", *, loop: str = "asyncio"
) -> tuple[Child, int]:
    daemon = await children.code(DAEMON.format(preparation=preparation, loop=loop), str(data))
    line = await daemon.line("ready")
    return daemon, int(line.split()[1])


async def put(data: Path, key: str) -> None:
    client = plain_client(f"unix://{DataPaths.of(data).socket}")
    await client.set(key, "v")
    await client.aclose()


async def keys(server: EmbeddedServer) -> set[bytes]:
    client = plain_client(server.url)
    try:
        return set(await client.keys())
    finally:
        await client.aclose()


def alive(pid: int) -> bool:
    return ProcessIdentity.of(pid) is not None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_server_outlives_a_killed_daemon_and_is_adopted(
    loop: str, children: Children, data_dir: Path
) -> None:
    """I1: kill -9 of the daemon; the next start takes the same process over, with everything in it, and can stop it."""
    daemon, pid = await start_daemon(children, data_dir)
    await put(data_dir, "before")
    daemon.kill()
    await daemon.wait()
    assert alive(pid)
    await put(data_dir, "between")
    # The second daemon's death is seen by a third: an adopted server is kept as well as one's own.
    second, same = await start_daemon(children, data_dir, loop=loop)
    assert same == pid
    assert second.output[-1].endswith("True")
    second.kill()
    await second.wait()
    async with EmbeddedServer(data_dir, memory_mb=64) as third:
        assert (third.pid, third.adopted) == (pid, True)
        assert await keys(third) == {b"before", b"between"}
    assert not alive(pid), "the adopted server was not stopped"
    assert "ready to exit" in third.paths.server_log.read_text()


async def test_an_adopted_server_that_dies_is_started_again(children: Children, data_dir: Path) -> None:
    """The supervisor notices the end of a process that is not its child."""
    daemon, pid = await start_daemon(children, data_dir)
    await put(data_dir, "k")
    daemon.kill()
    await daemon.wait()
    second, _ = await start_daemon(children, data_dir)
    os.kill(pid, signal.SIGKILL)
    state = DataPaths.of(data_dir)

    def restarted() -> bool:
        now = ServerState.read(state)
        return now is not None and now.pid != pid and now.run_id != ""

    poll_until(restarted, "a new server serves")
    await put(data_dir, "l")
    second.kill()
    await second.wait()
    async with EmbeddedServer(data_dir, memory_mb=64) as third:
        assert await keys(third) == {b"k", b"l"}


async def test_a_signal_to_the_daemons_terminal_does_not_reach_the_server(children: Children, data_dir: Path) -> None:
    """Ctrl-C goes to a whole session: the server has its own, and the daemon ends it when its work is done."""
    daemon, pid = await start_daemon(children, data_dir)
    assert os.getsid(daemon.pid) == daemon.pid
    assert os.getsid(pid) == pid


async def test_a_frozen_orphan_is_woken_and_adopted(children: Children, data_dir: Path) -> None:
    """Daemon killed, server stopped by a signal (a suspended terminal session): it goes on serving."""
    daemon, pid = await start_daemon(children, data_dir)
    daemon.kill()
    await daemon.wait()
    os.kill(pid, signal.SIGSTOP)
    async with EmbeddedServer(data_dir, memory_mb=64) as server:
        assert (server.pid, server.adopted) == (pid, True)


async def test_an_orphan_with_another_configuration_is_replaced_in_order(children: Children, data_dir: Path) -> None:
    """Another memory ceiling is asked for: stop in order, start anew, same data."""
    daemon, pid = await start_daemon(children, data_dir)
    await put(data_dir, "k")
    daemon.kill()
    await daemon.wait()
    async with EmbeddedServer(data_dir, memory_mb=128) as server:
        assert server.pid != pid
        assert not server.adopted
        assert not alive(pid)
        assert await keys(server) == {b"k"}
        assert "ready to exit" in server.paths.server_log.read_text(), "the orphan was not stopped in order"


@pytest.mark.skipif(len(SERVERS) < 2, reason="needs two different server programs")
async def test_an_orphan_of_another_program_is_replaced(children: Children, data_dir: Path) -> None:
    """The data of the older server is loaded by the other program, which was asked for."""
    older = min(SERVERS, key=lambda one: (one.kind, one.version))
    newer = max(SERVERS, key=lambda one: (one.kind, one.version))
    daemon, pid = await start_daemon(children, data_dir, f"import os; os.environ['PETALBUS_SERVER'] = '{older.path}'")
    await put(data_dir, "k")
    daemon.kill()
    await daemon.wait()
    async with EmbeddedServer(data_dir, memory_mb=64, binary=newer.path) as server:
        assert server.pid != pid
        assert server.binary is not None
        assert server.binary.kind == newer.kind
        assert await keys(server) == {b"k"}


async def test_a_daemon_killed_in_the_middle_of_a_start_leaves_nothing_unknown(
    children: Children, data_dir: Path
) -> None:
    """Killed after the server's process began and before it was written down: the lock alone gives it away."""
    preparation = (
        "import os; from petalbus.daemon.server.handle import ServerState;"
        "ServerState.write = lambda self, paths: os.kill(os.getpid(), 9)"
    )
    daemon = await children.code(DAEMON.format(preparation=preparation, loop="asyncio"), str(data_dir))
    assert await daemon.wait() == -signal.SIGKILL
    paths = DataPaths.of(data_dir)
    assert not paths.server_state.exists()
    (unknown,) = holders(paths.server_lock)
    async with EmbeddedServer(data_dir, memory_mb=64) as server:
        assert not unknown.alive()
        assert [one.pid for one in holders(paths.server_lock)] == [server.pid]


async def test_a_state_file_that_names_a_stranger_harms_nobody(
    children: Children, data_dir: Path, server_binary: ServerBinary
) -> None:
    """A process that got the id of a dead server is neither adopted nor killed."""
    daemon, pid = await start_daemon(children, data_dir)
    daemon.kill()
    await daemon.wait()
    kill_leftovers(data_dir)
    stranger = await children.code("import time; print('here', flush=True); time.sleep(60)")
    await stranger.line("here")
    identity = ProcessIdentity.of(stranger.pid)
    assert identity is not None
    paths = DataPaths.of(data_dir)
    old = ServerState.read(paths)
    assert old is not None
    assert old.pid == pid
    state = ServerState(
        identity.pid, identity.started, identity.boot_id, str(server_binary.path), old.digest, old.socket, old.run_id
    )
    state.write(paths)
    async with EmbeddedServer(data_dir, memory_mb=64) as server:
        assert server.pid not in (pid, stranger.pid)
        assert not server.adopted
    assert identity.alive()


@pytest.mark.parametrize(
    ("field", "value"), [("run_id", "0" * 40), ("digest", "0" * 32), ("socket", "/nowhere/bus.sock"), ("started", 1)]
)
async def test_an_orphan_that_differs_in_anything_is_not_adopted(
    field: str, value: str | int, children: Children, data_dir: Path
) -> None:
    """Whatever does not fit what was written down: it is stopped, and a new one serves the same data."""
    daemon, pid = await start_daemon(children, data_dir)
    await put(data_dir, "k")
    daemon.kill()
    await daemon.wait()
    paths = DataPaths.of(data_dir)
    state = ServerState.read(paths)
    assert state is not None
    replace(state, **{field: value}).write(paths)  # type: ignore[arg-type]
    async with EmbeddedServer(data_dir, memory_mb=64) as server:
        assert not server.adopted
        assert not alive(pid)
        assert await keys(server) == {b"k"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1, "started": 2, "more": 3}', "\x00" * 80])
async def test_a_damaged_state_file_is_no_obstacle(content: str, children: Children, data_dir: Path) -> None:
    """After a power cut the file may hold anything: the server it should describe is found by its lock."""
    daemon, pid = await start_daemon(children, data_dir)
    await put(data_dir, "k")
    daemon.kill()
    await daemon.wait()
    DataPaths.of(data_dir).server_state.write_text(content)
    async with EmbeddedServer(data_dir, memory_mb=64) as server:
        assert not alive(pid)
        assert await keys(server) == {b"k"}
