"""A wire that sends anything at all, and transfers beside a flight: the handler goes on, on a real bus."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.wire.framing import Frame

from support.mavlink_rig import Rig, rig
from support.procs import Children
from support.servers import RealServer


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


def damaged(rng: random.Random, frames: list[bytes]) -> bytes:
    """A datagram that some enemy, or a bad radio, might send."""
    frame = bytearray(rng.choice(frames))
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 400))
    if kind == 1:
        return bytes(frame[: rng.randrange(1, len(frame))])
    if kind == 2:
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        frame[1] = rng.randrange(256)
    elif kind == 4:
        return bytes(frame) * rng.randrange(2, 5) + rng.randbytes(3)
    else:
        return b"\xfd" * rng.randrange(1, 300) + bytes(frame)
    return bytes(frame)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_anything_at_all_may_come(vehicle: Rig, seed: int) -> None:
    """I8: no crash, no stall: frames between the damage are recorded, and commands are answered."""
    rng = random.Random(seed)
    peer = await vehicle.scripted()
    mav = mavlink.MAVLink(None, srcSystem=1, srcComponent=1)
    frames = [
        mav.heartbeat_encode(2, 12, 1, 0, 3).pack(mav),
        mav.command_ack_encode(400, 0, 0, 0, 2, 140).pack(mav),
        mav.param_value_encode(b"NAME", 1.0, 9, 1, 0).pack(mav),
        mav.file_transfer_protocol_encode(0, 2, 140, [255] * 251).pack(mav),
        mav.mission_count_encode(2, 140, 60000, 0).pack(mav),
        mav.log_data_encode(0, 4_000_000_000, 255, [1] * 90).pack(mav),
        mav.serial_control_encode(10, 1, 0, 0, 255, [7] * 70).pack(mav),
    ]
    for _ in range(40):
        for _ in range(50):
            peer.send_bytes(damaged(rng, frames))
        peer.heartbeat()
        await asyncio.sleep(0.005)
    async with Bus(vehicle.server.url, app="ground", bus=vehicle.bus_name) as bus:
        async with asyncio.timeout(20):
            while True:
                told = (await bus.request("vehicle", "mavlink.status", {}, timeout=5)).data
                if told["waiting"] == 0:
                    break
                await asyncio.sleep(0.05)
        assert told["lost"] == 0
        assert told["vehicle"]["connected"] is True
        received = told["link"]["received"]
        assert received["crc_errors"] > 0
        assert told["published"] >= 40
        answer = await bus.request("vehicle", "command", {"command": "land"}, timeout=5)
        assert answer.data["status"] == "success"


@pytest.mark.parametrize("kind", ["px4", "ardupilot"])
async def test_transfers_disturb_nobody(vehicle: Rig, children: Children, kind: str) -> None:
    """While files, logs and parameters pass, other records have no gap over 100 ms and our heartbeats go on.

    The quietest of three looks counts: this machine has other things to do now and then.
    """
    await vehicle.sim(children, "--autopilot", kind, "--more-params", "400")
    path = max((await _files(vehicle)), key=lambda one: one[1])[0]
    gaps = []
    async with Bus(vehicle.server.url, app="ground", bus=vehicle.bus_name) as bus:
        stream = bus.keys.topic("mavlink.rx")
        for _ in range(3):
            first = (await bus.call("XREVRANGE", stream, "+", "-", "COUNT", 1))[0][0].decode()
            sent = vehicle.handler.link.statistics()["sent"]
            begun = asyncio.get_running_loop().time()
            await asyncio.gather(
                bus.request("vehicle", "mavlink.ftp.get", {"path": path}, timeout=60, key="1"),
                bus.request("vehicle", "mavlink.param.list", {"timeout": 30.0}, timeout=60, key="2"),
                bus.request("vehicle", "mavlink.mission.download", {}, timeout=60, key="3"),
            )
            took = asyncio.get_running_loop().time() - begun
            rows = await bus.call("XRANGE", stream, f"({first}", "+")
            times = [float(fields[3]) / 1e6 for _, fields in rows if Frame.from_raw(fields[5]).msgid == 30]
            gaps.append(max((later - earlier for earlier, later in pairwise(times)), default=0.0))
            assert vehicle.handler.link.statistics()["sent"] - sent >= 4 * took, "five heartbeats a second, at least"
            if gaps[-1] < 100:
                break
    assert min(gaps) < 100, gaps


async def _files(vehicle: Rig) -> list[tuple[str, int]]:
    """The logs' paths and sizes, by walking the card."""
    found: list[tuple[str, int]] = []
    folders = ["/"]
    while folders:
        folder = folders.pop()
        for entry in await vehicle.handler.fleet.primary.ftp.list_folder(folder):
            path = f"{folder.rstrip('/')}/{entry.name}"
            if entry.size is None:
                folders.append(path)
            else:
                found.append((path, entry.size))
    return found


async def test_an_independent_ground_station_reads_the_simulated_vehicle(children: Children) -> None:
    """pymavlink's own connection and MAVFTP at the other end: what we simulate is MAVLink to others as well."""
    from pymavlink import mavftp, mavutil  # slow to import, and only here

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]

    def talk() -> dict[str, Any]:
        connection: Any = mavutil.mavlink_connection(f"udpin:127.0.0.1:{port}", source_system=250)
        try:
            assert connection.wait_heartbeat(timeout=20) is not None
            connection.param_fetch_one("COM_DISARM_LAND")
            value = connection.recv_match(type="PARAM_VALUE", blocking=True, timeout=5)
            connection.mav.mission_count_send(1, 1, 2, 0)
            for _ in range(2):
                asked = connection.recv_match(type=["MISSION_REQUEST", "MISSION_REQUEST_INT"], blocking=True, timeout=5)
                item = (1, 1, asked.seq, 3, 16, 0, 1, 0, 0, 0, 0, 473977000, 85456000, 10, 0)
                connection.mav.mission_item_int_send(*item)
            ack = connection.recv_match(type="MISSION_ACK", blocking=True, timeout=5)
            ftp = mavftp.MAVFTP(connection, target_system=1, target_component=1)
            listing = ftp.cmd_list(["/fs/microsd/log"])
            return {
                "value": value.param_value,
                "mission": ack.type,
                "names": [one.name for one in ftp.list_result],
                "ok": listing,
            }
        finally:
            connection.close()

    talking = asyncio.create_task(asyncio.to_thread(talk), name="pymavlink")
    await children.module("petalbus.handlers.mavlink.sim", "--endpoint", f"udpout:127.0.0.1:{port}")
    told = await asyncio.wait_for(talking, 60)
    assert told["value"] == 2.0
    assert told["mission"] == 0
    assert {"2026-11-01", "2026-11-02", "2026-11-03"} <= set(told["names"])
