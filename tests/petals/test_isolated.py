"""Petals in processes of their own, in a real daemon: served, killed, replaced, and gone with the daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import petalbus
from cli.conftest import Buses, Daemon, run_process
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError
from petalbus.daemon.server.discover import discover

from support.procs import child_environment

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

CODE = '''
import asyncio, os, pathlib
from petalbus.petals import Petal, http_action, on

HERE = pathlib.Path(__file__).parent


class Worker(Petal):
    name, version = "worker", "1.0"

    async def work(self, record):
        """Leave a trace, then wait to be killed, once."""
        with open(HERE / "effects", "a") as file:
            file.write(f"{record.id} {os.getpid()}\\n")
        if record.data.get("die") and not (HERE / f"died-{record.id}").exists():
            (HERE / f"died-{record.id}").touch()
            await asyncio.sleep(60)
        return {"by": os.getpid()}

    @on("again", redelivery="rerun")
    async def again(self, record):
        return await self.work(record)

    @on("once", redelivery="report")
    async def once(self, record):
        return await self.work(record)

    @http_action("GET", "/pid")
    async def pid(self):
        return {"pid": os.getpid()}


class Neighbour(Petal):
    name, version = "neighbour", "1.0"

    @http_action("GET", "/pid")
    async def pid(self):
        return {"pid": os.getpid()}
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "workers.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    """A daemon with one isolated petal and one of its own."""
    buses = Buses()
    try:
        paths = os.pathsep.join([str(place), child_environment()["PYTHONPATH"]])
        started = buses.up(
            *("--set", "petals_paths=workers:Worker,workers:Neighbour", "--set", "petals_isolated=Worker"),
            PYTHONPATH=paths,
        )
        started.ready()
        until_running(started, "worker", "neighbour")
        yield started
    finally:
        buses.close()


def petals(daemon: Daemon) -> dict[str, dict[str, Any]]:
    told = run_process("petals", "--json", "--data", str(daemon.data)).objects
    return {one["name"]: one for one in told}


def until_running(daemon: Daemon, *names: str) -> dict[str, dict[str, Any]]:
    end = time.monotonic() + 30
    while True:
        told = petals(daemon)
        if all(told.get(name, {}).get("state") == "running" for name in names):
            return told
        assert time.monotonic() < end, told


def open_bus(daemon: Daemon) -> Bus:
    return petalbus.connect(app="ground", data=daemon.data)


async def address(daemon: Daemon) -> str:
    async with asyncio.timeout(20):
        while not (url := (await asyncio.to_thread(discover, daemon.data)).http):
            await asyncio.sleep(0.05)
    return url


async def pid_of(daemon: Daemon, petal: str) -> int:
    """The process that answers a petal's route; waits while it is away."""
    async with httpx.AsyncClient(base_url=await address(daemon)) as client, asyncio.timeout(20):
        while (answer := await client.get(f"/petals/{petal}/pid")).status_code != 200:
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)
    return int(answer.json()["pid"])


def effects(place: Path) -> list[str]:
    path = place / "effects"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


async def killed_in_the_middle(daemon: Daemon, place: Path, message_id: str) -> None:
    """kill -9 of the petal's process once its handler has begun."""
    async with asyncio.timeout(20):
        while not (place / f"died-{message_id}").exists():
            await asyncio.sleep(0.01)
    pid = int((place / "effects").read_text().splitlines()[-1].split()[1])
    os.kill(pid, signal.SIGKILL)


async def test_work_that_may_run_again_is_finished_by_the_successor(daemon: Daemon, place: Path) -> None:
    """I2, I6: kill -9 in the middle of a command: the new process runs it, and there is exactly one reply."""
    assert await pid_of(daemon, "worker") != daemon.pid
    assert await pid_of(daemon, "neighbour") == daemon.pid
    async with open_bus(daemon) as bus:
        asking = asyncio.create_task(bus.request("worker", "again", {"die": True}, id="m1", timeout=40), name="ask")
        await killed_in_the_middle(daemon, place, "m1")
        reply = await asking
        assert reply.data["by"] == await pid_of(daemon, "worker")
        assert effects(place) == ["m1", "m1"]
        rows = await bus.ask("XRANGE", bus.keys.replies("ground"), "-", "+")
        finals = [fields for _, fields in rows if b"m1" in fields]
        assert len(finals) == 1
    told = until_running(daemon, "worker", "neighbour")
    assert told["worker"]["restarts"] == 1
    assert (told["worker"]["isolation"], told["neighbour"]["isolation"]) == ("process", "daemon")
    assert told["neighbour"]["restarts"] == 0


async def test_work_that_must_not_run_again_is_reported(daemon: Daemon, place: Path) -> None:
    """I2: the successor does not run it; its sender hears that nobody knows the outcome."""
    async with open_bus(daemon) as bus:
        asking = asyncio.create_task(bus.request("worker", "once", {"die": True}, id="m2", timeout=40), name="ask")
        await killed_in_the_middle(daemon, place, "m2")
        with pytest.raises(ReplyError) as unknown:
            await asking
        assert unknown.value.error_code == "OUTCOME_UNKNOWN"
        assert effects(place) == ["m2"]
        assert (await bus.request("worker", "once", {}, timeout=20)).data["by"] == await pid_of(daemon, "worker")


async def test_it_goes_with_the_daemon(daemon: Daemon, place: Path) -> None:
    """In order when the daemon stops; and when the daemon is killed, too."""
    child = await pid_of(daemon, "worker")
    daemon.kill()
    end = time.monotonic() + 15
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end, "the petal's process outlives the daemon"
        await asyncio.sleep(0.05)


def test_the_command_line(daemon: Daemon) -> None:
    """`petalbus petals`: a table, JSON, the four verbs, and what is refused."""
    data = ("--data", str(daemon.data))
    listed = run_process("petals", *data)
    assert listed.code == 0
    assert "worker" in listed.out
    assert "process" in listed.out
    off = run_process("petals", "disable", "worker", "--json", *data)
    assert (off.code, off.object["state"]) == (0, "disabled")
    assert petals(daemon)["neighbour"]["state"] == "running"
    on = run_process("petals", "enable", "worker", *data, timeout=60)
    assert (on.code, on.out.strip()) == (0, "worker is running")
    for verb in ("restart", "reload"):
        again = run_process("petals", verb, "worker", *data, timeout=60)
        assert (again.code, again.out.strip()) == (0, "worker is running")
    unknown = run_process("petals", "restart", "nobody", *data)
    assert unknown.code == 1
    assert "there is no petal 'nobody'; known petals: " in unknown.err
    assert "neighbour, " in unknown.err
    assert daemon.stop() == 0
    assert json.dumps(daemon.events[-1]).startswith('{"event": "stopped"')
