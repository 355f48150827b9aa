"""Processes are known by more than their number."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from petalbus.daemon.server.process import ProcessIdentity, holders

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


async def test_a_reused_process_id_is_another_process() -> None:
    """Same number, other start or other boot: neither alive nor to be signalled."""
    with subprocess.Popen(SLEEP) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        assert identity.alive()
        for other in (replace(identity, started=identity.started + 1), replace(identity, boot_id="another")):
            assert not other.alive()
            assert not other.signal(signal.SIGKILL)
            assert await other.gone(5)
        assert child.poll() is None
        assert identity.signal(signal.SIGKILL)


def test_a_zombie_has_ended() -> None:
    """A container's first process may never collect an orphan: that must not look like a running server."""
    with subprocess.Popen(SLEEP) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet collected
        assert not identity.alive()
        assert ProcessIdentity.of(child.pid) is None
        assert not identity.signal(signal.SIGTERM)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_end_of_a_strange_process_is_awaited(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Without polling; bounded; also when it has ended long ago."""

    async def scenario(identity: ProcessIdentity) -> None:
        assert not await identity.gone(0.02)
        waiting = asyncio.create_task(identity.gone(), name="gone")
        await asyncio.sleep(0)
        identity.signal(signal.SIGKILL)
        began = time.monotonic()
        assert await asyncio.wait_for(waiting, 5)
        assert time.monotonic() - began < 1
        assert await identity.gone(0)

    with subprocess.Popen(SLEEP) as child, asyncio.Runner(loop_factory=new_loop) as runner:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        runner.run(scenario(identity))


def test_the_holders_of_a_file_are_found(tmp_path: Path) -> None:
    """Those that have it open, by whatever name, and nobody else; not this process itself."""
    file = tmp_path / "lock"
    assert holders(file) == []
    with file.open("w") as opened:
        assert holders(file) == []
        with subprocess.Popen(SLEEP, pass_fds=[opened.fileno()]) as child:
            assert [one.pid for one in holders(file)] == [child.pid]
            child.kill()
    assert holders(file) == []
