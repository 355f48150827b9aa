"""Flight logs: listed, fetched and erased over real UDP, from the simulated vehicle and from hostile peers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import BOTH, stop, until
from mavlink.peer import Peer
from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.files.log_pieces import PIECE, Pace, Window
from petalbus.handlers.mavlink.files.logs import LogBusy, LogClient, LogInfo, LogTimeout, LogTooLarge, LogUnknown
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimVehicle


def contents(sim: SimVehicle, place: int) -> bytes:
    return bytes(sim.disk.files[sim.disk.logs[place].path])


@BOTH
@pytest.mark.parametrize(("loss", "place"), [(0.0, 1), (0.1, 1), (0.3, 0)])
async def test_list_and_download(open_ground: Callable[..., Any], autopilot: Any, loss: float, place: int) -> None:
    ground, sim = await open_ground(autopilot, Failures(loss=loss, duplicate=loss / 2), seed=7)
    logs = await ground.logs.list_logs(timeout=20.0)
    expected = [(len(contents(sim, index)), known.at) for index, known in enumerate(sim.disk.logs)]
    assert [(log.size, log.time_utc) for log in logs] == expected
    first = 0 if autopilot is PX4 else 1
    assert [log.id for log in logs] == [first, first + 1, first + 2]
    told: list[tuple[int, int]] = []

    async def tell(done: int, total: int) -> None:
        told.append((done, total))

    data = await ground.logs.download(logs[place].id, tell=tell, timeout=20.0)
    assert data == contents(sim, place)
    assert told == sorted(told)
    assert told[-1] == (len(data), len(data))


async def test_a_part_of_a_log_and_an_empty_one(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(PX4)
    assert await ground.logs.download(1, size=1001) == contents(sim, 1)[:1001]
    sim.disk.files[sim.disk.logs[0].path] = bytearray()
    assert await ground.logs.download(0) == b""
    sim.disk.files[sim.disk.logs[0].path] = bytearray(bytes(900))
    assert await ground.logs.download(0) == bytes(900), "zeros at a message's end do not travel"


@BOTH
async def test_many_entries_with_loss_and_none_at_all(open_ground: Callable[..., Any], autopilot: Any) -> None:
    ground, sim = await open_ground(autopilot, Failures(loss=0.3, duplicate=0.2), seed=5)
    sim.disk.logs = [sim.disk.logs[0]] * 120
    listed = await ground.logs.list_logs(timeout=30.0)
    first = 0 if autopilot is PX4 else 1
    assert [log.id for log in listed] == list(range(first, first + 120))
    left = await ground.logs.erase_all(timeout=30.0)
    assert left == []
    assert await ground.logs.list_logs(timeout=20.0) == []
    assert ground.events("log erase")
    with pytest.raises(LogUnknown):
        await ground.logs.download(first, timeout=20.0)


@BOTH
async def test_what_is_refused(open_ground: Callable[..., Any], autopilot: Any) -> None:
    ground, _ = await open_ground(autopilot)
    for wrong in (4, 60_000):
        with pytest.raises(LogUnknown, match=f"has no log {wrong}"):
            await ground.logs.download(wrong)
    small = LogClient(ground.calls, ground.vehicle, most_in_memory=19_999)
    with pytest.raises(LogTooLarge, match="20000 bytes"):
        await small.download(0 if autopilot is PX4 else 1)
    assert len(await small.list_logs()) == 3, "the client is free again"


async def test_nobody_is_there(open_ground: Callable[..., Any]) -> None:
    ground = await open_ground()
    with pytest.raises(NotConnected):
        await ground.logs.list_logs()


async def test_cancelled_in_the_middle_the_vehicle_is_told(open_ground: Callable[..., Any]) -> None:
    ground, _ = await open_ground(ARDUPILOT)
    under_way = asyncio.Event()

    async def tell(done: int, total: int) -> None:
        if 0 < done < total:
            under_way.set()

    task = asyncio.create_task(ground.logs.download(3, tell=tell))
    async with asyncio.timeout(20.0):
        await under_way.wait()
    with pytest.raises(LogBusy):
        await ground.logs.list_logs(timeout=0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: ground.events("log request end"))
    assert len(await ground.logs.list_logs()) == 3, "and is free for the next"


async def test_a_vehicle_that_vanishes(open_ground: Callable[..., Any]) -> None:
    ground, _ = await open_ground(PX4)

    async def tell(done: int, total: int) -> None:
        if done > 50_000:
            ground.flying.cancel()

    with pytest.raises(LogTimeout, match=r"of 1048576 came") as caught:
        await ground.logs.download(2, tell=tell, timeout=1.0)
    assert 50_000 < caught.value.detail["done"] < 1_048_576
    with pytest.raises(LogTimeout):
        await ground.logs.list_logs(timeout=0.3)


async def test_a_download_goes_on_where_it_was_cut_off(open_ground: Callable[..., Any], tmp_path: Path) -> None:
    ground, sim = await open_ground(PX4, Failures(loss=0.02), seed=3)
    path = tmp_path / "flight.ulg"

    async def fetch_some() -> int:
        task = asyncio.create_task(ground.logs.download_to(2, path))
        part = tmp_path / "flight.ulg.part"
        before = part.stat().st_size if part.exists() else 0
        await until(lambda: part.exists() and part.stat().st_size > before)
        await stop(task)
        assert not path.exists()
        return part.stat().st_size

    first = await fetch_some()
    sizes: list[int] = []

    async def tell(done: int, total: int) -> None:
        sizes.append(done)

    info = await ground.logs.download_to(2, path, tell=tell)
    assert info.size == 1_048_576
    assert sizes[0] >= first, "what was there was not fetched again"
    assert path.read_bytes() == contents(sim, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["flight.ulg"]


async def test_what_is_there_of_another_log_is_not_used(open_ground: Callable[..., Any], tmp_path: Path) -> None:
    ground, sim = await open_ground(PX4)
    path = tmp_path / "a.ulg"
    (tmp_path / "a.ulg.part").write_bytes(b"x" * 9000)
    for note in ("{", '{"system": 1, "id": 0, "size": 20000, "time_utc": 5}', "[]"):
        (tmp_path / "a.ulg.part.json").write_text(note)
        await ground.logs.download_to(0, path)
        assert path.read_bytes() == contents(sim, 0)
    with pytest.raises(FileNotFoundError):
        await ground.logs.download_to(0, tmp_path / "no" / "folder")


SIZE = 450 + 17
LOG = random.Random(1).randbytes(SIZE)


def entry(peer: Peer, log_id: int = 1, size: int = SIZE, number: int = 1) -> None:
    peer.send(mavlink.MAVLink_log_entry_message(log_id, number, log_id, 1000, size))


def data(peer: Peer, offset: int, part: bytes, *, log_id: int = 1, count: int | None = None) -> None:
    count = len(part) if count is None else count
    peer.send(mavlink.MAVLink_log_data_message(log_id, offset, count, list(part.ljust(90, b"\0"))[:90]))


def hostile(peer: Peer, message: Any) -> None:
    """Answers truly at last, after everything that is wrong."""
    if message.get_type() == "LOG_REQUEST_LIST":
        entry(peer)
    elif message.get_type() == "LOG_REQUEST_DATA":
        data(peer, message.ofs, b"other" * 18, log_id=2)
        data(peer, message.ofs, b"Z" * 90, count=91)
        data(peer, message.ofs, b"Z" * 90, count=255)
        data(peer, SIZE + 100 * PIECE, b"Z" * 90)
        data(peer, 0xFFFFFFFF - 89, b"Z" * 90)
        data(peer, message.ofs + 1, b"Z" * 90)
        peer.send(mavlink.MAVLink_log_data_message(1, message.ofs, 90, [90] * 90), component=77)
        peer.send_bytes(b"\xfd\x60\x00")
        end = min(SIZE, message.ofs + message.count)
        for offset in reversed(range(message.ofs, end, PIECE)):
            data(peer, offset, LOG[offset : min(end, offset + PIECE)])


async def test_hostile_answers_are_ignored(open_ground: Callable[..., Any], open_peer: Callable[..., Any]) -> None:
    ground = await open_ground()
    peer = await open_peer(remote=ground.address, on_message=hostile)
    peer.heartbeat()
    assert await ground.vehicle.wait_connected(10.0)
    assert await ground.logs.download(1, timeout=20.0) == LOG
    await peer.until(lambda: peer.of("LOG_REQUEST_END"))


async def test_a_log_that_ends_earlier_than_announced(
    open_ground: Callable[..., Any], open_peer: Callable[..., Any]
) -> None:
    """The end is believed when it was told twice; what is there is handed over."""

    def shrunk(peer: Peer, message: Any) -> None:
        if message.get_type() == "LOG_REQUEST_LIST":
            entry(peer, size=100_000)
        elif message.get_type() == "LOG_REQUEST_DATA":
            for offset in range(message.ofs, SIZE, PIECE):
                data(peer, offset, LOG[offset : offset + PIECE])

    ground = await open_ground()
    peer = await open_peer(remote=ground.address, on_message=shrunk)
    peer.heartbeat()
    assert await ground.vehicle.wait_connected(10.0)
    assert await ground.logs.download(1, timeout=20.0) == LOG
    asked = [message.ofs for message in peer.of("LOG_REQUEST_DATA")]
    assert set(asked[2:]) == {99_990}, "the piece at the end that was listed: PX4 closes the file with it"


async def test_the_number_of_logs_changes_while_they_are_listed(
    open_ground: Callable[..., Any], open_peer: Callable[..., Any]
) -> None:
    def changing(peer: Peer, message: Any) -> None:
        if message.get_type() != "LOG_REQUEST_LIST":
            return
        if len(peer.of("LOG_REQUEST_LIST")) == 1:
            entry(peer, 1, 10, number=3)
            entry(peer, 2, 20, number=3)
        for log_id in (1, 2):
            entry(peer, log_id, log_id, number=2)

    ground = await open_ground()
    peer = await open_peer(remote=ground.address, on_message=changing)
    peer.heartbeat()
    assert await ground.vehicle.wait_connected(10.0)
    assert await ground.logs.list_logs(timeout=20.0) == [LogInfo(1, 1, 1000), LogInfo(2, 2, 1000)]


@given(
    size=st.integers(1, 4000),
    start=st.integers(0, 50).map(lambda pieces: pieces * PIECE),
    merge=st.integers(0, 30),
    seed=st.integers(0, 1000),
    loss=st.sampled_from([0.0, 0.1, 0.6]),
)
def test_a_window_fills_up_whatever_gets_lost(size: int, start: int, merge: int, seed: int, loss: float) -> None:
    rng = random.Random(seed)
    whole = rng.randbytes(start + size)
    window = Window(start, size)
    rounds = 0
    while not window.complete:
        rounds += 1
        offset, count = wanted = window.gap(merge)
        assert start <= offset < offset + count <= start + size
        assert offset % PIECE == 0
        pieces = list(range(offset, offset + count, PIECE))
        assert pieces[-1] == wanted.last
        for place in rng.sample(pieces, len(pieces)):
            if rng.random() >= loss:
                window.put(place, whole[place : min(offset + count, place + PIECE)], rounds)
    assert bytes(window.data) == whole[start:]
    assert not window.cut


def test_waiting_follows_what_was_seen() -> None:
    pace = Pace()
    pace.asked(10.0)
    assert pace.quiet_at() == pytest.approx(10.5)
    for piece in range(100):
        pace.came(10.05 + piece * 0.001, answers=piece == 0)
    assert pace.trip.smooth == pytest.approx(0.05)
    assert pace.quiet_at() < 10.149 + 0.2
    pace.asked(11.0)
    assert pace.merge() == 50
    for number in range(20):
        pace.asked(12.0 + number)
    assert 31.0 + 0.5 < pace.quiet_at() <= 31.0 + 4.0
