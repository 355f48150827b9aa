"""PX4's ways with lists of logs: silence where there is nothing, no end of a list, and a card that takes its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import BOTH, stop, until
from mavlink.peer import Peer
from petalbus.handlers.mavlink.errors import OrderNotPossible
from petalbus.handlers.mavlink.files.logs import LogInfo, LogTimeout, LogUnknown, LogUnreadable
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.disk import Log
from petalbus.handlers.mavlink.sim.node import SimVehicle


class Card:
    """A PX4 whose receiver is busy for ``takes`` seconds with each list. It sends all logs from the first asked one."""

    def __init__(self, sizes: list[int], *, takes: float = 0.0) -> None:
        self.sizes = sizes
        self.takes = takes
        self.lose: set[int] = set()
        """Ids whose entry is lost, once."""
        self.full = False
        """No room for the list, which is made on the card: nothing is listed."""
        self._free_at = 0.0

    def __call__(self, peer: Peer, message: Any) -> None:
        loop = asyncio.get_running_loop()
        kind = message.get_type()
        if kind == "LOG_REQUEST_LIST":
            self._free_at = max(loop.time(), self._free_at) + self.takes
            loop.call_at(self._free_at, self._list, peer, message.start, message.end)
        elif kind == "TIMESYNC":
            answer = mavlink.MAVLink_timesync_message(int(loop.time() * 1e9), message.ts1)
            loop.call_at(max(loop.time(), self._free_at), peer.send, answer)
        elif kind == "LOG_ERASE":
            self.sizes.clear()
            self.full = False

    def _list(self, peer: Peer, start: int, end: int) -> None:
        number = 0 if self.full else len(self.sizes)
        for log_id in range(start, number):
            if log_id in self.lose:
                self.lose.discard(log_id)
                continue
            last = number if end == 0xFFFF else end
            peer.send(mavlink.MAVLink_log_entry_message(log_id, number, last, 1000, self.sizes[log_id]))


@pytest.fixture
async def vehicle(open_ground: Callable[..., Any], open_peer: Callable[..., Any]) -> Callable[..., Any]:
    async def open_one(card: Card) -> Any:
        ground = await open_ground()
        peer = await open_peer(remote=ground.address, on_message=card)
        peer.heartbeat()
        assert await ground.vehicle.wait_connected(10.0)
        return ground, peer

    return open_one


async def test_nothing_is_answered_by_nothing(vehicle: Callable[..., Any]) -> None:
    """An empty list is known soon, and that a log is not there; erasing is seen to have worked."""
    ground, peer = await vehicle(Card([100, 200, 300]))
    began = time.monotonic()
    with pytest.raises(LogUnknown, match="has no log 7 "):
        await ground.logs.download(7)
    assert await ground.logs.erase_all() == []
    assert len(peer.of("LOG_ERASE")) == 1
    assert await ground.logs.list_logs() == []
    with pytest.raises(LogUnknown, match="it has 0"):
        await ground.logs.download(2)
    assert time.monotonic() - began < 15.0


async def test_a_full_card_is_erased_although_nothing_is_listed(vehicle: Callable[..., Any]) -> None:
    """The list has no room there, so PX4 says nothing: the order leaves once all the same."""
    ground, peer = await vehicle(card := Card([100, 200]))
    card.full = True
    assert await ground.logs.list_logs() == []
    assert await ground.logs.erase_all() == []
    assert len(peer.of("LOG_ERASE")) == 1
    assert not card.sizes


async def test_an_empty_list_is_not_erased_where_the_vehicle_says_so(open_ground: Callable[..., Any]) -> None:
    """ArduPilot answers that it has none."""
    ground, sim = await open_ground(ARDUPILOT)
    sim.disk.logs = []
    assert await ground.logs.erase_all() == []
    assert not ground.events("log erase")


async def test_silence_that_loss_may_explain_is_not_taken_for_an_empty_card(vehicle: Callable[..., Any]) -> None:
    """Four lists are lost, and no question for the time is."""
    ground, _ = await vehicle(card := Card([100]))
    lists = 0

    def lossy(peer: Peer, start: int, end: int) -> None:
        nonlocal lists
        lists += 1
        if lists > 4:
            Card._list(card, peer, start, end)

    card._list = lossy  # type: ignore[method-assign]  # the wire loses what it says
    assert await ground.logs.list_logs() == [LogInfo(0, 100, 1000)]


async def test_a_card_that_takes_too_long_is_not_taken_for_an_empty_one(vehicle: Callable[..., Any]) -> None:
    """Its heartbeats come all the while; and nothing is erased, or said to be, of which nothing is known."""
    ground, peer = await vehicle(Card([10, 20], takes=30.0))
    beating = asyncio.create_task(beat(peer))
    with pytest.raises(LogTimeout):
        await ground.logs.erase_all(timeout=4.5)
    await stop(beating)
    assert not peer.of("LOG_ERASE")
    assert len(peer.of("LOG_REQUEST_LIST")) == 2


async def beat(peer: Peer) -> None:
    while True:
        peer.heartbeat()
        await asyncio.sleep(0.5)


async def test_others_do_not_tell_that_a_log_is_not_there(vehicle: Callable[..., Any]) -> None:
    """The one entry is lost, five others come."""
    card = Card([0] * 8)
    ground, _ = await vehicle(card)
    card.lose.add(2)
    assert await ground.logs.download(2) == b""
    assert not card.lose


async def test_a_slow_card_is_looked_through_once(vehicle: Callable[..., Any]) -> None:
    """It obeys no commands meanwhile; each further request would make it do all of it again."""
    ground, peer = await vehicle(Card([10, 20], takes=3.0))
    assert await ground.logs.list_logs() == [LogInfo(0, 10, 1000), LogInfo(1, 20, 1000)]
    assert len(peer.of("LOG_REQUEST_LIST")) == 1


async def test_a_vehicle_that_fell_silent_is_not_asked_for_lists_all_the_time(vehicle: Callable[..., Any]) -> None:
    ground, peer = await vehicle(Card([100_000]))
    with pytest.raises(LogTimeout, match="0 of 100000"):
        await ground.logs.download(0, timeout=3.0)
    assert len(peer.of("LOG_REQUEST_DATA")) > 4
    assert len(peer.of("LOG_REQUEST_LIST")) <= 2


def renew(sim: SimVehicle, place: int, data: bytes) -> None:
    """Another log under the same id, as after the oldest one was deleted."""
    path = f"/fs/microsd/log/new{place}.ulg"
    sim.disk.files[path] = bytearray(data)
    sim.disk.logs[place] = Log(9, path, 5)


@pytest.mark.parametrize("logs", [1, 3])
@pytest.mark.parametrize("way", ["cancelled", "a part"])
async def test_a_file_that_px4_left_open_is_not_taken_for_the_new_one(
    open_ground: Callable[..., Any], tmp_path: Path, way: str, logs: int
) -> None:
    """A download that was broken off leaves it open, under its id, and another log may have that later."""
    ground, sim = await open_ground(PX4)
    sim.disk.logs = sim.disk.logs[-logs:]
    log_id = logs - 1
    if way == "a part":
        await ground.logs.download(log_id, size=900)
    else:
        task = asyncio.create_task(ground.logs.download_to(log_id, tmp_path / "log"))
        await until(lambda: (tmp_path / "log.part").exists() and (tmp_path / "log.part").stat().st_size)
        await stop(task)
    await until(lambda: ground.events("log request end"))
    new = bytes(range(256)) * 80
    renew(sim, log_id, new)
    assert await ground.logs.download(log_id, timeout=3.0) == new


async def test_a_file_that_somebody_else_left_open(open_ground: Callable[..., Any]) -> None:
    """Another log is asked for first, where there are two."""
    ground, sim = await open_ground(PX4)
    await ground.logs.list_logs()
    ground.calls.send("LOG_REQUEST_LIST", 1, target_system=1, target_component=1, start=0, end=0xFFFF)
    wish = {"id": 1, "ofs": 0, "count": 90}
    ground.calls.send("LOG_REQUEST_DATA", 1, target_system=1, target_component=1, **wish)
    server = sim._answers[119]
    await until(lambda: server._open is not None and not server._sending)
    new = bytes(range(256)) * 80
    renew(sim, 1, new)
    assert await ground.logs.download(1, timeout=3.0) == new


async def test_a_cancel_in_the_last_window_leaves_no_file_open(open_ground: Callable[..., Any], tmp_path: Path) -> None:
    """The end was asked for, and did not come: with one log there is no other one to ask for."""
    ground, sim = await open_ground(PX4)
    sim.disk.logs = sim.disk.logs[-1:]
    sim.disk.files[sim.disk.logs[0].path] = bytearray(bytes((7,)) * 90_000)
    server = sim._answers[119]
    server._per_tick = 10
    task = asyncio.create_task(ground.logs.download_to(0, tmp_path / "log"))
    await until(lambda: (tmp_path / "log.part").exists() and (tmp_path / "log.part").stat().st_size)
    await until(lambda: server._sending and server._offset > 30_000)  # the second window, and last
    await stop(task)
    await until(lambda: ground.events("log request end"))
    assert server._open is None
    new = bytes(range(256)) * 300
    renew(sim, 0, new)
    assert await ground.logs.download(0, timeout=3.0) == new


async def test_a_file_that_was_erased_while_it_was_open_is_no_empty_log(
    open_ground: Callable[..., Any], tmp_path: Path
) -> None:
    """PX4 goes on reading no file under the old id: pieces of 0 bytes of a log that is listed with some."""
    ground, sim = await open_ground(PX4)
    await ground.logs.list_logs()
    ground.calls.send("LOG_REQUEST_LIST", 1, target_system=1, target_component=1, start=0, end=0xFFFF)
    ground.calls.send("LOG_REQUEST_DATA", 1, target_system=1, target_component=1, id=0, ofs=0, count=90)
    server = sim._answers[119]
    await until(lambda: server._open is not None and not server._sending)
    assert await ground.logs.erase_all() == []
    path = "/fs/microsd/log/new.ulg"
    sim.disk.files[path] = bytearray(5000)
    sim.disk.logs = [Log(9, path, 5)]
    with pytest.raises(LogUnreadable, match="listed with 5000 bytes"):
        await ground.logs.download_to(0, tmp_path / "log", timeout=3.0)
    assert not (tmp_path / "log").exists()


@BOTH
async def test_nothing_is_erased_while_it_is_armed(open_ground: Callable[..., Any], autopilot: Any) -> None:
    """PX4 would erase the log that it writes, too."""
    ground, sim = await open_ground(autopilot)
    sim.flight.airframe.arm()
    await until(lambda: ground.vehicle.state.armed)
    with pytest.raises(OrderNotPossible, match="is armed"):
        await ground.logs.erase_all()
    assert not ground.events("log erase")
