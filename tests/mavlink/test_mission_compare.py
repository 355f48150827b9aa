"""What a vehicle may make of an item, and what is another mission, also where only a number differs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.missions.compare import Compared, compare
from petalbus.handlers.mavlink.missions.items import MissionItem

ARDUPILOT, PX4 = Autopilot.ARDUPILOT, Autopilot.PX4
COPTER, PLANE = 2, 1
PLACED: dict[str, Any] = {"x": 470000000, "y": 80000000, "z": 50.0}


def item(command: int, frame: int = 3, **params: float) -> MissionItem:
    """One with a place, but in MAV_FRAME_MISSION."""
    return MissionItem(0, frame, command, **({} if frame == 2 else PLACED), **params)  # type: ignore[arg-type]  # numbers


def compared(want: MissionItem, have: dict[str, Any], autopilot: int, **how: Any) -> Compared:
    """What was sent against what came back."""
    return compare([want], [replace(want, **have)], autopilot=autopilot, **how)


@pytest.mark.parametrize(
    ("autopilot", "want", "have"),
    [
        (ARDUPILOT, item(16, param1=30.0), {"param1": 0.0}),
        (ARDUPILOT, item(177, 2, param1=3.0, param2=2.0), {"frame": 0, "param1": 0.0}),
        (ARDUPILOT, item(177, 2, param1=3.0, param2=2.0), {"frame": 0, "param2": 0.0}),
        (ARDUPILOT, item(178, 2, param1=1.0, param2=5.0), {"frame": 0, "param2": 0.0}),
        (ARDUPILOT, item(18, param1=3.0), {"param1": 0.0}),
        (ARDUPILOT, item(18, param3=60.0), {"param3": 0.0}),
        (ARDUPILOT, item(17, param3=60.0), {"param3": 0.0}),
        (ARDUPILOT, item(115, 2, param1=90.0), {"frame": 0, "param1": 0.0}),
        (ARDUPILOT, item(5003, param1=100.0), {"frame": 0, "z": 0.0, "param1": 99.1}),
        (ARDUPILOT, replace(item(16), frame=2), {"frame": 3}),
        (ARDUPILOT, replace(item(16), frame=2), {"frame": 0, "x": 471000000}),
        (ARDUPILOT, replace(item(16), frame=2), {"frame": 0, "z": 60.0}),
        (ARDUPILOT, item(188), {"frame": 0}),
        (ARDUPILOT, item(36), {"frame": 0}),
        (ARDUPILOT, item(192), {"frame": 0}),
        (PX4, item(177, 2, param1=1500.0, param2=2.0), {"param1": 1501.0}),
        (PX4, item(177, 2, param1=3.0, param2=2.0), {"param1": 0.0}),
        (PX4, item(17, param3=50.0), {"param3": 0.0}),
        (PX4, item(16, param4=90.0), {"param4": math.nan}),
        (PX4, item(16), {"autocontinue": False}),
    ],
)
def test_another_mission(autopilot: int, want: MissionItem, have: dict[str, Any]) -> None:
    """Whether or not the vehicle accepted it."""
    for strictly in (False, True):
        assert compared(want, have, autopilot, vehicle=COPTER, strictly=strictly).different
        assert not compared(want, {}, autopilot, vehicle=COPTER, strictly=strictly).different


@pytest.mark.parametrize(
    ("autopilot", "vehicle", "want", "have"),
    [
        (ARDUPILOT, COPTER, item(16, param1=30.0), {"param1": 0.0}),
        (ARDUPILOT, PLANE, item(16, param2=80.0), {"param2": 0.0}),
        (ARDUPILOT, PLANE, item(85, param1=1.0), {"param1": 0.0}),
        (ARDUPILOT, PLANE, item(85, param3=20.0), {"param3": 0.0}),
        (PX4, COPTER, replace(item(16), z=1000.0), {"z": 1000.9}),
        (ARDUPILOT, COPTER, item(5003, param1=25.5), {"frame": 0, "z": 0.0, "param1": 25.0}),
    ],
)
def test_after_a_doubtful_upload(autopilot: int, vehicle: int, want: MissionItem, have: dict[str, Any]) -> None:
    """What may be an older mission is no success; an accepted one has it as a change, or as another mission."""
    assert compared(want, have, autopilot, vehicle=vehicle, strictly=True).different


@pytest.mark.parametrize(
    ("vehicle", "want", "have"),
    [
        (COPTER, item(16, param1=2.5, param2=5.0, param3=1.0), {"param1": 2.0, "param2": 0.0, "param3": 0.0}),
        (PLANE, item(16, param1=2.0, param2=300.0, param3=9.5), {"param1": 0.0, "param2": 255.0, "param3": 9.0}),
        (COPTER, item(18, param1=0.5), {"param1": 0.0}),
        (COPTER, item(94, param1=1.237), {"param1": 1.23}),
        (COPTER, item(94, param1=1.15), {"param1": 1.15}),
        (COPTER, item(223, 2, param1=1.0, param3=1.237), {"frame": 0, "param3": 1.23}),
        (COPTER, replace(item(16), frame=2), {"frame": 0}),
        (COPTER, replace(item(16), z=1000.0), {"z": 1000.01}),
    ],
)
def test_as_ardupilot_keeps_it(vehicle: int, want: MissionItem, have: dict[str, Any]) -> None:
    """So that a lost acknowledgement is no failure."""
    assert not compared(want, have, ARDUPILOT, vehicle=vehicle, strictly=True).different


def test_what_some_versions_drop_is_a_change_of_an_accepted_mission() -> None:
    for have in ({"param1": 0.0}, {"param3": 0.0}):
        found = compared(item(85, param1=1.0, param3=20.0), have, ARDUPILOT, vehicle=PLANE)
        assert not found.different
        assert found.changed
