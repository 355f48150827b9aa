"""Missions as files: QGroundControl's text form ("QGC WPL 110") and its ``.plan`` (JSON)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final

from petalbus.handlers.mavlink.missions.items import (
    CIRCLES,
    DO_JUMP,
    FENCE_RETURN,
    FRAME_RELATIVE,
    MOST_ITEMS,
    POLYGONS,
    RALLY_POINT,
    MissionInvalid,
    MissionItem,
    MissionKind,
    check_items,
    command_number,
    default_frame,
    position_scale,
)

_HEAD: Final = "QGC WPL 110"
_COLUMNS: Final = 12
_INCLUSION: Final = frozenset((5001, 5003))
_FENCE_FRAME: Final = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a ``.plan`` holds. ``home`` is latitude, longitude (degrees) and altitude (m) that it was planned for."""

    mission: list[MissionItem] = field(default_factory=list)
    fence: list[MissionItem] = field(default_factory=list)
    rally: list[MissionItem] = field(default_factory=list)
    home: tuple[float, float, float] | None = None


def to_wpl(items: Sequence[MissionItem]) -> str:
    """The text form. Every number comes back exactly.

    The first item is marked ``current``. Vehicles mark the one that they are at: the next flight shall not begin there.
    """
    lines = [_HEAD]
    for item in items:
        scale = position_scale(item.frame)
        digits = 0 if scale == 1.0 else round(math.log10(scale))
        place = [f"{value / scale:.{digits}f}" for value in (item.x, item.y)]
        numbers = [
            int(item is items[0]),
            item.frame,
            item.command,
            *item.params,
            *place,
            item.z,
            int(item.autocontinue),
        ]
        lines.append("\t".join(map(str, [item.seq, *numbers])))
    return "\n".join(lines) + "\n"


def from_wpl(text: str) -> list[MissionItem]:
    """Read the text form; items are as the vehicle counts them. Raises MissionInvalid, which names the line."""
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].split() != _HEAD.split():
        raise MissionInvalid("line 1", f"it is {(lines or [''])[0][:40]!r}", limit=_HEAD)
    items: list[MissionItem] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(items) == MOST_ITEMS:
            raise MissionInvalid(f"line {number}", "too many items", limit=f"at most {MOST_ITEMS}")
        item = _read_line(line.split(), f"line {number}")
        if item.seq != len(items):
            raise MissionInvalid(f"line {number}", f"its index is {item.seq}", limit=str(len(items)))
        items.append(item)
    return items


def _read_line(columns: list[str], where: str) -> MissionItem:
    if len(columns) != _COLUMNS:
        raise MissionInvalid(where, f"it has {len(columns)} columns", limit=f"{_COLUMNS}, separated by tabs")
    try:
        seq, current, frame, command = (int(float(text)) for text in columns[:4])
        values = [float(text) for text in columns[4:11]]
        go_on = bool(int(float(columns[11])))
    except (ValueError, OverflowError) as error:
        raise MissionInvalid(where, str(error), limit="numbers") from None
    fields = dict(zip(("param1", "param2", "param3", "param4", "x", "y", "z"), values, strict=True))
    whole = {"seq": seq, "frame": frame, "command": command, "current": current, "autocontinue": go_on}
    try:
        item = MissionItem.from_float_fields(fields | whole)
    except MissionInvalid as error:
        raise MissionInvalid(f"{where}, {error.field}", error.problem, limit=error.limit) from None
    item.check(where)
    return item


def to_plan(plan: Plan) -> dict[str, Any]:
    """The ``.plan`` as JSON data. The mission is without home (ArduPilot's item 0). Raises MissionInvalid.

    Heights of a fence's vertices and the flag ``current`` have no place in it, and frames of rally points are relative.
    """
    check_items(plan.mission, MissionKind.MISSION)
    check_items(plan.fence, MissionKind.FENCE)
    check_items(plan.rally, MissionKind.RALLY)
    return {
        "fileType": "Plan",
        "version": 1,
        "groundStation": "PetalBus",
        "mission": {
            "version": 2,
            "firmwareType": 0,
            "vehicleType": 2,
            "cruiseSpeed": 15,
            "hoverSpeed": 5,
            "plannedHomePosition": list(plan.home or (0.0, 0.0, 0.0)),
            "items": [_simple_item(item) for item in plan.mission],
        },
        "geoFence": {"version": 2, **_geo_fence(plan.fence)},
        "rallyPoints": {"version": 2, "points": [[*item.place, _json_number(item.z)] for item in plan.rally]},
    }


