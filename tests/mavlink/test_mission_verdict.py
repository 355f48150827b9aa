"""Whether PX4 will fly its mission: what is told is true of this mission, and nothing is told that is not known."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest

from mavlink.ground import until
from mavlink.some_missions import FENCE, FENCE_ITEMS, RALLY, RALLY_ITEMS, mission, onboard
from petalbus.handlers.mavlink.missions.progress import MissionProgress
from petalbus.handlers.mavlink.missions.verdict import Verdict, listen
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame

REASON = ("Mission rejected: First waypoint too far away",)
ID = 7


async def told(ground: Any) -> None:
    """The vehicle tells its progress."""
    await until(lambda: ground.missions.progress.state)


async def test_a_mission_that_will_not_be_flown(open_ground: Callable[..., Any]) -> None:
    """PX4 accepts it, looks only then, and tells that there is no mission: no success without that word."""
    ground, sim = await open_ground(PX4)
    onboard(sim).check_s = 0.4
    await told(ground)
    sent = await ground.missions.upload(mission(4))
    assert (sent.verified, sent.feasible, sent.texts) == ("opaque_id", True, ())
    onboard(sim).feasible = False
    sent = await ground.missions.upload(mission(5))
    assert (sent.verified, sent.feasible, sent.texts) == ("opaque_id", False, REASON)
    onboard(sim).feasible = True
    assert (await ground.missions.upload(mission(6))).feasible is True, "what is told of the one before does not count"
    assert (await ground.missions.upload(RALLY_ITEMS, RALLY)).feasible is None
    assert (await ground.missions.upload(mission(7), verify=False)).feasible is None
    assert (await ground.missions.upload([])).feasible is None


async def test_ardupilot_says_nothing_of_it(open_ground: Callable[..., Any]) -> None:
    ground, _sim = await open_ground(ARDUPILOT)
    assert (await ground.missions.upload(mission(4))).feasible is None


async def test_a_vehicle_without_a_home_has_not_looked(open_ground: Callable[..., Any]) -> None:
    """What it tells is of the mission before, or of none since its boot: that is no word on this one."""
    ground, sim = await open_ground(PX4)
    await told(ground)
    onboard(sim).can_check = False
    assert (await ground.missions.upload(mission(4))).feasible is None, "none since its boot"
    onboard(sim).can_check = True
    assert (await ground.missions.upload(mission(5))).feasible is True
    onboard(sim).can_check = onboard(sim).feasible = False
    assert (await ground.missions.upload(mission(6))).feasible is None, "that of the one before"
    assert ground.missions.progress.state == 2


async def test_a_fence_in_the_way_of_the_mission(open_ground: Callable[..., Any]) -> None:
    """PX4 looks at the mission once more; without one there is nothing to say."""
    ground, sim = await open_ground(PX4)
    await told(ground)
    assert (await ground.missions.upload(FENCE_ITEMS, FENCE)).feasible is None
    assert (await ground.missions.upload(mission(4))).feasible is True
    onboard(sim).feasible = False
    sent = await ground.missions.upload([replace(FENCE_ITEMS[3], seq=0)], FENCE)
    assert (sent.feasible, sent.texts) == (False, REASON)
    onboard(sim).feasible = True
    assert (await ground.missions.upload(FENCE_ITEMS, FENCE)).feasible is True


async def test_a_mission_that_begins_at_a_later_item(open_ground: Callable[..., Any]) -> None:
    """PX4 goes on to tell "no mission" of it, until it flies: that is no refusal. With the reason it is one."""
    ground, sim = await open_ground(PX4)
    await told(ground)
    marked = [replace(item, current=item.seq == 2) for item in mission(5)]
    assert (await ground.missions.upload(marked)).feasible is None
    assert ground.missions.progress.state == 1
    onboard(sim).feasible = False
    marked = [replace(item, current=item.seq == 2) for item in mission(6)]
    assert (await ground.missions.upload(marked)).feasible is False


class Vehicle:
    """What is heard of a vehicle, frame by frame, and what is made of it."""

    def __init__(self) -> None:
        dialect = load_dialect()
        self.calls = Calls(lambda _message, _system: 1, lambda *_: 1, dialect=dialect, system=2, component=140)
        self.progress = MissionProgress(dialect, lambda: 1)
        self._packer = Packer(dialect, system=1, component=1)

    def tells(self, state: int, *, seq: int = 0) -> None:
        self._say(42, struct.pack("<HHBBIII", seq, 4, state, 2, ID, 0, 0))

    def says(self, text: str, severity: int = 2) -> None:
        self._say(253, struct.pack("<B50s", severity, text.encode()))

    def tells_home(self) -> None:
        self._say(242, bytes(52))

    def _say(self, msgid: int, payload: bytes) -> None:
        frame = Frame.from_raw(self._packer.pack_payload(msgid, payload))
        self.calls.on_frames([frame])
        self.progress.on_frame(frame)

    def listen(self) -> AbstractAsyncContextManager[Verdict]:
        nobody: Any = None
        return listen(self.calls, nobody, 1, self.progress, wanted=False)


async def judge(verdict: Verdict, *, ago: float = 0.0) -> bool | None:
    return await verdict.feasible(ID, time.monotonic() - ago, items=4)


async def test_the_reason_came_while_the_upload_was_made_sure_of() -> None:
    """It lies there when the judgement begins: it is told, however much else came, and ends the waiting."""
    vehicle = Vehicle()
    vehicle.tells(2)
    async with vehicle.listen() as verdict:
        vehicle.says("Mission rejected: of the one before")
        verdict.begin()
        began = time.monotonic()
        vehicle.says(REASON[0])
        for _ in range(100):
            vehicle.tells(1)
        assert await judge(verdict, ago=3.0) is False
        assert verdict.texts == REASON
        assert time.monotonic() - began < 0.5, "no home, and not settled: the reason is enough"


async def test_the_reason_ends_the_waiting() -> None:
    """And only that: another warning may come beside the state of the mission before."""
    vehicle = Vehicle()
    vehicle.tells(1)
    async with vehicle.listen() as verdict:
        vehicle.tells_home()
        verdict.begin()
        judging = asyncio.create_task(judge(verdict))
        await asyncio.sleep(0)
        vehicle.says("Preflight Fail: no heading")
        vehicle.tells(1)
        await asyncio.sleep(0.05)
        assert not judging.done()
        vehicle.says("Geofence violation for waypoint 2")
        began = time.monotonic()
        assert await judging is False
        assert verdict.texts == ("Preflight Fail: no heading", "Geofence violation for waypoint 2")
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("home", "state", "seq", "feasible"),
    [
        (True, 2, 0, True),
        (True, 4, 3, True),
        (True, 1, 0, False),
        (True, 1, 1, None),
        (True, 1, 65535, None),
        (True, 2, 65535, None),
        (False, 2, 0, None),
        (False, 1, 0, None),
    ],
)
async def test_what_a_settled_state_means(home: bool, state: int, seq: int, feasible: bool | None) -> None:
    vehicle = Vehicle()
    vehicle.tells(2)
    async with vehicle.listen() as verdict:
        if home:
            vehicle.tells_home()
        vehicle.tells(state, seq=seq)
        assert await verdict.feasible(ID, vehicle.progress.current_at - 2.5, items=4) is feasible
