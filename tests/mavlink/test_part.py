"""The MAVLink handler as a part of the daemon: how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import petalbus
from mavlink.peer import ARM_DISARM, Peer
from petalbus import Bus, ReplyError
from petalbus.daemon.config import Settings
from petalbus.daemon.runtime.parts import mavlink_part
from petalbus.daemon.runtime.supervisor import Kept

from support.servers import RealServer, free_port


class Part:
    """The part, running; and a client that commands it."""

    def __init__(self, task: asyncio.Task[None], gcs: Bus, port: int) -> None:
        self.task = task
        self.gcs = gcs
        self.port = port


@pytest.fixture
async def part(server: RealServer, bus_name: str) -> AsyncIterator[Part]:
    port = free_port()

    def connect(app: str) -> Bus:
        return petalbus.connect(server.url, app=app, bus=bus_name)

    run = mavlink_part(connect, Settings(data=Path("unused")), f"udpin:127.0.0.1:{port}")
    kept = Kept("mavlink", run, 0)

    async def keep() -> None:
        await run(kept)

    task = asyncio.create_task(keep(), name="part")
    async with connect("gcs") as gcs, asyncio.timeout(10):
        await kept.is_up.wait()
        yield Part(task, gcs, port)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_i10_a_command_that_waits_for_its_acknowledgement_gets_it_while_the_part_stops(
    part: Part, open_peer: Callable[..., Any]
) -> None:
    """The link closes after the last running command; what comes meanwhile waits for the next start."""
    peer: Peer = await open_peer(remote=("127.0.0.1", part.port))
    peer.position()
    peer.heartbeat()
    asking = asyncio.create_task(part.gcs.request("vehicle", "command", {"command": "arm"}), name="arm")
    await peer.until(lambda: peer.commands(ARM_DISARM))
    part.task.cancel()
    await asyncio.sleep(0.05)
    assert not part.task.done(), "it waits for the vehicle"
    await part.gcs.send("vehicle", "command", {"command": "disarm"}, id="later")
    peer.ack(ARM_DISARM)
    peer.heartbeat(armed=True)
    assert (await asking).data["status"] == "success"
    await asyncio.wait([part.task], timeout=5)
    assert part.task.cancelled()
    assert await part.gcs.status("later") is petalbus.Status.PENDING


async def test_i10_a_vehicle_that_never_answers_holds_the_stop_up_for_the_grace_only(
    part: Part, open_peer: Callable[..., Any]
) -> None:
    peer: Peer = await open_peer(remote=("127.0.0.1", part.port))
    peer.position()
    peer.heartbeat()
    asking = asyncio.create_task(part.gcs.request("vehicle", "command", {"command": "arm"}, timeout=8), name="arm")
    await peer.until(lambda: peer.commands(ARM_DISARM))
    part.task.cancel()
    await asyncio.wait([part.task], timeout=8)
    assert part.task.cancelled()
    with pytest.raises(ReplyError):
        await asking
