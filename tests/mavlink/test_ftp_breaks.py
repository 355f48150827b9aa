"""File transfers that are cut, cancelled, or meet a vehicle that reboots, vanishes or computes wrongly."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from mavlink.ground import Flying, flying, ftp_rig
from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.ftp_file import PartFile
from petalbus.handlers.mavlink.files.ftp_talk import FtpTimeout
from petalbus.handlers.mavlink.files.ftp_wire import FtpError, FtpRefused, Opcode
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS

BOTH = pytest.mark.parametrize("name", ["px4", "ardupilot"])
RANDOM = random.Random(8)


def some(size: int) -> bytes:
    return RANDOM.randbytes(size)


class TestBreaks:
    @BOTH
    async def test_a_cut_download_goes_on(self, name: str, tmp_path: Path) -> None:
        """The vehicle vanishes in the middle: a clear error in bounded time. Later the rest comes, and only that."""
        local = tmp_path / "log"
        times = {"silence": 1.0, "close": 0.5}
        async with ftp_rig(AUTOPILOTS[name], times=times) as (ftp, vehicle, ground):
            data = vehicle.data
            vanished: list[float] = []

            async def vanish(done: int, _total: int) -> None:
                if done > 300_000 and not vanished:
                    vanished.append(time.monotonic())
                    vehicle.task.cancel()
                    await vehicle.sim.link.transport.close()

            with pytest.raises(FtpTimeout, match=r"\d+ of 1048576 bytes are here") as caught:
                await ftp.download(vehicle.log, local, tell=vanish)
            assert time.monotonic() - vanished[0] < 10.0
            kept = (tmp_path / "log.part").stat().st_size
            assert 300_000 < kept == caught.value.done
            assert caught.value.detail == {"done": kept, "total": 1_048_576}
            assert not local.exists()
            async with flying(ground, AUTOPILOTS[name]) as later:
                told: list[int] = []

                async def tell(done: int, _total: int) -> None:
                    told.append(done)

                await ftp.download(later.log, local, tell=tell)
                assert told[0] >= kept
            assert local.read_bytes() == data
            assert [path.name for path in tmp_path.iterdir()] == ["log"]

    @pytest.mark.parametrize("kind", ["other", "longer", "same end"])
    async def test_what_is_of_another_file_is_not_taken(self, kind: str, tmp_path: Path) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            data = vehicle.put("/a", some(50_000))
            there = {"other": some(10_000), "longer": data + b"x", "same end": some(9_000) + data[9_000:10_000]}[kind]
            (tmp_path / "a.part").write_bytes(there)
            await ftp.download("/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == data

    async def test_a_wrong_checksum_is_an_error(self, tmp_path: Path) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            vehicle.put("/a", some(50_000))
            vehicle.server.lies = frozenset((Opcode.CALC_FILE_CRC32,))
            with pytest.raises(FtpError, match="checksum differs") as caught:
                await ftp.download("/a", tmp_path / "a")
            assert caught.value.code == "FTP_CORRUPT"
            assert not list(tmp_path.iterdir())
            with pytest.raises(FtpError, match="checksum differs"):
                await ftp.upload(b"x", "/b")

    @BOTH
    async def test_a_reboot_in_the_middle(self, name: str) -> None:
        """PX4 then says that the file ends, for it reads a session that is not open any more."""
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            rebooted: list[int] = []

            async def reboot(done: int, _total: int) -> None:
                if done > 200_000 and not rebooted:
                    rebooted.append(done)
                    vehicle.sim._reboot()

            assert await ftp.read(vehicle.log, tell=reboot) == vehicle.data
            assert rebooted
            assert vehicle.server.sessions == {}

    @BOTH
    @pytest.mark.parametrize("upload", [False, True])
    async def test_a_cancelled_transfer_leaves_no_session(self, name: str, upload: bool, tmp_path: Path) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            task = asyncio.create_task(transfer(ftp, vehicle, tmp_path / "log", upload=upload))
            while not vehicle.server.sessions:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert vehicle.server.sessions == {}
            if not upload:
                assert vehicle.data.startswith((tmp_path / "log.part").read_bytes())
            assert await ftp.read(vehicle.log, offset=1_000_000) == vehicle.data[1_000_000:]

    async def test_a_cancel_on_a_dead_wire_ends_soon(self) -> None:
        async with ftp_rig(times={"close": 0.3}) as (ftp, vehicle, _):
            task = asyncio.create_task(ftp.read(vehicle.log))
            while not vehicle.server.sessions:
                await asyncio.sleep(0.005)
            vehicle.task.cancel()
            await vehicle.sim.link.transport.close()
            began = time.monotonic()
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 5.0

    @pytest.mark.parametrize("operation", ["list", "read", "upload"])
    async def test_a_vehicle_without_files_is_given_up(self, operation: str) -> None:
        async with ftp_rig(times={"silence": 0.5, "close": 0.3}) as (ftp, vehicle, _):
            vehicle.sim._answers.pop(110)
            began = time.monotonic()
            with pytest.raises(FtpTimeout, match=r"did not answer for 0\.5 s"):
                await {
                    "list": lambda: ftp.list_folder("/"),
                    "read": lambda: ftp.read("/a"),
                    "upload": lambda: ftp.upload(b"a", "/a"),
                }[operation]()
            assert time.monotonic() - began < 6.0

    async def test_a_full_disk(self) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            vehicle.put("/big", bytes((64 << 20) - vehicle.sim.disk.used - 5000))
            with pytest.raises(FtpRefused, match="No space left") as caught:
                await ftp.upload(some(10_000), "/a")
            assert caught.value.errno == 28
            assert vehicle.server.sessions == {}

    async def test_a_disk_of_ours_that_fails_harms_nothing_that_is_there(self, tmp_path: Path) -> None:
        """What was written is a beginning of the file; a later download goes on from it."""
        async with ftp_rig() as (ftp, vehicle, _):
            writes: list[int] = []
            append = PartFile._append

            def fail_once(self: PartFile, data: bytes) -> None:
                writes.append(len(data))
                if len(writes) == 3:
                    raise OSError(28, "No space left on device")
                append(self, data)

            with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
                patch.setattr(PartFile, "_append", fail_once)
                await ftp.download(vehicle.log, tmp_path / "log")
            assert len(writes) == 3
            kept = (tmp_path / "log.part").read_bytes()
            assert len(kept) == writes[0] + writes[1]
            assert vehicle.data.startswith(kept)
            await ftp.download(vehicle.log, tmp_path / "log")
            assert (tmp_path / "log").read_bytes() == vehicle.data


async def transfer(ftp: FtpClient, vehicle: Flying, local: Path, *, upload: bool) -> None:
    if upload:
        await ftp.upload(vehicle.data, "/up")
    else:
        await ftp.download(vehicle.log, local)