def from_plan(data: Any) -> Plan:
    """Read a ``.plan``'s JSON data; also one without fence or rally points. Raises MissionInvalid."""
    if not isinstance(data, Mapping) or data.get("fileType") != "Plan":
        raise MissionInvalid("fileType", "this is no plan", limit='an object with "fileType": "Plan"')
    mission = _part(data, "mission", "mission")
    home = mission.get("plannedHomePosition")
    plan = Plan(
        mission=_read_simple_items(mission),
        fence=_read_fence(_part(data, "geoFence", "geoFence")),
        rally=_read_rally(_part(data, "rallyPoints", "rallyPoints")),
        home=None if home is None else _place(home, "mission.plannedHomePosition"),
    )
    check_items(plan.mission, MissionKind.MISSION)
    check_items(plan.fence, MissionKind.FENCE)
    check_items(plan.rally, MissionKind.RALLY)
    return plan


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _simple_item(item: MissionItem) -> dict[str, Any]:
    params = [_json_number(value) for value in item.params]
    if item.command == DO_JUMP and params[0] is not None:
        params[0] += 1  # it names a doJumpId
    return {
        "type": "SimpleItem",
        "command": item.command,
        "frame": item.frame,
        "params": [*params, *item.place, _json_number(item.z)],
        "autoContinue": item.autocontinue,
        "doJumpId": item.seq + 1,
    }


def _read_simple_items(mission: Mapping[str, Any]) -> list[MissionItem]:
    entries = _list(mission, "items", "mission.items")
    jumps: dict[float, int] = {}
    items = []
    for at, entry in enumerate(entries):
        where = f"mission.items[{at}]"
        if not isinstance(entry, Mapping) or entry.get("type") != "SimpleItem":
            kind = entry.get("type") if isinstance(entry, Mapping) else type(entry).__name__
            raise MissionInvalid(
                f"{where}.type", f"it is {kind!r}", limit="SimpleItem (save the plan without patterns)"
            )
        jump = entry.get("doJumpId", at + 1)
        if isinstance(jump, bool) or not isinstance(jump, int):
            raise MissionInvalid(f"{where}.doJumpId", f"it is {jump!r}", limit="a whole number")
        jumps[jump] = at
        values = _numbers(entry.get("params"), 7, f"{where}.params")
        command = command_number(entry.get("command"), f"{where}.command")
        given = any(one and not math.isnan(one) for one in values[4:6])
        frame = entry.get("frame", default_frame(command, place_given=given))
        scale = position_scale(frame) if isinstance(frame, int) else 1.0
        place = [_scaled(value, scale, f"{where}.params") for value in values[4:6]]
        named = dict(
            zip(("param1", "param2", "param3", "param4", "x", "y", "z"), [*values[:4], *place, values[6]], strict=True)
        )
        go_on = entry.get("autoContinue", True)
        raw = {"frame": frame, "command": command, "autocontinue": go_on, **named}
        items.append(MissionItem.from_json(raw, seq=at, where=where))
    for at, item in enumerate(items):
        if item.command == DO_JUMP:
            if item.param1 not in jumps:
                where = f"mission.items[{at}].params[0]"
                raise MissionInvalid(where, f"no item has the doJumpId {item.param1:g}", limit="one that is there")
            items[at] = replace(item, param1=float(jumps[item.param1]))
    return items


def _geo_fence(items: Sequence[MissionItem]) -> dict[str, Any]:
    polygons: list[dict[str, Any]] = []
    circles: list[dict[str, Any]] = []
    fence: dict[str, Any] = {"polygons": polygons, "circles": circles}
    left = 0
    for item in items:
        inclusion = item.command in _INCLUSION
        if item.command in POLYGONS:
            if left == 0:
                left = int(item.param1)
                polygons.append({"version": 1, "inclusion": inclusion, "polygon": []})
            polygons[-1]["polygon"].append(list(item.place))
            left -= 1
        elif item.command in CIRCLES:
            circle = {"center": list(item.place), "radius": _json_number(item.param1)}
            circles.append({"version": 1, "inclusion": inclusion, "circle": circle})
        elif item.command == FENCE_RETURN:
            fence["breachReturn"] = [*item.place, _json_number(item.z)]
        else:
            raise MissionInvalid(
                f"fence[{item.seq}].command", f"{item.command} has no place in a plan", limit="5000-5004"
            )
    return fence


