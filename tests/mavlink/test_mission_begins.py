"""A new mission begins at its first item, whatever was flown before, or at the one that is marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mavlink.some_missions import FENCE, FENCE_ITEMS, mission, onboard
from petalbus.handlers.mavlink.missions.files import from_wpl, to_wpl
from petalbus.handlers.mavlink.missions.items import begun, items_from_json
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4

JSON = [
    {"command": "NAV_TAKEOFF", "altitude": 9},
    {"command": "NAV_WAYPOINT", "latitude": 47.397743, "longitude": 8.545594, "altitude": 15},
    {"command": "NAV_RETURN_TO_LAUNCH"},
]


async def test_a_mission_after_another_one_was_flown(open_ground: Callable[..., Any]) -> None:
    """PX4 would go on at the number that it is at, and so fly the last item alone: the first one is marked for it."""
    ground, sim = await open_ground(PX4)
    await ground.missions.upload(mission(8))
    onboard(sim).current = 7  # flown to its end
    sent = await ground.missions.upload(mission(5, step=70))
    assert sent.changed == ()
    assert onboard(sim).current == 0
    onboard(sim).current = 3
    await ground.missions.upload(items_from_json(JSON), verify=False)
    assert onboard(sim).current == 0


async def test_a_mission_that_another_station_sends_unmarked(open_ground: Callable[..., Any]) -> None:
    """What the simulated PX4 makes of that: as the real one, it goes on in the middle, and at the last item at most."""
    _ground, sim = await open_ground(PX4)
    lists = onboard(sim).lists
    for before, number, after in ((-1, 4, 0), (2, 4, 2), (7, 4, 3)):
        lists.current = before
        lists.begin(mission(number))
        assert lists.current == after
    lists.begin([])
    assert lists.current == 0


async def test_an_item_that_is_marked(open_ground: Callable[..., Any]) -> None:
    """It wins, and that the mission does not begin at its beginning is told."""
    ground, sim = await open_ground(PX4)
    marked = [replace(item, current=item.seq == 2) for item in mission(5)]
    sent = await ground.missions.upload(marked)
    assert onboard(sim).current == 2
    assert sent.changed == ("item 2 is marked current: the mission begins there, not at item 0",)
    # a list that comes back from a vehicle in flight has its mark where that one was, but not in a file
    onboard(sim).current = 4
    kept = await ground.missions.download()
    assert [item.current for item in kept] == [False, False, False, False, True]
    assert [item.current for item in from_wpl(to_wpl(kept))] == [True, False, False, False, False]


async def test_only_px4s_missions_are_marked(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(ARDUPILOT)
    await ground.missions.upload(mission(5))
    assert onboard(sim).current == -1
    ground, sim = await open_ground(PX4)
    await ground.missions.upload(FENCE_ITEMS, FENCE)
    assert not any(item.current for item in onboard(sim).items[FENCE])
    assert begun([]) == []
