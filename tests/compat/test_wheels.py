"""Petals as they are published, unmodified: found, started, answering. They are fetched from the package index."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from cli.conftest import COMMAND, Buses, Daemon, run_process

from support.procs import child_environment

NAMES = ("petal-warehouse", "petal-flight-log")
WHEELS = ("petal-warehouse==0.1.9", "petal-flight-log==0.2.7", "leaf-pymavlink")
"""The last one is what these petals use in place of pymavlink; it comes under the same name."""

SECONDS = 30.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published petals in it, as their installation without dependencies leaves them."""
    folder = tmp_path_factory.mktemp("published")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--target", str(folder), *WHEELS], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"the published petals cannot be fetched here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def daemon(site: Path) -> Iterator[Daemon]:
    """`petalbus up --sim` in an installation that has these petals, and no configuration at all."""
    buses = Buses()
    try:
        environment = child_environment()
        paths = os.pathsep.join([str(site), environment["PYTHONPATH"]])
        # their own warnings are not ours: the daemon runs as it does on a vehicle
        started = buses.up("--sim", PYTHONPATH=paths, PYTHONWARNINGS="default")
        started.ready()
        until = time.monotonic() + SECONDS
        while any(petals(started).get(name, {}).get("state") != "running" for name in NAMES):
            assert time.monotonic() < until, petals(started)
        yield started
    finally:
        buses.close()


def petals(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """What `petalbus petals --json` says, by name."""
    told = run_process("petals", "--json", "--data", str(daemon.data)).objects
    return {one["name"]: one for one in told}


def test_they_are_found_and_run_without_configuration(daemon: Daemon) -> None:
    """Entry points are enough; versions are theirs. What they need and is not there keeps neither from starting."""
    mine = petals(daemon)
    assert mine["petal-warehouse"]["version"] == "0.1.9"
    assert mine["petal-flight-log"]["version"] == "0.2.7"
    assert mine["petal-flight-log"]["entry_point"] == "flight_records"


async def test_the_warehouse_streams_the_vehicles_position(daemon: Daemon) -> None:
    """Ten times a second over its websocket; the height follows the vehicle when it takes off."""
    url = await _http(daemon)
    address = url.replace("http://", "ws://") + "/petals/petal-warehouse/ws/local_position"
    async with asyncio.timeout(60), connect(address) as websocket:
        first = json.loads(await websocket.recv())
        assert set(first) == {"type", "x", "y", "z", "yaw"}
        begun, count = time.monotonic(), 0
        while count < 30:
            ground = json.loads(await websocket.recv())
            count += 1
        rate = count / (time.monotonic() - begun)
        assert 8.0 <= rate <= 12.0
        assert abs(ground["z"]) < 1.0
        takeoff = '{"command": "takeoff", "parameters": {"altitude": 10}}'
        arguments = ("request", "vehicle", "command", takeoff, "--data", str(daemon.data))
        done = await asyncio.to_thread(
            subprocess.run, [*COMMAND, *arguments], capture_output=True, text=True, env=child_environment(), check=False
        )
        assert done.returncode == 0, done.stderr
        while json.loads(await websocket.recv())["z"] < 5.0:
            pass


async def test_the_flight_log_answers_over_redis_and_http(daemon: Daemon) -> None:
    """Its command channel acknowledges, its HTTP routes answer: everything of it that needs no bucket and no cloud."""
    from petalbus.daemon.server.discover import discover
    from petalbus.petals.proxies.redis import RedisProxy

    url = await _http(daemon)
    async with httpx.AsyncClient(base_url=url) as client:
        described = (await client.get("/openapi.json")).json()
    routes = [path for path in described["paths"] if path.startswith("/petals/petal-flight-log/")]
    assert len(routes) > 20
    acknowledged: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def on_ack(channel: str, message: str) -> None:
        acknowledged.put_nowait(json.loads(message))

    running = discover(daemon.data)
    async with RedisProxy(url=running.url, bus=running.bus, app_id="ground") as redis:
        await redis.subscribe("/petal/petal_flight_log/ack", on_ack)
        command = {"message_id": "m1", "command": "leaf-fc-record.write"}  # without a payload: an error, at once
        heard = await redis.publish("/petal/petal_flight_log/cmd", json.dumps(command))
        assert heard >= 1
        async with asyncio.timeout(SECONDS):
            told = await acknowledged.get()
    assert (told["message_id"], told["status"]) == ("m1", "error")


def test_one_of_them_is_restarted_without_touching_the_other(daemon: Daemon) -> None:
    """Stopped, started, running again, as often as one likes."""
    for verb in ("disable", "enable", "reload"):
        done = run_process("petals", verb, "petal-warehouse", "--json", "--data", str(daemon.data), timeout=90)
        assert done.code == 0, done.err
    told = petals(daemon)
    assert told["petal-warehouse"]["state"] == "running"
    assert told["petal-flight-log"]["for_s"] > told["petal-warehouse"]["for_s"]


async def _http(daemon: Daemon) -> str:
    from petalbus.daemon.server.discover import discover

    async with asyncio.timeout(SECONDS):
        while not (url := (await asyncio.to_thread(discover, daemon.data)).http):
            await asyncio.sleep(0.05)
    return url
