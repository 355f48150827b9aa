"""Vehicles keep items in their own ways: what they change is no other mission, and what they do not take is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mavlink.ground import BOTH
from mavlink.some_missions import FENCE, FENCE_ITEMS, MISSION, RALLY, mission, onboard
from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.missions.client import MissionRefused, MissionTimeout
from petalbus.handlers.mavlink.missions.compare import compare
from petalbus.handlers.mavlink.missions.files import from_plan, from_wpl
from petalbus.handlers.mavlink.missions.items import MissionItem, items_from_json
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4

LATITUDE, LONGITUDE = 47.397743, 8.545594
PLACE = {"latitude": LATITUDE, "longitude": LONGITUDE, "altitude": 15}
WPL = "QGC WPL 110\n" + "\n".join(
    "\t".join(map(str, row))
    for row in (
        (0, 1, 0, 16, 0, 0, 0, 0, -35.36, 149.16, 584, 1),
        (1, 0, 3, 22, 0, 0, 0, 0, 0, 0, 20, 1),
        (2, 0, 3, 16, 2.5, 5, 1, 90, -35.361, 149.161, 20, 1),
        (3, 0, 3, 17, 0, 0, -60.7, 0, -35.361, 149.161, 20, 1),
        (4, 0, 3, 18, 3, 0, 347, 2, -35.361, 149.161, 20, 1),
        (5, 0, 3, 19, 10, 0, 60, 7, -35.361, 149.161, 20, 1),
        (6, 0, 3, 93, 5, -1, -1, -1, 0, 0, 0, 1),
        (7, 0, 3, 178, 1, 7.5, -1, 0, 0, 0, 0, 1),
        (8, 0, 3, 92, 1, 0, 0, 0, -35.361, 149.161, 20, 1),
        (9, 0, 3, 21, 0, 0, 0, 0, -35.36, 149.16, 0, 1),
        (10, 0, 3, 20, 0, 0, 0, 0, -35.36, 149.16, 15, 1),
    )
)
"""A text as ground stations write it: everything in one frame."""


async def test_ardupilot_keeps_a_mission_in_its_own_way(open_ground: Callable[..., Any]) -> None:
    """Frames of commands without a place, signs, whole numbers: told as changes, and the mission is accepted."""
    ground, sim = await open_ground(ARDUPILOT)
    sent = await ground.missions.upload(from_wpl(WPL))
    assert sent.verified == "download"
    assert onboard(sim).items[MISSION][10].frame == 0
    assert "item 9: param4 1, not 0" in sent.changed
    assert "item 10: frame 0, not 3" in sent.changed
    assert "item 4: param3 340, not 347" in sent.changed
    assert not any(text.startswith("item 8") for text in sent.changed)


@BOTH
async def test_the_last_acknowledgement_is_lost(open_ground: Callable[..., Any], autopilot: Any) -> None:
    """A mission with a return, in JSON, which says no frames: what the vehicle has then decides, and it has it."""
    ground, sim = await open_ground(autopilot)
    items = items_from_json(
        [
            {"command": "NAV_TAKEOFF", **PLACE},
            {"command": "NAV_LOITER_TIME", "param1": 10, **PLACE},
            {"command": "DO_CHANGE_SPEED", "param1": 1, "param2": 5},
            {"command": "NAV_RETURN_TO_LAUNCH"},
        ]
    )
    vehicle = onboard(sim)
    acknowledge = vehicle._acknowledge
    vehicle._acknowledge = lambda to, kind, result, list_id=0: (  # type: ignore[method-assign]  # it loses these
        acknowledge(to, kind, result, list_id) if result else None
    )
    sent = await ground.missions.upload(items, add_home=True, timeout=3.0)
    assert sent.verified == "download"


@BOTH
async def test_fences_and_rally_points_of_a_plan(open_ground: Callable[..., Any], autopilot: Any) -> None:
    """ArduPilot has no frames and heights in fences, and whole metres in rally points; PX4 one frame in fences."""
    ground, _sim = await open_ground(autopilot)
    plan = from_plan(
        {
            "fileType": "Plan",
            "geoFence": {
                "polygons": [],
                "circles": [{"inclusion": True, "circle": {"center": [47.0, 8.0], "radius": 50}}],
                "breachReturn": [47.0, 8.0, 30],
            },
            "rallyPoints": {"points": [[47.0, 8.0, 35.5]]},
        }
    )
    for _ in range(2):  # PX4's second list is the same one, and fetched
        assert (await ground.missions.upload(plan.fence, FENCE)).verified
        rally = await ground.missions.upload(plan.rally, RALLY)
    assert rally.changed == (("item 0: z 35, not 35.5",) if autopilot is ARDUPILOT else ())
    circle = items_from_json(
        [{"command": "NAV_FENCE_CIRCLE_INCLUSION", "param1": 50, "latitude": 47, "longitude": 8}], FENCE
    )
    assert (await ground.missions.upload(circle, FENCE)).verified


async def test_px4_keeps_angles_of_its_own_and_the_current_item(open_ground: Callable[..., Any]) -> None:
    """The same mission twice: the second one is fetched, -90 is 270, and the current item stays, which is told."""
    ground, sim = await open_ground(PX4)
    items = [replace(item, frame=3, param4=-90.0) for item in mission(4)]
    first = await ground.missions.upload(items)
    assert (first.verified, first.changed) == ("opaque_id", ())
    onboard(sim).current = 3
    second = await ground.missions.upload(items)
    assert second.verified == "download"
    assert second.changed == ("the vehicle had this very mission: its current item stays, which may be the last one",)
    assert onboard(sim).current == 3
    await ground.missions.upload(mission(3))
    assert not (await ground.missions.upload(items)).changed
    assert onboard(sim).current == 0


async def test_px4_wants_commands_without_a_place_in_their_own_frame(open_ground: Callable[..., Any]) -> None:
    ground, _sim = await open_ground(PX4)
    items = items_from_json([{"command": "NAV_RETURN_TO_LAUNCH"}, {"command": "DO_JUMP", "param2": 2}])
    assert [item.frame for item in items] == [2, 2]
    assert (await ground.missions.upload(items)).verified
    with pytest.raises(MissionRefused, match="MAV_MISSION_UNSUPPORTED"):
        await ground.missions.upload([replace(item, frame=3) for item in items])
    with pytest.raises(MissionRefused, match="MAV_MISSION_UNSUPPORTED_FRAME"):
        await ground.missions.upload([MissionItem(0, 10, 16)])


def test_frames_that_are_not_given() -> None:
    """A place in degrees has one; commands that may do without a place have one when it is there."""
    frames = [
        item.frame
        for item in items_from_json(
            [
                {"command": "NAV_WAYPOINT"},
                {"command": "NAV_CONTINUE_AND_CHANGE_ALT", "altitude": 20},
                {"command": "NAV_DELAY", "param1": 3},
                {"command": "DO_SET_ROI"},
                {"command": "DO_SET_ROI", "param1": 3, "x": 470000000, "y": 80000000},
                {"command": "DO_LAND_START", "latitude": 47, "longitude": 8},
                {"command": "DO_DIGICAM_CONTROL", "x": 1},
            ]
        )
    ]
    assert frames == [3, 3, 2, 2, 3, 3, 2]
    params = [0, 0, 0, 0, 0, 0, 0]
    entries = [{"type": "SimpleItem", "command": command, "params": params} for command in (16, 20)]
    assert [item.frame for item in from_plan({"fileType": "Plan", "mission": {"items": entries}}).mission] == [3, 2]


@pytest.mark.parametrize(
    ("want", "have"),
    [
        (MissionItem(0, 3, 21), {"param4": 2.0}),
        (MissionItem(0, 3, 19, param1=10.0), {"param3": -2.0}),
        (MissionItem(0, 3, 16), {"frame": 0}),
        (MissionItem(0, 3, 18, param3=347.0), {"param3": 34.0}),
        (MissionItem(0, 2, 177, param1=3.0), {"param1": 5.0}),
        (MissionItem(0, 3, 5100, z=35.5), {"z": 34.0}),
        (MissionItem(0, 0, 5003, param1=50.0), {"param1": 80.0}),
    ],
)
def test_what_no_vehicle_makes_of_an_item_is_another_one(want: MissionItem, have: dict[str, float]) -> None:
    for autopilot in (Autopilot.ARDUPILOT, Autopilot.PX4, None):
        assert compare([want], [replace(want, **have)], autopilot=autopilot).different  # type: ignore[arg-type]


def test_angles_count_modulo_a_turn() -> None:
    want = MissionItem(0, 3, 16, param4=-90.0)
    for angle, different in ((270.0, False), (-90.0, False), (90.0, True), (math.nan, True)):
        compared = compare([want], [replace(want, param4=angle)], autopilot=Autopilot.PX4)
        assert bool(compared.different) is different
    assert compare([want], [replace(want, param4=270.0)], autopilot=Autopilot.PX4) == ((), ())


# What is there after an upload that failed


@BOTH
@pytest.mark.parametrize("kind", [MISSION, FENCE, RALLY])
async def test_what_the_vehicle_has_after_a_refusal(open_ground: Callable[..., Any], autopilot: Any, kind: Any) -> None:
    """ArduPilot takes missions and rally points item by item; fences, and PX4's lists, as a whole."""
    ground, sim = await open_ground(autopilot)
    old = {
        MISSION: mission(10),
        FENCE: FENCE_ITEMS,
        RALLY: [MissionItem(seq, 3, 5100, x=seq, z=20.0) for seq in range(10)],
    }[kind]
    await ground.missions.upload(old, kind)
    before = list(onboard(sim).items[kind])
    new = [replace(item, x=item.x + 5000) for item in old]
    bad = len(new) - 2
    new[bad] = replace(new[bad], **({"command": 4000} if kind is MISSION else {"frame": 2}))
    with pytest.raises(MissionRefused) as caught:
        await ground.missions.upload(new, kind)
    has = "mixed" if autopilot is ARDUPILOT and kind is not FENCE else "old"
    assert caught.value.detail["vehicle_has"] == has
    assert ("mixed with old ones" in str(caught.value)) is (has == "mixed")
    there = onboard(sim).items[kind]
    assert (there == before) is (has == "old")
    assert there[bad:] == before[bad:]


async def test_too_many_items_change_nothing(open_ground: Callable[..., Any]) -> None:
    ground, _sim = await open_ground(ARDUPILOT)
    with pytest.raises(MissionRefused) as caught:
        await ground.missions.upload([MissionItem(seq, 3, 5100) for seq in range(40)], RALLY)
    assert caught.value.detail["vehicle_has"] == "old"


async def test_silence_at_the_beginning_may_have_shortened_the_list(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(ARDUPILOT)
    onboard(sim)._ask = lambda _upload: None  # type: ignore[method-assign]  # its questions are lost
    with pytest.raises(MissionTimeout) as caught:
        await ground.missions.upload(mission(3), timeout=0.6)
    assert caught.value.detail["vehicle_has"] == "unknown"
