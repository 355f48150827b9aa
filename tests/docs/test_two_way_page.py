"""The page about two-way communication: its program and its commands run as they stand there."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys

import pytest

from bus.clients import until
from cli.conftest import Daemon
from petalbus.petals.proxies.redis import CommunicationMessage, RedisProxy

from .pages import DOCS, examples
from support.procs import child_environment

PAGE = DOCS / "two-way.md"


def test_the_program_runs_as_it_stands(running_bus: Daemon) -> None:
    """S-110, S-156: the basic example, which finds the bus by itself."""
    (program,) = examples(PAGE, "python")
    done = subprocess.run(
        [sys.executable, "-c", program.code],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=child_environment({"XDG_STATE_HOME": str(running_bus.data.parent)}),
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_program_on_plain_keys_by_hand(running_bus: Daemon) -> None:
    """S-092, S-125, S-156, S-157: what a program without our library does, with redis-cli alone."""
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    commands, looking = examples(PAGE, "sh")
    socket = running_bus.data / "bus.sock"
    heard: list[CommunicationMessage] = []
    async with RedisProxy() as proxy:

        async def on_telemetry(message: CommunicationMessage) -> None:
            heard.append(message)

        await proxy.register_message_handler("telemetry", on_telemetry)
        await proxy.start_listening()
        output = await _shell(commands.code, str(socket))
        await until(lambda: heard, "the telemetry is handled")
        assert heard[0].payload == {"battery_level": 85}
        assert output[1] == "1", "the message was put into the set"
        await proxy.send_message("HEAR_FC", "ping", {})

        async def handed() -> bool:
            return "ping" in "".join(await _shell(looking.code.replace("redis-cli MONITOR\n", ""), str(socket)))

        await until(handed, "the ping lies in its queue")
        assert "HEAR_FC" in await proxy.list_online_applications()
        status = await proxy.get_application_status("HEAR_FC")
        assert status is not None
        assert status["status"] == "online"


async def _shell(code: str, socket: str) -> list[str]:
    """The lines that commands print, with redis-cli at a socket."""
    wrapper = f'set -e; redis-cli() {{ command redis-cli -s "{socket}" -e "$@"; }}\n'
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", wrapper + code], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")
