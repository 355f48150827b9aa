"""A petal that calls sys.exit, or that hangs while it is imported, does harm to itself alone."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from cli.conftest import Buses, Daemon, run_process
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError
from petalbus.daemon.petals import life

from .place import Place
from support.procs import child_environment

QUITTER = """
class P(Petal):
    name, version = "quitter", "1"

    @on("async", max_attempts=1)
    async def leave(self, record):
        sys.exit("enough")

    @on("heavy", max_attempts=1)
    async def compute(self, record):
        await run_heavy(self.quit)

    @on("channel")
    async def listen(self, record):
        proxy = self.get_proxy("redis")
        await proxy.subscribe("c", self.quit)
        await proxy.subscribe("c", self.note)
        await proxy.publish("c", "x")
        await asyncio.wait_for(self.noted.wait(), 5)

    @on("task")
    async def spawn(self, record):
        asyncio.get_running_loop().call_later(0.01, sys.exit, 3)
        self.task = asyncio.create_task(self.quit())
        await asyncio.sleep(0.1)

    @on("well")
    async def well(self, record):
        return {"well": True}

    def get_required_proxies(self): return ["redis"]
    def startup(self): self.noted = asyncio.Event()
    async def quit(self, *_): sys.exit(1)
    async def note(self, *_): self.noted.set()

    @http_action("GET", "/plain")
    def plain(self): sys.exit(1)

    @http_action("GET", "/async")
    async def hurried(self): sys.exit(1)

    @http_action("GET", "/stream")
    async def stream(self):
        async def said():
            yield b"1"
            sys.exit(1)
        return StreamingResponse(said())

    @websocket_action("/ws")
    async def talk(self, websocket: WebSocket):
        await websocket.accept()
        sys.exit(1)
"""
EARLY = """
class P(Petal):
    name, version = "early", "1"
    async def async_startup(self): sys.exit("no licence")
"""
MADE = """
class P(Petal):
    name, version = "made", "1"
    def __init__(self): raise SystemExit(2)
"""
LATE = """
class P(Petal):
    name, version = "late", "1"
    async def async_shutdown(self): sys.exit(2)
"""
SCRIPT = """
sys.exit("usage: script FILE")
"""
HEAD = """
import asyncio, sys
from fastapi import WebSocket
from fastapi.responses import StreamingResponse
from petalbus.petals import Petal, http_action, on, websocket_action
from petalbus.petals.heavy import run_heavy
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    codes = {"quitter": QUITTER, "early": EARLY, "made": MADE, "late": LATE, "script": SCRIPT}
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(HEAD + code)
    buses = Buses()
    try:
        paths = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])
        named = ",".join(f"{name}:P" for name in codes)
        settings = ("--set", f"petals_paths={named}", "--set", "petals_restarts=1", "--set", "http_port=0")
        yield buses.up(*settings, PYTHONPATH=paths)
    finally:
        buses.close()


def petals(daemon: Daemon) -> dict[str, Any]:
    told = run_process("petals", "--json", "--data", str(daemon.data)).objects
    return {one["target"].partition(":")[0]: one for one in told}


def settled(daemon: Daemon) -> dict[str, Any]:
    """All petals once those that fail have failed for good."""
    end = time.monotonic() + 20
    while True:
        told = petals(daemon)
        states = {name: told[name]["state"] for name in ("quitter", "late", "early", "made", "script") if name in told}
        if list(states.values()) == ["running", "running", "failed", "failed", "failed"]:
            return told
        assert time.monotonic() < end, told
        time.sleep(0.2)


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_sys_exit_ends_what_called_it_and_nothing_else(daemon: Daemon) -> None:
    """I8: at import, in the constructor, at startup, in handlers, callbacks, threads, tasks, routes and websockets."""
    url = daemon.ready()["http"]
    told = settled(daemon)
    assert "usage: script FILE" in told["script"]["reason"]
    assert "sys.exit('no licence')" in told["early"]["reason"]
    assert "sys.exit(2)" in told["made"]["reason"]
    running = json.loads(Path(daemon.data, "bus.json").read_text())
    async with Bus(running["url"], app="ground") as ground:
        for way in ("async", "heavy"):
            with pytest.raises(ReplyError, match=r"sys\.exit"):
                await ground.request("quitter", way, {}, timeout=10)
        for way in ("channel", "task"):
            await ground.request("quitter", way, {}, timeout=10)
        async with httpx.AsyncClient(trust_env=False, base_url=url) as http:
            for path in ("plain", "async"):
                answer = await http.get(f"/petals/quitter/{path}")
                assert answer.status_code == 500, answer.text
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/petals/quitter/stream")
            async with connect(f"{url.replace('http', 'ws')}/petals/quitter/ws") as socket:
                with pytest.raises(ConnectionClosedError) as closed:
                    await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1011
            assert (await http.get("/health")).json()["status"] == "healthy"
        assert (await ground.request("quitter", "well", {}, timeout=10)).data == {"well": True}
    assert run_process("petals", "disable", "late", "--data", str(daemon.data)).code == 0
    assert petals(daemon)["late"]["state"] == "disabled"
    assert daemon.stop() == 0


async def test_an_import_that_hangs_takes_no_thread_from_anybody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails for good after its time, and forty of them leave the threads that everybody shares alone."""
    monkeypatch.setattr(life, "IMPORT_SECONDS", 3.0)  # forty-one imports at once, and other tests beside them
    for number in range(40):
        place.petal(f"hanging{number}", "import time; time.sleep(8)")
    place.petal("healthy", 'class P(Petal):\n    name = "healthy"')
    await place.start()
    for number in range(40):
        told = await place.until(f"hanging{number}", "failed")
        assert "did not end within 3 s" in told["reason"]
    await place.until("healthy", "running")
    async with asyncio.timeout(1.0):
        await asyncio.to_thread(int)
