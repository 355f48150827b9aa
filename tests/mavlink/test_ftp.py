"""Files over MAVLink FTP against the simulated vehicle, with PX4's and ArduPilot's ways, on good and bad wires."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from mavlink.ground import ftp_rig
from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.files.ftp import FtpBusy, FtpTooLarge
from petalbus.handlers.mavlink.files.ftp_wire import Entry, FtpNak, FtpPathInvalid, FtpRefused, Opcode, file_crc
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.sim.ftp import _Session

TOP = {"px4": [Entry("fs", None)], "ardupilot": [Entry("@SYS", None), Entry("APM", None)]}
BOTH = pytest.mark.parametrize("name", ["px4", "ardupilot"])
RANDOM = random.Random(7)


def some(size: int) -> bytes:
    return RANDOM.randbytes(size)


class TestGoodWire:
    @BOTH
    async def test_folders_and_files(self, name: str) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            top = await ftp.list_folder("/")
            assert top == TOP[name]
            folder = vehicle.log.rpartition("/")[0]
            known = await ftp.list_folder(folder)
            assert known[-1] == Entry(vehicle.log.rpartition("/")[2], len(vehicle.data))
            await ftp.make_folder("/new")
            assert await ftp.list_folder("/new") == []
            await ftp.upload(b"hello", "/new/one.txt")
            await ftp.rename("/new/one.txt", "/new/two.txt")
            assert await ftp.list_folder("/new") == [Entry("two.txt", 5)]
            with pytest.raises(FtpRefused, match=r"remove the folder /new.*(not empty|FAIL_ERRNO)") as caught:
                await ftp.remove_folder("/new")
            assert caught.value.error == FtpNak.FAIL_ERRNO
            assert caught.value.detail["errno"] == caught.value.errno == 39
            await ftp.remove("/new/two.txt")
            await ftp.remove_folder("/new")
            assert await ftp.list_folder("/") == top

    @BOTH
    async def test_a_long_listing_comes_whole(self, name: str) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            vehicle.sim.disk.make_folders("/many")
            for number in range(300):
                vehicle.put(f"/many/file {number:03} ü.bin", b"x" * number)
            assert await ftp.list_folder("/many") == [Entry(f"file {at:03} ü.bin", at) for at in range(300)]

    @BOTH
    @pytest.mark.parametrize("size", [0, 1, 238, 239, 240, 478, 34_999, 35_000, 35_001, 100_000])
    async def test_every_size_arrives(self, name: str, size: int, tmp_path: Path) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            data = some(size)
            told: list[tuple[int, int]] = []

            async def tell(done: int, total: int) -> None:
                told.append((done, total))

            await ftp.upload(data, "/up.bin", tell=tell)
            assert bytes(vehicle.files["/up.bin"]) == data
            assert await ftp.read("/up.bin", tell=tell) == data
            assert told[-1] == (size, size)
            await ftp.download("/up.bin", tmp_path / "down.bin", tell=tell)
            assert (tmp_path / "down.bin").read_bytes() == data
            assert [path.name for path in tmp_path.iterdir()] == ["down.bin"]
            assert await ftp.crc32("/up.bin") == file_crc(data)
            assert vehicle.server.sessions == {}

    @BOTH
    async def test_an_upload_from_a_file_replaces(self, name: str, tmp_path: Path) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            vehicle.put("/up.bin", b"old" * 50_000)
            (tmp_path / "local").write_bytes(data := some(70_000))
            await ftp.upload(tmp_path / "local", "/up.bin")
            assert bytes(vehicle.files["/up.bin"]) == data

    async def test_from_an_offset(self) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            assert await ftp.read(vehicle.log, offset=1_000_001) == vehicle.data[1_000_001:]
            assert await ftp.read(vehicle.log, offset=len(vehicle.data) + 5) == b""

    async def test_a_megabyte_is_quick_and_leaves_room_for_others(self) -> None:
        """300 kB/s at least, bursts of 35,000 bytes; meanwhile the loop turns."""
        async with ftp_rig() as (ftp, vehicle, _):
            waits: list[float] = []

            async def turn() -> None:
                while True:
                    began = time.monotonic()
                    await asyncio.sleep(0.005)
                    waits.append(time.monotonic() - began)

            turning = asyncio.create_task(turn())
            told: list[float] = []

            async def tell(_done: int, _total: int) -> None:
                told.append(time.monotonic())

            began = time.monotonic()
            assert await ftp.read(vehicle.log, tell=tell) == vehicle.data
            took = time.monotonic() - began
            turning.cancel()
            assert took < 10.0
            assert vehicle.server.done[Opcode.BURST_READ_FILE] >= 30
            assert sorted(waits)[len(waits) // 2] < 0.1
            assert all(later - earlier >= 0.19 for earlier, later in pairwise(told[:-1]))

    async def test_truncate_is_px4s(self) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            vehicle.put("/a", b"123456")
            await ftp.truncate("/a", 3)
            assert bytes(vehicle.files["/a"]) == b"123"
            await ftp.truncate("/a", 5)
            assert bytes(vehicle.files["/a"]) == b"123\0\0"
        async with ftp_rig(AUTOPILOTS["ardupilot"]) as (ftp, vehicle, _):
            vehicle.put("/a", b"123456")
            with pytest.raises(FtpRefused) as caught:
                await ftp.truncate("/a", 3)
            assert caught.value.error == FtpNak.UNKNOWN_COMMAND

    @BOTH
    async def test_what_is_not_there(self, name: str, tmp_path: Path) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            for operation in (
                lambda: ftp.read("/none"),
                lambda: ftp.download("/none", tmp_path / "x"),
                lambda: ftp.list_folder("/none"),
                lambda: ftp.remove("/none"),
                lambda: ftp.rename("/none", "/some"),
                lambda: ftp.crc32("/none"),
                lambda: ftp.upload(b"x", "/none/file"),
            ):
                with pytest.raises(FtpRefused, match="no such file or folder") as caught:
                    await operation()
                assert caught.value.error == FtpNak.FILE_NOT_FOUND
            with pytest.raises(FtpRefused) as caught:
                await ftp.make_folder("/fs" if name == "px4" else "/APM")
            assert caught.value.error == FtpNak.FILE_EXISTS
            assert not list(tmp_path.iterdir())
            assert vehicle.server.sessions == {}

    async def test_bad_paths_are_not_sent(self, tmp_path: Path) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            for path in ("", "a\0b", "x" * 239, "ü" * 120, "\ud800"):
                for operation in (
                    lambda path=path: ftp.read(path),
                    lambda path=path: ftp.remove(path),
                    lambda path=path: ftp.upload(b"", path),
                    lambda path=path: ftp.rename("/a", path),
                    lambda path=path: ftp.download(path, tmp_path / "x"),
                ):
                    with pytest.raises(FtpPathInvalid):
                        await operation()
            with pytest.raises(FtpPathInvalid, match="together"):
                await ftp.rename("a" * 120, "b" * 120)
            assert not vehicle.server.done
            long = "/" + "x" * 237
            await ftp.upload(b"y", long)
            assert await ftp.read(long) == b"y"

    async def test_generated_files_end_where_they_end(self, tmp_path: Path) -> None:
        """ArduPilot announces a size that such a file does not reach."""
        async with ftp_rig(AUTOPILOTS["ardupilot"]) as (ftp, vehicle, _):
            data = some(5000)
            vehicle.server.extra = lambda path: data if path == "@PARAM/param.pck" else None
            vehicle.server.announce = 1 << 20
            assert await ftp.read("@PARAM/param.pck") == data
            await ftp.download("@PARAM/param.pck", tmp_path / "pck")
            assert (tmp_path / "pck").read_bytes() == data

    async def test_too_large_for_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            monkeypatch.setattr("petalbus.handlers.mavlink.files.ftp.READ_MOST", 500_000)
            with pytest.raises(FtpTooLarge, match="1048576 bytes"):
                await ftp.read(vehicle.log)
            assert vehicle.server.sessions == {}

    async def test_nobody_there(self) -> None:
        async with ftp_rig() as (_, vehicle, ground):
            ground.vehicle.state = None
            with pytest.raises(NotConnected):
                await ground.ftp().list_folder("/")
            assert not vehicle.server.done


class TestBadWire:
    @BOTH
    @pytest.mark.parametrize(("loss", "size"), [(0.1, 150_000), (0.3, 60_000)])
    async def test_loss_and_repetition_harm_nothing(self, name: str, loss: float, size: int, tmp_path: Path) -> None:
        """Everything is done once, whatever is lost and repeated on the way, each way."""
        data = some(size)
        async with ftp_rig(AUTOPILOTS[name], loss=loss, duplicate=0.1) as (ftp, _, _):
            await ftp.make_folder("/x")
            for round_ in range(5):
                await ftp.upload(data[:5000], f"/x/{round_}")
                await ftp.rename(f"/x/{round_}", f"/x/{round_}.moved")
                assert await ftp.crc32(f"/x/{round_}.moved") == file_crc(data[:5000])
            assert await ftp.list_folder("/x") == [Entry(f"{at}.moved", 5000) for at in range(5)]
            for round_ in range(5):
                await ftp.remove(f"/x/{round_}.moved")
            await ftp.remove_folder("/x")
            assert await ftp.list_folder("/") == TOP[name]
            await ftp.upload(data, "/data")
            await ftp.download("/data", tmp_path / "data")
            assert (tmp_path / "data").read_bytes() == data

    async def test_a_slow_wire_is_not_flooded(self) -> None:
        """150 ms each way: what is on its way is not asked for again and again."""
        async with ftp_rig(delay=0.15) as (ftp, vehicle, _):
            data = vehicle.put("/a", some(80_000))
            assert await ftp.read("/a") == data
            assert vehicle.server.done[Opcode.BURST_READ_FILE] <= 6
            assert vehicle.server.done.get(Opcode.READ_FILE, 0) == 0

    async def test_a_vehicle_without_bursts_is_read_piece_by_piece(self) -> None:
        async with ftp_rig(loss=0.1) as (ftp, vehicle, _):
            vehicle.server.without = frozenset((Opcode.BURST_READ_FILE,))
            data = vehicle.put("/a", some(80_000))
            assert await ftp.read("/a") == data

    async def test_a_vehicle_without_checksums_is_believed(self, tmp_path: Path) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            vehicle.server.without = frozenset((Opcode.CALC_FILE_CRC32,))
            data = vehicle.put("/a", some(1000))
            await ftp.download("/a", tmp_path / "a")
            assert (tmp_path / "a").read_bytes() == data


class TestTurns:
    """PX4 has one session, for everybody."""

    @BOTH
    async def test_callers_wait_in_order(self, name: str) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (ftp, vehicle, _):
            datas = {f"/{at}": vehicle.put(f"/{at}", some(20_000 + at)) for at in range(5)}
            done: list[str] = []

            async def read(path: str) -> bytes:
                data = await ftp.read(path)
                done.append(path)
                return data

            got = await asyncio.gather(*map(read, datas))
            assert got == list(datas.values())
            assert done == list(datas)

    async def test_whoever_waits_too_long_is_told(self) -> None:
        async with ftp_rig(times={"turn": 0.2}) as (ftp, vehicle, _):
            first = asyncio.create_task(ftp.read(vehicle.log))
            await asyncio.sleep(0)
            with pytest.raises(FtpBusy, match=r"more than 0\.2 s; nothing was sent"):
                await ftp.list_folder("/")
            assert await first == vehicle.data
            assert await ftp.list_folder("/")

    @BOTH
    async def test_a_session_that_a_crash_left_is_closed(self, name: str) -> None:
        async with ftp_rig(AUTOPILOTS[name]) as (crashed, vehicle, ground):
            async with crashed._talk() as talk:
                await talk.open(Opcode.OPEN_FILE_RO, vehicle.log)
            assert vehicle.server.sessions
            assert await ground.ftp().read(vehicle.log, offset=1_000_000) == vehicle.data[1_000_000:]
            assert vehicle.server.sessions == {}

    async def test_the_session_of_somebody_else_is_left_alone(self) -> None:
        async with ftp_rig() as (ftp, vehicle, _):
            await ftp.read(vehicle.log, offset=1_000_000)
            others = vehicle.server.sessions[0] = _Session((255, 190), vehicle.log, False, 10, time.monotonic())
            with pytest.raises(FtpRefused, match="another ground station") as caught:
                await ftp.read(vehicle.log)
            assert caught.value.error == FtpNak.NO_SESSIONS_AVAILABLE
            assert vehicle.server.sessions == {0: others}

    async def test_a_number_that_somebody_used_last_is_replaced(self) -> None:
        """PX4 takes it for a repetition, and answers with what it said to the other command."""
        async with ftp_rig() as (ftp, vehicle, ground):
            await ftp.list_folder("/")
            last = vehicle.server._last[(0, 0)]
            again = ground.ftp()
            async with again._talk() as talk:
                talk.peer.seq = last.seq - 2
            assert await again.read(vehicle.log, offset=1_040_000) == vehicle.data[1_040_000:]
