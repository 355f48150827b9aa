"""Files, logs and the shell of the vehicle, for petals: against both kinds of simulated vehicle."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.sim.disk import Disk
from petalbus.petals.models.mavlink import ULogInfo
from petalbus.petals.proxies.context import ProxyContext
from petalbus.petals.proxies.errors import ProxyError
from petalbus.petals.proxies.mavftp import MavLinkFTPProxy, make
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy, VehicleError

from support.mavlink_rig import Rig, rig
from support.procs import Children
from support.servers import RealServer

KINDS = ["px4", "ardupilot"]
LOGS = "fs/microsd/log"


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


def disk(kind: str) -> Disk:
    """What the simulated vehicle has on its card."""
    return Disk(AUTOPILOTS[kind], seed=1)


async def proxies(vehicle: Rig, children: Children, kind: str = "px4", *more: str) -> Any:
    await vehicle.sim(children, "--autopilot", kind, *more)
    mavlink = await vehicle.proxy()
    ftp = MavLinkFTPProxy(mavlink)
    await ftp.start()
    return mavlink, ftp


class Progress:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[float] = []

    async def __call__(self, done: float) -> None:
        self.told.append(done)


@pytest.mark.parametrize("kind", KINDS)
async def test_logs_are_listed_and_fetched(vehicle: Rig, children: Children, kind: str) -> None:
    """By the log messages: sizes and times, then every byte, into the petal's own buffer too."""
    mavlink, _ = await proxies(vehicle, children, kind)
    card = disk(kind)
    request = mavlink.build_req_msg_log_request(message_id=118)
    entries = await mavlink.get_log_entries(msg_id="118", request_msg=request, timeout=10.0)
    assert sorted(one["size"] for one in entries.values()) == sorted(map(len, card.files.values()))
    assert sorted(one["utc"] for one in entries.values()) == [log.at for log in card.logs]
    log_id, entry = sorted(entries.items())[1]
    wanted = next(bytes(data) for data in card.files.values() if len(data) == entry["size"])
    completed, buffer, progress = threading.Event(), bytearray(b"old"), Progress()
    got = await mavlink.download_log_buffered(
        log_id=log_id, completed_event=completed, size_bytes=entry["size"], buffer=buffer, callback=progress
    )
    assert got == bytes(buffer) == wanted
    assert completed.is_set()
    assert all(0 < done <= len(wanted) for done in progress.told)
    again = threading.Event()
    assert await mavlink.download_log(log_id=log_id, completed_event=again, timeout=30.0) == wanted


async def test_a_log_that_is_cancelled_and_one_that_is_not_there(vehicle: Rig, children: Children) -> None:
    mavlink, _ = await proxies(vehicle, children)
    cancel, completed = threading.Event(), threading.Event()
    cancel.set()
    assert await mavlink.download_log_buffered(log_id=2, completed_event=completed, cancel_event=cancel) == b""
    with pytest.raises(VehicleError, match="77"):
        await mavlink.download_log_buffered(log_id=77, completed_event=completed)
    assert not completed.is_set()


async def test_the_shell(vehicle: Rig, children: Children) -> None:
    mavlink, _ = await proxies(vehicle, children)
    assert "12_00_01.ulg" in await mavlink.send_shell_command("ls /fs/microsd/log/2026-11-01\n")
    await mavlink.start_px4_logging(settle_time=0.1)
    await mavlink.stop_px4_logging(settle_time=0.1)
    path = f"{LOGS}/2026-11-01/12_00_01.ulg"
    assert await mavlink.delete_file_via_shell(path) is True
    assert await mavlink.delete_file_via_shell(path) is False
    with pytest.raises(ValueError, match="cannot be typed"):
        await mavlink.delete_file_via_shell("/a; reboot")


async def test_a_vehicle_without_a_shell(vehicle: Rig, children: Children) -> None:
    mavlink, _ = await proxies(vehicle, children, "ardupilot")
    with pytest.raises(TimeoutError):
        await mavlink.send_shell_command("ls", timeout=0.5)
    assert await mavlink.delete_file_via_shell("/APM/LOGS/x", timeout=0.5) is False


async def test_ulogs_are_listed_with_their_times_and_fetched(vehicle: Rig, children: Children, tmp_path: Path) -> None:
    _, ftp = await proxies(vehicle, children)
    card = disk("px4")
    ulogs = await ftp.list_ulogs()
    assert [type(one) for one in ulogs] == [ULogInfo] * 3
    assert [one.utc for one in ulogs] == sorted((log.at for log in card.logs), reverse=True)
    assert {f"/{one.remote_path}": one.size_bytes for one in ulogs} == {
        path: len(data) for path, data in card.files.items()
    }
    completed, progress = threading.Event(), Progress()
    largest = max(ulogs, key=lambda one: one.size_bytes)
    target = tmp_path / "flight.ulg"
    begun = time.monotonic()
    assert await ftp.download_ulog(largest.remote_path, target, completed, progress) == target
    took = time.monotonic() - begun
    assert target.read_bytes() == bytes(card.files[f"/{largest.remote_path}"])
    assert completed.is_set()
    assert progress.told[-1] == 1.0
    assert progress.told == sorted(progress.told)
    assert largest.size_bytes / took > 20 * 15_000, "twenty times as fast as what it replaces"


