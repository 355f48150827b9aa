"""Files of the vehicle, for petals: what is armed in the midst of it, and what nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mavlink.peer import Peer
from petalbus.petals.proxies.mavftp import MavLinkFTPProxy
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy, VehicleError

from support.mavlink_rig import Rig, rig
from support.procs import Children
from support.servers import RealServer

LOGS = "fs/microsd/log"


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


async def simulated(vehicle: Rig, children: Children) -> tuple[Any, MavLinkExternalProxy, MavLinkFTPProxy]:
    child = await vehicle.sim(children)
    mavlink = await vehicle.proxy()
    ftp = MavLinkFTPProxy(mavlink)
    await ftp.start()
    return child, mavlink, ftp


async def arm(mavlink: MavLinkExternalProxy) -> None:
    """Arm it, and wait until the proxy knows."""
    await mavlink._ask("command", {"command": "arm"}, timeout=10.0)
    async with asyncio.timeout(10.0):
        while not mavlink.known_armed:
            await asyncio.sleep(0.01)


async def typed(child: Any, mavlink: MavLinkExternalProxy) -> list[str]:
    """What was typed into the vehicle's shell until now."""
    await mavlink.send_shell_command("help", settle_time=0.1)
    lines = []
    async with asyncio.timeout(10.0):
        while '"help"' not in (line := await child.line('"event": ?"shell"')):
            lines.append(line)
    return lines


async def test_armed_in_the_midst_of_deleting(vehicle: Rig, children: Children) -> None:
    """The flight needs its logger: it is started at once, and the rest stays."""
    child, mavlink, ftp = await simulated(vehicle, children)

    async def told(done: int, total: int) -> None:
        assert (done, total) == (1, 3)
        await arm(mavlink)

    summary = await ftp.delete_all_logs(progress_callback=told)
    assert (summary["total"], summary["deleted"], summary["failed"]) == (3, 1, 2)
    assert [one["status"] for one in summary["files"]] == ["deleted", "failed", "failed"]
    assert all("armed" in one["error"] for one in summary["files"][1:])
    lines = await typed(child, mavlink)
    assert [word for line in lines for word in ("logger stop", "rm ", "logger start") if word in line] == [
        "logger stop",
        "rm ",
        "logger start",
    ]


async def test_armed_while_the_logs_are_looked_for(vehicle: Rig, children: Children) -> None:
    """Nothing is typed then."""
    child, mavlink, ftp = await simulated(vehicle, children)
    walk = ftp._walk

    async def walked(*arguments: Any) -> Any:
        found = await walk(*arguments)
        if not mavlink.known_armed:
            await arm(mavlink)
        return found

    ftp._walk = walked  # type: ignore[method-assign]  # that is when it is armed
    with pytest.raises(VehicleError, match="stop the logger: the vehicle is armed"):
        await ftp.delete_all_logs()
    assert not await typed(child, mavlink)


async def test_what_may_be_deleted_while_it_is_armed(vehicle: Rig, children: Children) -> None:
    """Whatever is no log; the logger is left alone, also for those who ask that it is stopped."""
    child, mavlink, ftp = await simulated(vehicle, children)
    await vehicle.handler.fleet.primary.ftp.upload(b"x", "/fs/microsd/a.txt")
    await arm(mavlink)
    await ftp.delete_file("/fs/microsd/a.txt")
    assert await ftp.clear_error_logs("/fs/microsd") == {"total": 0, "deleted": 0, "failed": 0}
    for name in ("a.ulg", "b.BIN", "c.px4log"):
        with pytest.raises(VehicleError, match="armed"):
            await ftp.delete_file(f"{LOGS}/{name}", stop_logger=False)
    lines = await typed(child, mavlink)
    assert len(lines) == 1
    assert "rm /fs/microsd/a.txt" in lines[0]


async def test_what_nobody_waits_for_any_more_is_not_gone_on_with(vehicle: Rig) -> None:
    """The removal that was reported as not answered is not sent again and again behind the caller's back."""
    peer: Peer = await vehicle.scripted()
    mavlink = await vehicle.proxy()
    with pytest.raises(VehicleError) as caught:
        await mavlink._ask("mavlink.ftp.remove", {"path": "/a"}, timeout=-1.5)  # with the margin, and a half
    assert caught.value.error_code == "OUTCOME_UNKNOWN"
    assert peer.of("FILE_TRANSFER_PROTOCOL")
    await asyncio.sleep(1.0)
    number = len(peer.of("FILE_TRANSFER_PROTOCOL"))
    await asyncio.sleep(1.5)
    assert len(peer.of("FILE_TRANSFER_PROTOCOL")) == number
