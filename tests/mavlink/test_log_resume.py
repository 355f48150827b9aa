"""A log that was cut off: a download goes on only with what surely is the same log's, whatever its time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mavlink.ground import BOTH, stop, until
from petalbus.handlers.mavlink.files.log_pieces import PIECE
from petalbus.handlers.mavlink.sim.autopilot import PX4
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimVehicle

SIZE = 400_003
UNSET = 315_532_800
"""1980: what a clock that was never set may tell for each log."""
DONE = 2000 * PIECE


@pytest.fixture
async def timeless(open_ground: Callable[..., Any]) -> Callable[..., Any]:
    """``ground, sim = await timeless(PX4)``: a vehicle without a clock; ``sim.disk.logs[1]`` has ``SIZE`` bytes."""

    async def open_one(autopilot: Any = PX4, failures: Failures | None = None) -> Any:
        ground, sim = await open_ground(autopilot, *([failures] if failures else []), seed=3)
        for known in sim.disk.logs:
            known.at = 0
        set_contents(sim, random.Random(8).randbytes(SIZE))
        return ground, sim

    return open_one


def set_contents(sim: SimVehicle, data: bytes) -> None:
    sim.disk.files[sim.disk.logs[1].path] = bytearray(data)


def contents(sim: SimVehicle) -> bytes:
    return bytes(sim.disk.files[sim.disk.logs[1].path])


def number(sim: SimVehicle) -> int:
    return 1 if sim.options.autopilot is PX4 else 2


def put_part(path: Path, sim: SimVehicle, data: bytes, at: int = 0) -> None:
    """What an earlier download of a log with this number and size left."""
    note = {"system": 1, "id": number(sim), "size": SIZE, "time_utc": at, "log_size": SIZE}
    path.with_name(path.name + ".part").write_bytes(data)
    path.with_name(path.name + ".part.json").write_text(json.dumps(note))


async def fetch(ground: Any, sim: SimVehicle, path: Path, *, at: int = 0, **settings: Any) -> list[int]:
    """Fetch it; how far it was each time that was told."""
    told: list[int] = []

    async def tell(done: int, total: int) -> None:
        assert total == SIZE
        told.append(done)

    info = await ground.logs.download_to(number(sim), path, tell=tell, timeout=20.0, **settings)
    assert (info.size, info.time_utc) == (SIZE, at)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return told


@BOTH
async def test_a_download_goes_on_where_it_was_cut_off(
    timeless: Callable[..., Any], tmp_path: Path, autopilot: Any
) -> None:
    """What came is not fetched again, also where some of it gets lost."""
    ground, sim = await timeless(autopilot, Failures(loss=0.05, duplicate=0.05))
    path, part = tmp_path / "flight.log", tmp_path / "flight.log.part"
    task = asyncio.create_task(ground.logs.download_to(number(sim), path))
    await until(lambda: part.exists() and part.stat().st_size > 50_000)
    await stop(task)
    there = part.stat().st_size
    assert 50_000 < there < SIZE
    told = await fetch(ground, sim, path)
    assert told[0] >= there // PIECE * PIECE
    assert told == sorted(told)
    assert path.read_bytes() == contents(sim)


@pytest.mark.parametrize("alike", [0, 1000, DONE - 1], ids=["nothing", "the beginning", "all but the last byte"])
async def test_another_log_of_the_same_number_and_size_is_fetched_as_a_whole(
    timeless: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, alike: int
) -> None:
    """Logs of one vehicle may begin alike for kilobytes, with formats and parameters."""
    ground, sim = await timeless()
    path = tmp_path / "flight.log"
    other = bytes(each ^ 0xFF for each in contents(sim)[alike:DONE])
    put_part(path, sim, contents(sim)[:alike] + other)
    told = await fetch(ground, sim, path)
    assert told[0] < DONE
    assert path.read_bytes() == contents(sim)
    assert "it is fetched anew" in caplog.text


@pytest.mark.parametrize("at", [UNSET, 1_760_000_000], ids=["clock not set", "clock set"])
async def test_the_same_time_does_not_make_it_the_same_log(
    timeless: Callable[..., Any], tmp_path: Path, at: int
) -> None:
    """A file is never made of two logs; and what is of the same log is still not fetched again."""
    ground, sim = await timeless()
    sim.disk.logs[1].at = at
    path = tmp_path / "flight.log"
    put_part(path, sim, bytes(each ^ 0xFF for each in contents(sim)[:DONE]), at)
    assert (await fetch(ground, sim, path, at=at))[0] < DONE
    assert path.read_bytes() == contents(sim)
    put_part(path, sim, contents(sim)[:DONE], at)
    assert (await fetch(ground, sim, path, at=at))[0] >= DONE
    assert path.read_bytes() == contents(sim)


@pytest.mark.parametrize("done", [PIECE, 20 * PIECE, 50 * PIECE, DONE, SIZE // PIECE * PIECE, SIZE])
async def test_what_is_there_may_be_little_or_all(timeless: Callable[..., Any], tmp_path: Path, done: int) -> None:
    ground, sim = await timeless()
    path = tmp_path / "flight.log"
    put_part(path, sim, contents(sim)[:done])
    told = await fetch(ground, sim, path)
    assert told[0] >= done // PIECE * PIECE
    assert path.read_bytes() == contents(sim)


async def test_what_is_there_may_be_longer_than_the_log_now_is(timeless: Callable[..., Any], tmp_path: Path) -> None:
    """The vehicle says the same size, and then sends less."""
    ground, sim = await timeless()
    path = tmp_path / "flight.log"
    put_part(path, sim, contents(sim)[:DONE])
    listed = contents(sim)
    task = asyncio.create_task(ground.logs.download_to(number(sim), path, timeout=20.0))
    await until(ground.logs._free.locked)
    set_contents(sim, listed[: DONE // 2])
    info = await task
    assert path.read_bytes() in (listed[: DONE // 2], listed)
    assert info.size == path.stat().st_size


async def test_a_cancel_while_it_is_compared_leaves_no_file_open(timeless: Callable[..., Any], tmp_path: Path) -> None:
    """PX4 would serve it later under the same number; and the wire may lose the request that closes it."""
    ground, sim = await timeless()
    path, server, begun = tmp_path / "flight.log", sim._answers[119], contents(sim)[:DONE]
    sim.disk.logs = sim.disk.logs[1:2]
    note = {"system": 1, "id": 0, "size": SIZE, "time_utc": 0, "log_size": SIZE}
    path.with_name(path.name + ".part").write_bytes(begun)
    path.with_name(path.name + ".part.json").write_text(json.dumps(note))
    server._per_tick = 1
    lost: list[int] = []
    request = server._request

    def deaf(fields: dict[str, Any]) -> None:
        if fields["ofs"] >= SIZE - PIECE and not lost:
            lost.append(fields["ofs"])
            return
        request(fields)

    server._request = deaf
    task = asyncio.create_task(ground.logs.download_to(0, path))
    await until(lambda: server._open is not None and server._offset > PIECE)
    await stop(task)
    await until(lambda: ground.events("log request end"))
    assert lost
    assert server._open is None
