"""Orders to come down wait for nobody, on a real bus: not for their sender's earlier ones, and not for long work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import LAND, Peer
from petalbus.daemon.bus.client import Bus

from support.mavlink_rig import Rig, rig
from support.servers import RealServer


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


def slow_land(peer: Peer, message: Any) -> None:
    """It lands for ever, and obeys everything else."""
    if message.get_type() == "COMMAND_LONG":
        peer.ack(message.command, mavlink.MAV_RESULT_IN_PROGRESS if message.command == LAND else 0)


async def test_an_emergency_stop_does_not_wait_for_the_landing_of_the_same_sender(vehicle: Rig) -> None:
    """I4: both are CRITICAL and of one app; the landing is still under way."""
    await vehicle.scripted(slow_land)
    async with Bus(vehicle.server.url, app="gcs", bus=vehicle.bus_name) as gcs:
        landing = asyncio.create_task(
            gcs.request("vehicle", "emergency_command", {"action": "land_immediately"}, timeout=8), name="landing"
        )
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        answer = await gcs.request("vehicle", "emergency_command", {"action": "emergency_stop"}, timeout=5)
        assert answer.data["status"] == "success"
        assert time.monotonic() - begun < 2.0
        landing.cancel()
        await asyncio.gather(landing, return_exceptions=True)


@pytest.mark.alone
async def test_a_landing_does_not_wait_for_the_takeoff_of_the_same_sender(vehicle: Rig) -> None:
    """An ordinary command, behind one that is still being carried out; and behind more long work than there is room."""

    def slow_takeoff(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command != mavlink.MAV_CMD_NAV_TAKEOFF:
            peer.ack(message.command)

    peer = await vehicle.scripted(slow_takeoff)
    peer.position()
    async with Bus(vehicle.server.url, app="gcs", bus=vehicle.bus_name) as gcs:
        busy = [
            asyncio.create_task(gcs.request("vehicle", "mavlink.ftp.list", {"path": "/"}, timeout=8, key=str(n)))
            for n in range(20)
        ]
        flying = asyncio.create_task(
            gcs.request("vehicle", "command", {"command": "takeoff", "altitude": 5}, timeout=8), name="takeoff"
        )
        await peer.until(lambda: peer.commands(mavlink.MAV_CMD_NAV_TAKEOFF))
        begun = time.monotonic()
        answer = await gcs.request("vehicle", "command", {"command": "land"}, timeout=5)
        assert answer.data["status"] == "success"
        assert time.monotonic() - begun < 0.45, "the takeoff is not answered for half a second"
        for task in (flying, *busy):
            task.cancel()
        await asyncio.gather(flying, *busy, return_exceptions=True)