def _read_fence(fence: Mapping[str, Any]) -> list[MissionItem]:
    numbers = count()
    items: list[MissionItem] = []
    for at, entry in enumerate(_list(fence, "polygons", "geoFence.polygons")):
        where = f"geoFence.polygons[{at}]"
        corners = _list(_object(entry, where), "polygon", f"{where}.polygon")
        command = 5001 if entry.get("inclusion", True) else 5002
        for corner in corners:
            x, y, _ = _place(corner, f"{where}.polygon", lengths=(2,))
            items.append(_placed(next(numbers), _FENCE_FRAME, command, float(len(corners)), x, y, 0.0))
    for at, entry in enumerate(_list(fence, "circles", "geoFence.circles")):
        where = f"geoFence.circles[{at}]"
        circle = _object(_object(entry, where).get("circle"), f"{where}.circle")
        x, y, _ = _place(circle.get("center"), f"{where}.circle.center", lengths=(2,))
        [radius] = _numbers([circle.get("radius")], 1, f"{where}.circle.radius")
        command = 5003 if entry.get("inclusion", True) else 5004
        items.append(_placed(next(numbers), _FENCE_FRAME, command, radius, x, y, 0.0))
    if fence.get("breachReturn") is not None:
        x, y, z = _place(fence["breachReturn"], "geoFence.breachReturn")
        items.append(_placed(next(numbers), FRAME_RELATIVE, FENCE_RETURN, 0.0, x, y, z))
    return items


def _read_rally(rally: Mapping[str, Any]) -> list[MissionItem]:
    items = []
    for at, point in enumerate(_list(rally, "points", "rallyPoints.points")):
        x, y, z = _place(point, f"rallyPoints.points[{at}]")
        items.append(_placed(at, FRAME_RELATIVE, RALLY_POINT, 0.0, x, y, z))
    return items


def _placed(seq: int, frame: int, command: int, param1: float, x: float, y: float, z: float) -> MissionItem:
    return MissionItem(
        seq, frame, command, param1=param1, x=_scaled(x, 1e7, "latitude"), y=_scaled(y, 1e7, "longitude"), z=z
    )


def _scaled(value: float, scale: float, where: str) -> int:
    if math.isnan(value):
        return 0
    whole = round(value * scale) if math.isfinite(value) else 2**31
    if abs(whole) >= 2**31:
        raise MissionInvalid(where, f"{value} is no place", limit="degrees, or metres in a local frame")
    return whole


def _part(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = data.get(name)
    return {} if value is None else _object(value, where)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MissionInvalid(where, f"it is {type(value).__name__}", limit="an object")
    return value


def _list(data: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = [] if data.get(name) is None else data[name]
    if not isinstance(value, list) or len(value) > MOST_ITEMS:
        raise MissionInvalid(where, "it is no list, or too long", limit=f"a list of at most {MOST_ITEMS}")
    return value


def _numbers(value: Any, length: int, where: str) -> list[float]:
    """Numbers of a list; null is NaN."""
    if not isinstance(value, list) or len(value) != length:
        raise MissionInvalid(where, "it is no such list", limit=f"{length} numbers")
    wrong = [one for one in value if isinstance(one, bool) or not isinstance(one, (int, float, type(None)))]
    if wrong:
        raise MissionInvalid(where, f"{wrong[0]!r} is no number", limit=f"{length} numbers (null: left open)")
    return [math.nan if one is None else float(one) for one in value]


def _place(value: Any, where: str, *, lengths: tuple[int, ...] = (2, 3)) -> tuple[float, float, float]:
    length = len(value) if isinstance(value, list) and len(value) in lengths else lengths[-1]
    latitude, longitude, *rest = _numbers(value, length, where)
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise MissionInvalid(where, f"[{latitude}, {longitude}] is no place on Earth", limit="latitude, longitude")
    return latitude, longitude, rest[0] if rest else 0.0
