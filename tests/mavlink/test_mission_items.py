"""Mission items: their values, what is refused, and every form that they travel or are kept in."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.mavlink.missions.compare import compare
from petalbus.handlers.mavlink.missions.files import Plan, from_plan, from_wpl, to_plan, to_wpl
from petalbus.handlers.mavlink.missions.items import (
    MOST_ITEMS,
    MissionInvalid,
    MissionItem,
    MissionKind,
    check_items,
    items_from_json,
    with_home,
    without_home,
)
from petalbus.handlers.mavlink.wire.dialect import load_dialect

NAN = math.nan
FLOATS = st.floats(width=32, allow_infinity=False)
LATITUDES, LONGITUDES = st.integers(-900_000_000, 900_000_000), st.integers(-1_800_000_000, 1_800_000_000)


def items(draw: Any, *, current: bool = True) -> list[MissionItem]:
    number = draw(st.integers(0, 8))
    return [
        MissionItem(
            seq,
            draw(st.sampled_from((0, 1, 2, 3, 5, 6, 10, 11))),
            draw(st.sampled_from((16, 20, 21, 22, 93, 178))),
            draw(st.booleans()) if current else False,
            draw(st.booleans()),
            *(draw(FLOATS) for _ in range(4)),
            draw(LATITUDES),
            draw(LONGITUDES),
            draw(FLOATS),
        )
        for seq in range(number)
    ]


@st.composite
def missions(draw: Any) -> list[MissionItem]:
    return items(draw)


@st.composite
def plans(draw: Any) -> Plan:
    fence: list[MissionItem] = []
    for corners in draw(st.lists(st.integers(3, 6), max_size=3)):
        command = draw(st.sampled_from((5001, 5002)))
        for _ in range(corners):
            place = {"x": draw(LATITUDES), "y": draw(LONGITUDES)}
            fence.append(MissionItem(len(fence), 0, command, param1=float(corners), **place))
    for _ in range(draw(st.integers(0, 2))):
        place = {"x": draw(LATITUDES), "y": draw(LONGITUDES)}
        command = draw(st.sampled_from((5003, 5004)))
        fence.append(MissionItem(len(fence), 0, command, param1=draw(st.floats(1, 1e4, width=32)), **place))
    rally = [
        MissionItem(seq, 3, 5100, x=draw(LATITUDES), y=draw(LONGITUDES), z=draw(FLOATS))
        for seq in range(draw(st.integers(0, 3)))
    ]
    mission = items(draw, current=False)
    mission += [MissionItem(len(mission), 2, 177, param1=float(draw(st.integers(0, len(mission)))), param2=3.0)]
    return Plan(mission, fence, rally, home=(47.5, 8.5, 400.0))


@given(missions())
def test_text_form_and_json_and_wire_bring_everything_back(mission: list[MissionItem]) -> None:
    dialect = load_dialect()
    assert from_wpl(to_wpl(mission)) == [replace(item, current=not item.seq) for item in mission]
    assert items_from_json(json.loads(json.dumps([item.to_json() for item in mission], allow_nan=False))) == mission
    for item in mission:
        definition = dialect.definition(dialect.ids["MISSION_ITEM_INT"])
        assert definition is not None
        message = dialect.message("MISSION_ITEM_INT", **item.fields())
        payload = message.pack(dialect.module.MAVLink(None), force_mavlink1=False)[10:-2]
        assert MissionItem.from_fields(definition.unpack(payload, json_safe=False)) == item
        assert MissionItem.from_float_fields(item.float_fields()) == item


@given(plans())
def test_plan_brings_everything_back(plan: Plan) -> None:
    text = json.dumps(to_plan(plan), allow_nan=False)
    assert from_plan(json.loads(text)) == plan


def test_friendly_form() -> None:
    [item] = items_from_json(
        [
            {
                "command": "NAV_WAYPOINT",
                "frame": "GLOBAL",
                "latitude": 47.397743,
                "longitude": -8.5,
                "altitude": 15,
                "param4": None,
            }
        ]
    )
    assert item == MissionItem(0, 0, 16, param4=NAN, x=473977430, y=-85000000, z=15.0)
    assert items_from_json([{"command": "MAV_CMD_NAV_LAND"}])[0].command == 21
    assert item.place == (47.397743, -8.5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"latitude": 91}, "items[0].latitude"),
        ({"latitude": 1, "x": 1}, "items[0].latitude"),
        ({"latitude": 1, "frame": 1}, "items[0].latitude"),
        ({"latitude": "north"}, "items[0].latitude"),
        ({"x": 900_000_001}, "items[0].x"),
        ({"x": 1.5}, "items[0].x"),
        ({"y": 2**31}, "items[0].y"),
        ({"param1": 1e39}, "items[0].param1"),
        ({"param1": math.inf}, "items[0].param1"),
        ({"param2": True}, "items[0].param2"),
        ({"command": "NAV_NOWHERE"}, "items[0].command"),
        ({"command": -1}, "items[0].command"),
        ({"command": 5100}, "items[0].command"),
        ({"frame": 13}, "items[0].frame"),
        ({"seq": 1}, "items[0].seq"),
        ({"current": 2}, "items[0].current"),
        ({"autocontinue": "yes"}, "items[0].autocontinue"),
        ({"speed": 3}, "items[0].speed"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(MissionInvalid) as caught:
        items_from_json([{"command": 16, **change}])
    assert caught.value.field == field
    assert caught.value.detail["allowed"]


def test_lists_that_are_none() -> None:
    for wrong in (3, "items", {"a": 1}, [3], [{}]):
        with pytest.raises(MissionInvalid):
            items_from_json(wrong)
    with pytest.raises(MissionInvalid, match="at most 10000"):
        items_from_json([{"command": 16}] * (MOST_ITEMS + 1))


def test_kinds_have_commands_of_their_own() -> None:
    corners = [MissionItem(seq, 0, 5001, param1=3.0, x=seq) for seq in range(3)]
    check_items(corners, MissionKind.FENCE)
    check_items([MissionItem(0, 3, 5100)], MissionKind.RALLY)
    for wrong, kind in ((corners, MissionKind.RALLY), (corners, MissionKind.MISSION), (corners[:2], MissionKind.FENCE)):
        with pytest.raises(MissionInvalid):
            check_items(wrong, kind)
    for vertices in (2.0, 3.5, NAN):
        with pytest.raises(MissionInvalid, match="vertices"):
            check_items([replace(one, param1=vertices) for one in corners], MissionKind.FENCE)


def test_home_comes_and_goes_with_the_numbers_of_jumps() -> None:
    mission = [MissionItem(0, 3, 16), MissionItem(1, 2, 177, param1=0.0, param2=2.0)]
    raised = with_home(mission)
    assert [item.seq for item in raised] == [0, 1, 2]
    assert raised[2].param1 == 1.0
    assert without_home(raised) == mission


@pytest.mark.parametrize(
    "text",
    [
        "",
        "QGC WPL 120\n",
        "QGC WPL 110\n0 0 3 16 0 0 0 0 1 1 1",
        "QGC WPL 110\n1 0 3 16 0 0 0 0 1 1 1 1",
        "QGC WPL 110\n0 0 3 16 0 0 0 0 91 1 1 1",
        "QGC WPL 110\n0 0 3 16 0 0 0 0 inf 1 1 1",
        "QGC WPL 110\n0 0 3 16 0 0 0 zero 1 1 1 1",
        "QGC WPL 110\nnan 0 3 16 0 0 0 0 1 1 1 1",
    ],
)
def test_text_that_is_no_mission(text: str) -> None:
    with pytest.raises(MissionInvalid, match="line"):
        from_wpl(text)


def test_text_as_others_write_it() -> None:
    text = "\ufeffQGC WPL 110\r\n0\t1\t0\t16\t0.000000\t0\t0\tnan\t-35.36326210\t149.16523710\t584.1\t1\r\n\r\n"
    assert from_wpl(text) == [MissionItem(0, 0, 16, current=True, param4=NAN, x=-353632621, y=1491652371, z=584.1)]


@pytest.mark.parametrize(
    "change",
    [
        {"fileType": "Other"},
        {"mission": []},
        {"mission": {"items": [{"type": "ComplexItem"}]}},
        {"mission": {"items": [{"type": "SimpleItem", "command": 16, "params": [0] * 6}]}},
        {"mission": {"items": [{"type": "SimpleItem", "command": 16, "params": [0, 0, 0, 0, 95, 0, 0]}]}},
        {"mission": {"items": [{"type": "SimpleItem", "command": 177, "frame": 2, "params": [9, 0, 0, 0, 0, 0, 0]}]}},
        {"mission": {"items": 3}},
        {"geoFence": {"polygons": [{"polygon": [[1, 2], [3, 4]]}]}},
        {"geoFence": {"circles": [{"circle": {"center": [1, 200], "radius": 3}}]}},
        {"rallyPoints": {"points": [[1, "x", 3]]}},
    ],
)
def test_json_that_is_no_plan(change: dict[str, Any]) -> None:
    with pytest.raises(MissionInvalid):
        from_plan({"fileType": "Plan", "mission": {"items": []}, **change})


@given(
    st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), lambda one: st.lists(one, max_size=7))
)
def test_nonsense_in_a_plan_is_refused_or_read(part: Any) -> None:
    """Whatever stands there, it is MissionInvalid and nothing else."""
    for data in (
        {"geoFence": {"polygons": [{"polygon": part}], "circles": part, "breachReturn": part}},
        {"rallyPoints": {"points": part}},
        {"mission": {"items": [{"type": "SimpleItem", "command": part, "frame": 3, "params": part}]}},
        {"mission": {"items": [{"type": "SimpleItem", "command": 16, "frame": part, "params": [0] * 7}]}},
        {"mission": {"items": [{"type": "SimpleItem", "command": 16, "doJumpId": part, "params": [0] * 7}]}},
        {"mission": {"plannedHomePosition": part}},
    ):
        with suppress(MissionInvalid):
            from_plan({"fileType": "Plan", **data})


def test_what_a_vehicle_keeps_otherwise() -> None:
    want = [MissionItem(0, 6, 16, param1=3.5, param4=NAN, x=10, y=20, z=15.0), MissionItem(1, 2, 20)]
    kept = [MissionItem(0, 3, 16, param1=3.0, x=11, y=20, z=15.01), MissionItem(1, 0, 20)]
    compared = compare(want, kept)
    assert not compared.different
    assert compared.changed == ("item 0: param1 3, not 3.5", "item 1: frame 0, not 2")
    for wrong in ({"x": 20}, {"z": 16.0}, {"command": 17}, {"frame": 0}):
        assert compare(want, [replace(kept[0], **wrong), kept[1]]).different
    assert compare(want, kept[:1]).different
    assert not compare(want, [replace(kept[0], x=500), kept[1]], from_item=1).different


def test_another_speed_or_another_jump_is_another_mission() -> None:
    """What a vehicle does not keep is zero, what it rounds is near; all else means that an older list is there."""
    want = [MissionItem(0, 3, 178, param2=5.0), MissionItem(1, 3, 177, param1=4.0, param2=3.0)]
    assert compare(want, [replace(want[0], param2=20.0), want[1]]).different
    assert compare(want, [want[0], replace(want[1], param1=0.0)]).changed
    assert compare(want, [want[0], replace(want[1], param1=2.0)]).different
    kept = [replace(want[0], param2=0.0), want[1]]
    assert not compare(want, kept).different
    assert compare(want, kept, strictly=True).different
