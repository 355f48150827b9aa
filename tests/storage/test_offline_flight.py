"""A vehicle starts without a link, flies, loses power, flies again, and gets a link days later."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import petalbus
from bucket.wire import Wire
from database.http_end import CloudService, HttpEnd
from mavlink.independent import free_port
from petalbus.handlers.database import words

from support.procs import Child, Children, child_environment
from support.s3_world import KEYS, RealS3
from support.servers import kill_leftovers

SIM = "petalbus.handlers.mavlink.sim"
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
MACHINE, TABLE = "m1", "flight-logs"
LOGS_ON_THE_CARD = 3
"""What the simulated vehicle has from before."""


class SessionTokens(HttpEnd):
    """The session token service, which is away, too, while the link is."""

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """See HttpEnd."""
        return 200, json.dumps({"accessKeyId": KEYS[0], "secretAccessKey": KEYS[1], "sessionToken": "t"}).encode()


def is_high(told: dict[str, Any]) -> bool:
    """The vehicle has left the ground."""
    return bool(told["1/1/GLOBAL_POSITION_INT"]["message"]["relative_alt"] > 500)


def is_disarmed(told: dict[str, Any]) -> bool:
    """Its motors stand still."""
    return not told["1/1/HEARTBEAT"]["message"]["base_mode"] & 128


class Vehicle:
    """A companion computer with its daemon and the petal, a flight controller beside it, and a cloud far away."""

    def __init__(self, children: Children, data: Path, folder: Path, port: int) -> None:
        self.children = children
        self.data = data
        self.folder = folder
        self.port = port
        self.s3 = RealS3(folder)
        self.cloud = CloudService()
        self.tokens = SessionTokens()
        self.wire: Wire | None = None

    async def link(self, *, up: bool) -> None:
        """All that is in the cloud can be reached, or nothing of it."""
        assert self.wire is not None
        for end in (self.wire, self.cloud, self.tokens):
            await (end.open() if up else end.shut())

    async def boot(self) -> Child:
        """The companion computer starts, by itself; returns when the petal runs."""
        assert self.wire is not None
        paths = os.pathsep.join([str(EXAMPLES), child_environment()["PYTHONPATH"]])
        environment = {
            "PYTHONPATH": paths,
            "FLIGHT_RECORDER_FOLDER": str(self.folder / "recorded"),
            "PETALBUS_DATA": str(self.data),
            "PETALBUS_MACHINE_ID": MACHINE,
            "PETALBUS_MAVLINK_ENDPOINT": f"udpin:127.0.0.1:{self.port}",
            "PETALBUS_PETALS_PATHS": "flight_recorder:FlightRecorder",
            "PETALBUS_S3_BUCKET_NAME": RealS3.bucket,
            "PETALBUS_S3_ENDPOINT": self.wire.url,
            "PETALBUS_SESSION_TOKEN_URL": f"{self.tokens.url}/session",
            "PETALBUS_CLOUD_ENDPOINT": self.cloud.url,
            "PETALBUS_ACCESS_TOKEN_URL": f"{self.cloud.url}/token",
            "PETALBUS_ORGANIZATION_FILE": str(self.data / "none.json"),
            "PETALBUS_MQTT_TRANSPORT": "off",
            "PETALBUS_HTTP_ENABLED": "false",
        }
        daemon = await self.children.petalbus("up", "--json", environment=environment)
        await daemon.line('"ready"', timeout=30)
        return daemon

    async def fly(self) -> None:
        """Up, down, and disarmed by itself."""
        async with petalbus.connect(app="pilot", data=self.data) as bus:
            soon = {"params": [{"name": "COM_DISARM_LAND", "value": 0.3}]}
            await bus.request("vehicle", "mavlink.param.set", soon, timeout=20)
            for order, message, done in (
                ({"command": "takeoff", "parameters": {"altitude": 1.0}}, "GLOBAL_POSITION_INT", is_high),
                ({"command": "land"}, "HEARTBEAT", is_disarmed),
            ):
                told = await bus.request("vehicle", "command", order, timeout=30)
                assert told.data["status"] == "success", told.data
                wanted = {"messages": [message]}
                async with asyncio.timeout(40):
                    while True:
                        told = await bus.request("vehicle", "mavlink.latest", wanted, timeout=10)
                        if done(told.data["messages"]):
                            break
                        await asyncio.sleep(0.1)
                    await asyncio.sleep(0.1)

    def recorded(self) -> dict[str, str]:
        """The files that the petal has fetched, and their digests."""
        found = sorted((self.folder / "recorded").glob("*.ulg"))
        return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in found}

    async def until_recorded(self, count: int) -> None:
        """Wait for the petal."""
        async with asyncio.timeout(40):
            while len(await asyncio.to_thread(self.recorded)) < count:
                await asyncio.sleep(0.1)

    async def waiting(self) -> tuple[int, int]:
        """Uploads, and rows, that are not in the cloud yet, as the bus tells."""
        async with petalbus.connect(app="looker", data=self.data) as bus:
            uploads = (await bus.request("bucket", "bucket.uploads", {}, timeout=20)).data["uploads"]
        where = {"PETALBUS_DATA": str(self.data)}
        command = await self.children.petalbus("sync", "status", "--json", environment=where)
        assert await command.wait(timeout=30) == 0, command.errors
        return len(uploads), sum(one["waiting"] for one in json.loads(command.output[0])["waiting"])

    def stored(self) -> dict[str, str]:
        """What the store has below this machine, name and digest."""
        found = (self.s3.files / MACHINE / "flight-logs").glob("*")
        return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in found}


@pytest.fixture
async def vehicle(children: Children, data_dir: Path, tmp_path: Path) -> AsyncIterator[Vehicle]:
    (tmp_path / "recorded").mkdir()
    made = Vehicle(children, data_dir, tmp_path, free_port())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(made.s3)
        made.wire = await stack.enter_async_context(Wire(made.s3.url))
        await stack.enter_async_context(made.cloud)
        await stack.enter_async_context(made.tokens)
        await made.link(up=False)
        yield made
        await asyncio.to_thread(kill_leftovers, data_dir)


async def test_everything_reaches_the_cloud_with_nobody_touching_it(vehicle: Vehicle) -> None:
    """S-054, S-055, S-062, S-065: offline from its start, with a power cut between two flights; then a link comes."""
    await vehicle.children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{vehicle.port}", "--autopilot", "px4")
    await vehicle.boot()
    await vehicle.fly()
    await vehicle.until_recorded(LOGS_ON_THE_CARD + 1)
    await asyncio.to_thread(kill_leftovers, vehicle.data)  # kill -9 of the daemon and of its server
    await vehicle.boot()
    await vehicle.fly()
    await vehicle.until_recorded(LOGS_ON_THE_CARD + 2)
    count = LOGS_ON_THE_CARD + 2
    async with asyncio.timeout(20):
        while await vehicle.waiting() != (count, count):
            await asyncio.sleep(0.1)
    assert vehicle.cloud.tables == {}
    assert await asyncio.to_thread(vehicle.stored) == {}

    await vehicle.link(up=True)
    async with asyncio.timeout(60):
        while await vehicle.waiting() != (0, 0):
            await asyncio.sleep(0.1)
    recorded = await asyncio.to_thread(vehicle.recorded)
    assert len(recorded) == count
    assert await asyncio.to_thread(vehicle.stored) == recorded
    rows: dict[str, dict[str, Any]] = vehicle.cloud.tables[TABLE]
    assert {name: row["sha256"] for name, row in rows.items()} == recorded
    assert {row["s3_key"] for row in rows.values()} == {f"{MACHINE}/flight-logs/{name}" for name in recorded}
    assert sorted(body["filter_value"] for _, body in vehicle.cloud.writes) == sorted(recorded)
    assert vehicle.cloud.requests < 60  # one try at a time while it was away, and then no more than there was to do
    async with petalbus.connect(app="looker", data=vehicle.data) as bus:
        assert await bus.dead.list("bucket") == []
        assert await bus.dead.list(words.APP) == []
