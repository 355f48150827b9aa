"""File servers that do one thing after the other, or forget a file in the midst of a burst: ArduPilot's and PX4's."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from mavlink.ground import Flying, ftp_rig
from petalbus.handlers.mavlink.files.ftp import FtpBusy
from petalbus.handlers.mavlink.files.ftp_wire import FTP_ID, FtpNak, FtpPacket, FtpRefused, Opcode, pack_packet
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4

SIZE = 119_500
"""500 packets."""


def slowly(vehicle: Flying, packets_per_s: float) -> bytes:
    """A file, and a line that carries so many packets of it."""
    vehicle.server._per_tick = packets_per_s / 50
    return vehicle.put("/a", random.Random(3).randbytes(SIZE))


def cut(vehicle: Flying, *, after: int, seconds: float) -> list[FtpPacket]:
    """Nothing of what the server sends arrives for a while, once it has sent so many packets; what was sent."""
    sent: list[FtpPacket] = []
    back = float("inf")

    def send(packet: FtpPacket, client: tuple[int, int]) -> None:
        nonlocal back
        sent.append(packet)
        if len(sent) == after:
            back = time.monotonic() + seconds
        if len(sent) < after or time.monotonic() >= back:
            vehicle.sim._send_payload(FTP_ID, pack_packet(packet, system=client[0], component=client[1]))

    vehicle.server._send = send  # type: ignore[method-assign]
    return sent


def bursts(sent: list[FtpPacket]) -> int:
    return sum(packet.req_opcode == Opcode.BURST_READ_FILE for packet in sent)


async def test_a_pause_in_a_burst_from_ardupilot_costs_what_was_lost_in_it() -> None:
    """It reads no requests until all of the burst has left: the burst is waited for, and not asked for again."""
    async with ftp_rig(ARDUPILOT, times={"silence": 3.0}) as (ftp, vehicle, _):
        data = slowly(vehicle, 200)
        sent = cut(vehicle, after=60, seconds=1.3)
        assert await ftp.read("/a") == data
        assert bursts(sent) <= 502
        assert vehicle.server.done[Opcode.BURST_READ_FILE] == 1
        assert vehicle.server.sessions == {}


async def test_a_burst_from_ardupilot_that_begins_late_leaves_once() -> None:
    """A slow card: each copy of the request would make it send the whole burst again."""
    async with ftp_rig(ARDUPILOT) as (ftp, vehicle, _):
        data = slowly(vehicle, 500)
        vehicle.server.burst_after_s = 0.7
        sent = cut(vehicle, after=100_000, seconds=0)
        assert await ftp.read("/a") == data
        assert bursts(sent) <= 502
        assert vehicle.server.sessions == {}


async def test_ardupilots_burst_whose_request_or_packets_are_all_lost() -> None:
    """The answer to a single piece tells that nothing is on its way: the burst is asked for anew."""
    async with ftp_rig(ARDUPILOT) as (ftp, vehicle, _):
        data = slowly(vehicle, 1000)
        lost: list[int] = []
        receive = vehicle.server._answer

        def deaf(request: FtpPacket, client: tuple[int, int]) -> None:
            if request.opcode == Opcode.BURST_READ_FILE and len(lost) < 2:
                lost.append(request.seq)
                return
            receive(request, client)

        vehicle.server._answer = deaf  # type: ignore[method-assign]
        assert await ftp.read("/a") == data
        assert len(lost) == 2


async def test_a_cancel_in_a_burst_from_ardupilot_and_what_is_asked_next() -> None:
    """Nobody waits for a long burst to its end; who reads next does, and finds the file closed."""
    async with ftp_rig(ARDUPILOT, times={"silence": 3.0, "close": 0.4}) as (ftp, vehicle, _):
        slowly(vehicle, 125)
        task = asyncio.create_task(ftp.read("/a"))
        while not vehicle.server._bursts:
            await asyncio.sleep(0.01)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 2.0
        assert vehicle.server._bursts, "it is still at it"
        assert await ftp.read(vehicle.log, offset=1_048_000) == vehicle.data[1_048_000:]
        assert vehicle.server.sessions == {}


@pytest.mark.parametrize("newer", [False, True])
async def test_px4_does_not_forget_the_file_in_a_slow_burst(newer: bool) -> None:
    """It closes a file some time after the last request, also while a burst leaves: requests go along."""
    async with ftp_rig(PX4, times={"alive": 0.3}) as (ftp, vehicle, _):
        data = slowly(vehicle, 100)
        vehicle.server.idle_s, vehicle.server.newer = 1.0, newer
        assert await ftp.read("/a") == data
        assert vehicle.server.done[Opcode.OPEN_FILE_RO] == 1
        assert vehicle.server.done[Opcode.BURST_READ_FILE] <= 6
        assert vehicle.server.done.get(Opcode.READ_FILE, 0) == 0


@pytest.mark.parametrize("change", ["remove", "upload"])
@pytest.mark.parametrize("given_up", ["by us", "by the caller"])
async def test_no_change_waits_in_ardupilots_queue_behind_a_cancelled_burst(change: str, given_up: str) -> None:
    """It would be done when the burst has ended, long after it was reported as failed: it is not sent."""
    async with ftp_rig(ARDUPILOT, times={"silence": 1.0, "close": 0.3}) as (ftp, vehicle, _):
        slowly(vehicle, 125)
        old = vehicle.put("/b", b"what was there")
        task = asyncio.create_task(ftp.read("/a"))
        while not vehicle.server._bursts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        work = ftp.remove("/b") if change == "remove" else ftp.upload(b"new", "/b")
        if given_up == "by us":
            with pytest.raises(FtpBusy, match="nothing was sent"):
                await work
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await work
        assert vehicle.server._bursts, "it is still at it"
        while vehicle.server._bursts or vehicle.server._queue:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert bytes(vehicle.files["/b"]) == old
        assert vehicle.server.sessions == {}
        await ftp.remove("/b")
        assert "/b" not in vehicle.files


async def test_parameters_do_not_wait_for_a_burst_that_nobody_wants() -> None:
    """They come as messages; with what is left of the time allowed, which is most of it."""
    async with ftp_rig(ARDUPILOT) as (ftp, vehicle, ground):
        slowly(vehicle, 7)
        task = asyncio.create_task(ftp.read("/a"))
        while not vehicle.server._bursts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        task.cancel()
        began = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        assert time.monotonic() - began < 4.0
        began = time.monotonic()
        assert len(await ground.lister.list_all(timeout=10.0)) == len(vehicle.sim.params.store)
        assert ground.lister.how == "list"
        assert time.monotonic() - began < 6.0


@pytest.mark.parametrize(("newer", "number"), [(False, 9), (False, 2), (False, 0), (True, 9)])
async def test_px4_that_forgot_the_file_is_asked_to_open_it_again(newer: bool, number: int) -> None:
    """Older ones burst from no file then, and tell the errno of that (EBADF), or of whatever failed before."""
    async with ftp_rig(PX4, times={"alive": 60.0}) as (ftp, vehicle, _):
        data = slowly(vehicle, 300)
        vehicle.server.idle_s, vehicle.server.newer = 0.4, newer
        vehicle.server.lost_errno = number
        assert await ftp.read("/a") == data
        assert vehicle.server.done[Opcode.OPEN_FILE_RO] > 2


async def test_px4s_old_complaint_that_something_exists() -> None:
    """Its refusals say FILE_EXISTS after a folder that was there: a lost session and a stale one are seen anyway."""
    async with ftp_rig(PX4, times={"alive": 60.0}) as (ftp, vehicle, ground):
        data = slowly(vehicle, 300)
        vehicle.server.idle_s, vehicle.server.newer = 0.4, True
        with pytest.raises(FtpRefused) as caught:
            await ftp.make_folder("/fs")
        assert caught.value.error == FtpNak.FILE_EXISTS
        assert await ftp.read("/a") == data
        vehicle.server.idle_s = 60.0
        async with ftp._talk() as crashed:
            await crashed.open(Opcode.OPEN_FILE_RO, "/a")
        assert await ground.ftp().read("/a", offset=100_000) == data[100_000:]
        async with ftp._talk() as crashed:
            await crashed.open(Opcode.OPEN_FILE_RO, "/a")
        with pytest.raises(FtpRefused):
            await ftp.make_folder("/fs")
        await ground.ftp().upload(b"new", "/a")
        assert bytes(vehicle.files["/a"]) == b"new"
