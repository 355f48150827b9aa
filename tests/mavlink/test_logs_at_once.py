"""Two transfers of one vehicle's logs that are wanted at the same time: one after the other, both right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from mavlink.ground import BOTH
from petalbus.handlers.mavlink.files.logs import LogBusy
from petalbus.handlers.mavlink.sim.autopilot import PX4
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimVehicle


def contents(sim: SimVehicle, place: int) -> bytes:
    return bytes(sim.disk.files[sim.disk.logs[place].path])


def asked_for(ground: Any) -> list[int]:
    """Which logs' data are asked for from now on, in order."""
    ids: list[int] = []
    send = ground.calls._send

    def noted(message: Any, system: int) -> int:
        if message.get_type() == "LOG_REQUEST_DATA" and message.count > 1:  # one byte: PX4 closes another log
            ids.append(message.id)
        return int(send(message, system))

    ground.calls._send = noted
    return ids


@BOTH
async def test_two_downloads_take_turns(open_ground: Callable[..., Any], tmp_path: Path, autopilot: Any) -> None:
    """A vehicle sends one log at a time, and forgets the one when it is asked for the other."""
    ground, sim = await open_ground(autopilot, Failures(loss=0.02, duplicate=0.02), seed=4)
    first = 0 if autopilot is PX4 else 1
    ids = asked_for(ground)
    data, info, listed = await asyncio.gather(
        ground.logs.download(first + 1, timeout=30.0),
        ground.logs.download_to(first, tmp_path / "log", timeout=30.0),
        ground.logs.list_logs(timeout=30.0),
    )
    assert data == contents(sim, 1)
    assert (tmp_path / "log").read_bytes() == contents(sim, 0)
    assert info.size == len(contents(sim, 0))
    assert len(listed) == 3
    assert len([each for each, _ in groupby(ids)]) == 2, "none was asked for in the middle of the other"


async def test_two_downloads_into_one_file(open_ground: Callable[..., Any], tmp_path: Path) -> None:
    ground, sim = await open_ground(PX4)
    path = tmp_path / "log"
    await asyncio.gather(*(ground.logs.download_to(1, path, timeout=30.0) for _ in range(3)))
    assert path.read_bytes() == contents(sim, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


async def test_who_has_no_time_to_wait_is_told_and_disturbs_nobody(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(PX4)
    ids = asked_for(ground)
    task = asyncio.create_task(ground.logs.download(2, timeout=30.0))
    while not ids:
        await asyncio.sleep(0.005)
    for _ in range(2):
        with pytest.raises(LogBusy, match="did not end within"):
            await ground.logs.download(0, timeout=0.05)
    assert await task == contents(sim, 2)
    assert set(ids) == {2}
