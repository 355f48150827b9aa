"""Recordings for the replay's tests, made by real clients on a real server, and how two buses are compared."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import redis.asyncio

from bus.clients import Clients, until
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.schemas.compact import CompactEntry, CompactForm
from petalbus.schemas.stamps import boot_clock_ns
from petalbus.schemas.vocabulary import Priority

from support.servers import plain_client

Content = dict[str, list[tuple[bytes, dict[bytes, bytes]]]]


async def record_flight(clients: Clients, *, frames: int = 50, pause: float = 0.0) -> None:
    """Commands and replies, telemetry, frames in the compact form, a dead letter, a raw record not adopted yet."""
    vehicle = await clients.open("vehicle")
    gcs = await clients.open("gcs")

    @vehicle.on("command")
    async def handle(record: Any) -> dict[str, Any]:
        return {"status": "success", "command": record.data["command"]}

    await vehicle.listen()
    form = CompactForm("mavlink.rx", "mavlink.", "mavlink", names={"0": "HEARTBEAT"})
    for number in range(frames):
        await vehicle.publish_compact(form, [CompactEntry("0", boot_clock_ns(), bytes([number % 256]) * 20)])
        if number % 10 == 0:
            await gcs.request("vehicle", "command", {"command": f"step {number}"}, id=f"c{number}", priority=3)
            await vehicle.publish("telemetry", "telemetry", {"altitude": number})
        if pause:
            await asyncio.sleep(pause)
    await gcs.send("vehicle", "unknown.type", {}, id="nobody", priority=Priority.LOW)

    async def buried() -> bool:
        return bool(await gcs.call("EXISTS", gcs.keys.dead("vehicle")))

    await until(buried, "the dead letter is there")
    await gcs.call("XADD", gcs.keys.ingest, "*", "id", "raw-1", "type", "note", "source", "x", "data", "{}")


async def content(client: redis.asyncio.Redis, bus: str) -> Content:
    """Every recorded stream of a bus that holds something, whole."""
    keys = Keys(bus)
    found: Content = {}
    async for key in client.scan_iter(f"{keys.prefix}*", _type="stream"):
        name = key.decode()
        if not name.endswith(":control") and (rows := await client.xrange(name)):
            found[name.removeprefix(keys.prefix)] = rows
    return found


async def content_at(url: str, bus: str) -> Content:
    """The same, by address."""
    client = plain_client(url)
    try:
        return await content(client, bus)
    finally:
        await client.aclose()


async def content_of(directory: Path, bus: str) -> Content:
    """The same, of a stopped bus."""
    async with EmbeddedServer(directory) as server:
        return await content_at(server.url, bus)