async def test_a_download_over_a_bad_wire_and_one_that_is_cancelled(
    vehicle: Rig, children: Children, tmp_path: Path
) -> None:
    _, ftp = await proxies(vehicle, children, "px4", "--loss", "0.1")
    path, completed = f"{LOGS}/2026-11-02/12_00_02.ulg", threading.Event()
    await ftp.download_ulog(path, tmp_path / "a.ulg", completed)
    assert (tmp_path / "a.ulg").read_bytes() == bytes(disk("px4").files[f"/{path}"])
    cancel = threading.Event()
    asyncio.get_running_loop().call_later(0.2, cancel.set)
    with pytest.raises(RuntimeError, match="cancelled"):
        await ftp.download_ulog(f"{LOGS}/2026-11-03/12_00_03.ulg", tmp_path / "b.ulg", completed, cancel_event=cancel)
    assert not (tmp_path / "b.ulg").exists()
    with pytest.raises(VehicleError, match="no such file"):
        await ftp.download_ulog("fs/microsd/none", tmp_path / "c", completed)


async def test_all_logs_are_deleted(vehicle: Rig, children: Children) -> None:
    _, ftp = await proxies(vehicle, children)
    told: list[tuple[int, int]] = []
    summary = await ftp.delete_all_logs(progress_callback=lambda *numbers: told.append(numbers))
    assert (summary["total"], summary["deleted"], summary["failed"]) == (3, 3, 0)
    assert [one["status"] for one in summary["files"]] == ["deleted"] * 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert "Reboot" in summary["note"], "the logger lacks its options now"
    assert await ftp.list_ulogs() == []
    assert await ftp.list_directory() == [], "folders that are empty then go, too"
    assert await ftp.delete_all_logs() == {"total": 0, "deleted": 0, "failed": 0, "files": []}


async def test_no_log_is_deleted_and_no_logger_stopped_while_it_is_armed(vehicle: Rig) -> None:
    """The log of this flight would be lost; other files may go."""
    peer = await vehicle.scripted(armed=True)
    ftp = MavLinkFTPProxy(mavlink := await vehicle.proxy())
    await ftp.start()
    async with asyncio.timeout(10):
        while not mavlink._seen.state.get("armed"):
            await asyncio.sleep(0.02)
    for order in (
        ftp.delete_all_logs(),
        ftp.delete_file(f"{LOGS}/a.ulg", stop_logger=False),
        mavlink.stop_px4_logging(),
    ):
        with pytest.raises(RuntimeError, match="armed"):
            await order
    assert not peer.of("SERIAL_CONTROL")
    assert not peer.of("FILE_TRANSFER_PROTOCOL")


@pytest.mark.parametrize("kind", KINDS)
async def test_single_files_and_error_logs(vehicle: Rig, children: Children, kind: str) -> None:
    """By the shell where there is one, else by MAVFTP."""
    _, ftp = await proxies(vehicle, children, kind)
    root = "/fs/microsd" if kind == "px4" else "/APM"
    failed = ["fail_1.log", "fail_2.log"] if kind == "px4" else ["fail_1.log"]  # a shell is waited for, each time
    for name in (*failed, "other.log"):
        await vehicle.handler.fleet.primary.ftp.upload(b"x" * 10, f"{root}/{name}")
    found = await ftp.detect_error_logs(root)
    number = len(failed)
    assert found == {"total": number, "files": [{"path": f"{root}/{name}", "size_bytes": 10} for name in failed]}
    assert await ftp.clear_error_logs(root) == {"total": number, "deleted": number, "failed": 0}
    assert (await ftp.detect_error_logs(root))["total"] == 0
    assert "other.log" in await ftp.list_directory(root)
    await ftp.delete_file(f"{root}/other.log", stop_logger=kind == "px4")
    assert "other.log" not in await ftp.list_directory(root)
    with pytest.raises(RuntimeError, match=r"other\.log"):
        await ftp.delete_file(f"{root}/other.log", stop_logger=False)


async def test_without_a_vehicle_it_is_not_ready_and_says_so(vehicle: Rig, tmp_path: Path) -> None:
    ftp = MavLinkFTPProxy(await vehicle.proxy(ready=False))
    await ftp.start()
    assert not ftp.is_ready
    with pytest.raises(RuntimeError, match="could not be established"):
        await ftp.list_ulogs(connection_timeout=0.1)
    await vehicle.scripted()
    assert await ftp.wait_until_ready(10)
    await ftp.stop()
    assert not ftp.is_ready


def test_it_goes_through_the_vehicles_proxy(tmp_path: Path) -> None:
    context = ProxyContext(url="", bus="b", app="a", data=tmp_path, settings=None)
    with pytest.raises(ProxyError, match="ext_mavlink"):
        make(context)
    vehicle = MavLinkExternalProxy()
    context = ProxyContext(url="", bus="b", app="a", data=tmp_path, settings=None, others={"ext_mavlink": vehicle})
    assert make(context).mavlink_proxy is vehicle
