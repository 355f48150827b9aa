"""Limits keep nobody else waiting: they count for each vehicle; and a line that is full for a moment."""

from __future__ import annotations

import asyncio
import os
import time
import tty
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mavlink.peer import ARM_DISARM, LAND, Peer, obedient
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.transfer import Item, Limits
from petalbus.handlers.mavlink.requests.replying import SHARED
from petalbus.handlers.mavlink.wire.calls import Operation
from petalbus.handlers.mavlink.wire.dialect import Packer
from petalbus.handlers.mavlink.wire.framing import Frame, Framer
from petalbus.handlers.mavlink.wire.link import Link

from support.mavlink_rig import Rig, rig
from support.servers import RealServer

SILENT = 2
AT_ONCE = 6
PARAM_SET = 23
LATE = {"system": SILENT, "command": 530}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def two_vehicles(vehicle: Rig) -> AsyncIterator[tuple[Peer, Peer]]:
    """Vehicle 1 does what it is told, vehicle 2 answers nothing; both are heard all the time."""
    first = await vehicle.scripted(obedient)
    async with Peer(remote=vehicle.address, system=SILENT) as second:

        async def beat() -> None:
            while True:
                first.heartbeat()
                second.heartbeat()
                await asyncio.sleep(0.5)

        beating = asyncio.create_task(beat())
        await vehicle.handler.fleet.wait_heard(SILENT, 5.0)
        try:
            yield first, second
        finally:
            beating.cancel()


async def test_a_silent_vehicle_keeps_no_other_waiting(server: RealServer, bus_name: str) -> None:
    """S-017: requests are limited for each vehicle by itself, and an order to come down waits for none of them."""
    async with rig(server, bus_name) as vehicle, Bus(server.url, app="gcs", bus=bus_name) as gcs:
        waiting: list[asyncio.Task[Any]] = []

        def ask(number: int, system: int, command: int, **more: Any) -> asyncio.Task[Any]:
            data = {"system": system, "command": command, "timeout": 60.0, "params": more.pop("params", [])}
            task = asyncio.create_task(
                gcs.request("vehicle", "mavlink.command", data, key=f"k{number}", timeout=more.pop("timeout", 60.0))
            )
            waiting.append(task)
            return task

        async with two_vehicles(vehicle) as (first, second):
            for number in range(AT_ONCE + 1):
                ask(number, SILENT, 500 + number)
            await second.until(lambda: len(second.commands()) == AT_ONCE)
            reply = await ask(20, 1, ARM_DISARM, params=[1.0])
            assert reply.data["result"] == "MAV_RESULT_ACCEPTED"
            assert len(first.commands(ARM_DISARM)) == 1
            ask(21, SILENT, ARM_DISARM, params=[0.0])
            ask(22, SILENT, LAND)
            await second.until(lambda: second.commands(ARM_DISARM) and second.commands(LAND))
            assert len(second.commands()) == AT_ONCE + 2  # the seventh still waits

            unit = vehicle.handler.fleet.unit(SILENT)
            under_way = AT_ONCE + 3
            assert unit.users == under_way
            late = asyncio.create_task(gcs.request("vehicle", "mavlink.command", LATE, key="late", timeout=1.0))
            await until(lambda: unit.users == under_way + 1)
            with pytest.raises(BusError):
                await late
            await until(lambda: unit.users == under_way)  # given up at its deadline, and never sent
            assert not second.commands(LATE["command"])

            for number in range(30, 30 + SHARED):
                ask(number, SILENT, 600)
            done, _ = await asyncio.wait(waiting[-SHARED:], timeout=20.0, return_when=asyncio.FIRST_COMPLETED)
            assert {getattr(task.exception(), "error_code", None) for task in done} == {"VEHICLE_BUSY"}
            assert unit.users == SHARED // 2
            assert (await ask(300, 1, 511)).data["result"] == "MAV_RESULT_ACCEPTED"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


class _SlowLine:
    """A vehicle at the end of a serial line that takes 29 bytes every few milliseconds; it only listens."""

    def __init__(self, link: Link, device: int) -> None:
        self.sets: list[Frame] = []
        self._link = link
        self._device = device
        self._framer = Framer(link.dialect.crc_extras)

    async def run(self) -> None:
        packer = Packer(self._link.dialect, system=1, component=1, version=2)
        fields = {"type": 2, "autopilot": 3, "base_mode": 0, "custom_mode": 0, "system_status": 4, "mavlink_version": 3}
        beat = float("-inf")
        while True:
            await asyncio.sleep(0.005)
            if time.monotonic() - beat > 0.5:
                beat = time.monotonic()
                os.write(self._device, packer.pack(self._link.dialect.message("HEARTBEAT", **fields)))
            try:
                data = os.read(self._device, 29)
            except BlockingIOError:
                continue
            self.sets += [frame for frame in self._framer.feed(data) if frame.msgid == PARAM_SET]


async def test_a_full_line_is_no_missing_vehicle() -> None:
    """S-017: what found no room on the line is said again; what did leave is not told as "nothing was sent"."""
    device, port = os.openpty()
    tty.setraw(device)
    tty.setraw(port)
    os.set_blocking(device, False)

    def on_frames(frames: Sequence[Frame], _mono: int) -> None:
        vehicle.on_frames(frames)
        params.on_frames(frames)

    refused = 0

    def send(msgid: int, payload: bytes, system: int) -> int:
        nonlocal refused
        left = link.send_payload(msgid, payload, system=system)
        refused += not left
        return left

    link = Link(f"serial:{os.ttyname(port)}:57600", on_frames=on_frames)
    vehicle = Vehicle(lambda message, system: link.send(message, system=system), dialect=link.dialect)
    params = ParamClient(send, vehicle, system=2, component=140)
    line = _SlowLine(link, device)
    try:
        async with link:
            running = asyncio.create_task(line.run())
            try:
                assert await vehicle.wait_connected(5.0)
                items = [Item(f"PARAM_{number:03d}", value=float(number), kind=9) for number in range(256)]
                done = await params.write(items, limits=Limits(window=256, retries=20), timeout=4.0)
                assert refused, "the line was never full"
                assert line.sets
                assert {refusal.code for refusal in done.refusals.values()} == {"NOT_ANSWERED"}
                assert len(done.refusals) == len(items)
            finally:
                running.cancel()
    finally:
        os.close(device)
        os.close(port)


def test_an_operation_of_which_nothing_left_says_so() -> None:
    """S-017: with nobody there it is told at once; after a first frame that left, a lost one is only lost."""
    operation = Operation(1)
    with pytest.raises(NotConnected):
        operation.note(0, "LOG_REQUEST_LIST")
    operation.note(1, "LOG_REQUEST_LIST")
    operation.note(0, "LOG_REQUEST_DATA")
