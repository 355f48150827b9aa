"""Items of a mission, a fence or a list of rally points: what they hold, what is allowed, and how they travel.

Numbers count as the vehicle counts: ArduPilot's item 0 of a mission is home, which ``with_home`` puts in. Positions are
whole numbers as in MISSION_ITEM_INT (1e-7 degrees, 1e-4 m in local frames), so that nothing is rounded on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.wire.dialect import load_dialect

MOST_ITEMS: Final = 10_000
WAYPOINT: Final = 16
DO_JUMP: Final = 177
RALLY_POINT: Final = 5100
POLYGONS: Final = frozenset((5001, 5002))
CIRCLES: Final = frozenset((5003, 5004))
FENCE_RETURN: Final = 5000
FRAME_MISSION: Final = 2
FRAME_RELATIVE: Final = 3
CHANGE_ALTITUDE: Final = 30
GLOBAL_FRAMES: Final = frozenset((0, 3, 5, 6, 10, 11))
LOCAL_FRAMES: Final = frozenset((1, 4, 7, 8, 9, 12, 20, 21))

_FENCE_COMMANDS: Final = POLYGONS | CIRCLES | {FENCE_RETURN, 5005}
_PLACE_IF_GIVEN: Final = frozenset((80, 179, 189, 191, 201))
"""Without a place these mean another one: the next item's, the vehicle's, none."""
_INT32: Final = 2**31 - 1
_LARGEST_FLOAT: Final = 3.4028234663852886e38
_PARAMS: Final = ("param1", "param2", "param3", "param4")
_PLAIN: Final = ("seq", "frame", "command", "current", "autocontinue", *_PARAMS, "x", "y", "z")
_FRIENDLY: Final = ("latitude", "longitude", "altitude")


class MissionKind(IntEnum):
    """MAV_MISSION_TYPE."""

    MISSION = 0
    FENCE = 1
    RALLY = 2


class MissionInvalid(MavlinkError, ValueError):
    """Items are wrong; nothing was sent. ``field`` names the place, ``limit`` what is allowed there."""

    code = "MISSION_INVALID"

    def __init__(self, field: str, problem: str, *, limit: str) -> None:
        self.field = field
        self.problem = problem
        self.limit = limit
        super().__init__(f"{field}: {problem} (allowed: {limit})")

    @property
    def detail(self) -> dict[str, Any]:
        """The field and what is allowed there."""
        return {"field": self.field, "problem": self.problem, "allowed": self.limit}


def position_scale(frame: int) -> float:
    """How many units of ``x`` and ``y`` are a degree (global frames) or a metre (local ones); 1 without a place."""
    if frame in GLOBAL_FRAMES:
        return 1e7
    return 1e4 if frame in LOCAL_FRAMES else 1.0


def has_place(command: int) -> bool:
    """Whether the frame, x, y and z of this MAV_CMD (or z alone) say where."""
    entry = load_dialect().module.enums["MAV_CMD"].get(command)
    return command == CHANGE_ALTITUDE or bool(getattr(entry, "has_location", False))


def default_frame(command: int, *, place_given: bool) -> int:
    """The MAV_FRAME of an item that says none: relative to home, or that of commands without a place.

    PX4 takes commands without a place in that frame only, ArduPilot in any.
    """
    placed = place_given if command in _PLACE_IF_GIVEN else has_place(command)
    return FRAME_RELATIVE if placed else FRAME_MISSION


@dataclass(frozen=True, slots=True, eq=False)
class MissionItem:
    """One item. NaN in a parameter or in ``z`` (metres) leaves it to the vehicle; two NaN count as equal."""

    seq: int
    frame: int
    command: int
    current: bool = False
    autocontinue: bool = True
    param1: float = 0.0
    param2: float = 0.0
    param3: float = 0.0
    param4: float = 0.0
    x: int = 0
    y: int = 0
    z: float = 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissionItem) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        floats = (None if math.isnan(value) else value for value in (*self.params, self.z))
        return (self.seq, self.frame, self.command, self.current, self.autocontinue, self.x, self.y, *floats)

    @property
    def params(self) -> tuple[float, float, float, float]:
        """The four parameters."""
        return self.param1, self.param2, self.param3, self.param4

    @property
    def place(self) -> tuple[float, float]:
        """``x`` and ``y`` in degrees (latitude, longitude) or metres."""
        scale = position_scale(self.frame)
        return self.x / scale, self.y / scale

    def fields(self) -> dict[str, Any]:
        """The fields of MISSION_ITEM_INT, but for target and mission type."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {"current": int(self.current), "autocontinue": int(self.autocontinue)}

    def float_fields(self) -> dict[str, Any]:
        """The fields of the old MISSION_ITEM: x and y are floats, in degrees or metres (a metre is lost by that)."""
        x, y = self.place
        return self.fields() | {"x": x, "y": y}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> MissionItem:
        """Read MISSION_ITEM_INT, just as the vehicle sent it."""
        flags = {"current": fields["current"] == 1, "autocontinue": bool(fields["autocontinue"])}
        return cls(**{name: fields[name] for name in _PLAIN} | flags)

    @classmethod
    def from_float_fields(cls, fields: Mapping[str, Any]) -> MissionItem:
        """Read the old MISSION_ITEM. Raises MissionInvalid when its place is no number, or too large."""
        scale = position_scale(fields["frame"])
        whole = {axis: _scaled(fields[axis], scale, axis) for axis in ("x", "y")}
        return cls.from_fields({**fields, **whole})

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary without NaN (they are None)."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in ((name, getattr(self, name)) for name in _PLAIN)
        }

    @classmethod
    def from_json(cls, data: Any, *, seq: int | None = None, where: str = "item") -> MissionItem:
        """Read a dictionary as ``to_json`` writes it; ``seq`` is used where it says none.

        ``latitude`` and ``longitude`` (degrees) may stand for x and y, ``altitude`` for z, and names such as
        ``NAV_WAYPOINT`` or ``GLOBAL_RELATIVE_ALT`` for numbers. A frame may be left out, see ``default_frame``. Raises
        MissionInvalid, which names ``where``.
        """
        if not isinstance(data, Mapping):
            raise MissionInvalid(where, f"it is {type(data).__name__}", limit="an object with command, x, y, z, ...")
        unknown = data.keys() - {*_PLAIN, *_FRIENDLY}
        if unknown:
            raise MissionInvalid(f"{where}.{min(map(str, unknown))}", "there is no such field", limit=_ALLOWED)
        if "command" not in data:
            raise MissionInvalid(f"{where}.command", "it is missing", limit="a MAV_CMD, by number or name")
        values: dict[str, Any] = {"command": command_number(data["command"], f"{where}.command")}
        frame = values["frame"] = _frame(data, values["command"], where)
        values["seq"] = data.get("seq", 0 if seq is None else seq)
        for name, otherwise in (("current", False), ("autocontinue", True)):
            values[name] = _flag(data.get(name, otherwise), f"{where}.{name}")
        for name in _PARAMS:
            values[name] = _number(data.get(name, 0.0), f"{where}.{name}")
        for axis, friendly in (("x", "latitude"), ("y", "longitude")):
            values[axis] = _whole_place(data, axis, friendly, frame, where)
        _only_one(data, "z", "altitude", where)
        values["z"] = _number(data.get("z", data.get("altitude", 0.0)), f"{where}.z")
        item = cls(**values)
        item.check(where)
        return item

    def check(self, where: str = "item") -> None:
        """Raises MissionInvalid when a value cannot travel, or a place is not on Earth."""
        for name, most in (("seq", 65_535), ("frame", 255), ("command", 65_535)):
            _whole(getattr(self, name), 0, most, f"{where}.{name}")
        if self.frame not in GLOBAL_FRAMES | LOCAL_FRAMES | {FRAME_MISSION}:
            raise MissionInvalid(f"{where}.frame", f"{self.frame} is no MAV_FRAME in use", limit=_FRAMES)
        for name in (*_PARAMS, "z"):
            _number(getattr(self, name), f"{where}.{name}")
        for axis, most in (("x", 900_000_000), ("y", 1_800_000_000)):
            limit = most if self.frame in GLOBAL_FRAMES else _INT32
            _whole(getattr(self, axis), -limit, limit, f"{where}.{axis}")


_ALLOWED: Final = ", ".join((*_PLAIN, *_FRIENDLY))
_FRAMES: Final = ", ".join(map(str, sorted(GLOBAL_FRAMES | LOCAL_FRAMES | {FRAME_MISSION})))


def items_from_json(data: Any, kind: MissionKind = MissionKind.MISSION) -> list[MissionItem]:
    """Read and check a list of dictionaries; ``seq`` may be left out. Raises MissionInvalid."""
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        raise MissionInvalid("items", f"it is {type(data).__name__}", limit="a list of objects")
    _check_number(len(data))
    items = [MissionItem.from_json(one, seq=at, where=f"items[{at}]") for at, one in enumerate(data)]
    check_items(items, kind)
    return items


def check_items(items: Sequence[MissionItem], kind: MissionKind) -> None:
    """Whether items may be uploaded as this kind of mission. Raises MissionInvalid."""
    _check_number(len(items))
    for at, item in enumerate(items):
        where = f"items[{at}]"
        item.check(where)
        if item.seq != at:
            raise MissionInvalid(f"{where}.seq", f"it is {item.seq}", limit=f"{at}: items are numbered from 0 on")
        problem = _wrong_command(item.command, kind)
        if problem is not None:
            raise MissionInvalid(f"{where}.command", f"{item.command} is not for {kind.name.lower()}", limit=problem)
    if kind is MissionKind.FENCE:
        _check_polygons(items)


def with_home(items: Sequence[MissionItem]) -> list[MissionItem]:
    """The mission as ArduPilot wants it: item 0 is home (it fills that in itself), and all others come one later."""
    home = MissionItem(0, 0, WAYPOINT)
    return [home, *(_moved(item, 1) for item in items)]


def without_home(items: Sequence[MissionItem]) -> list[MissionItem]:
    """What ArduPilot has as a mission, without its item 0."""
    return [_moved(item, -1) for item in items[1:]]


def begun(items: Sequence[MissionItem]) -> list[MissionItem]:
    """The mission as PX4 wants it: an item is marked ``current``, the first one if none is.

    With none it would begin at the number that it was at in the mission before: after a flight that is the last one.
    """
    marked = not items or any(item.current for item in items)
    return list(items) if marked else [replace(items[0], current=True), *items[1:]]


def _moved(item: MissionItem, by: int) -> MissionItem:
    jump = item.param1 + by if item.command == DO_JUMP and item.param1 + by >= 0 else item.param1
    return replace(item, seq=item.seq + by, param1=jump)


def _check_number(number: int) -> None:
    if number > MOST_ITEMS:
        raise MissionInvalid("items", f"there are {number}", limit=f"at most {MOST_ITEMS}")


def _wrong_command(command: int, kind: MissionKind) -> str | None:
    """What is allowed instead; None when the command is right."""
    if kind is MissionKind.FENCE:
        return None if command in _FENCE_COMMANDS else f"one of {sorted(_FENCE_COMMANDS)}"
    if kind is MissionKind.RALLY:
        return None if command == RALLY_POINT else f"{RALLY_POINT} (NAV_RALLY_POINT)"
    wrong = command in _FENCE_COMMANDS or command == RALLY_POINT
    return "any MAV_CMD that is not for a fence or a rally point" if wrong else None


def _check_polygons(items: Sequence[MissionItem]) -> None:
    at = 0
    while at < len(items):
        item = items[at]
        if item.command not in POLYGONS:
            at += 1
            continue
        where = f"items[{at}].param1"
        if not item.param1 >= 3 or item.param1 != int(item.param1):
            raise MissionInvalid(where, f"{item.param1:g} vertices", limit="a whole number of vertices, 3 or more")
        end = at + int(item.param1)
        same = [one for one in items[at:end] if (one.command, one.param1) == (item.command, item.param1)]
        if len(same) != item.param1:
            raise MissionInvalid(where, f"only {len(same)} vertices follow one another", limit=f"{item.param1:g}")
        at = end


def _only_one(data: Mapping[str, Any], plain: str, friendly: str, where: str) -> None:
    if plain in data and friendly in data:
        raise MissionInvalid(f"{where}.{friendly}", f"{plain} is there, too", limit=f"either {plain} or {friendly}")


def _whole_place(data: Mapping[str, Any], axis: str, friendly: str, frame: int, where: str) -> int:
    _only_one(data, axis, friendly, where)
    if friendly not in data:
        value = data.get(axis, 0)
        return value if isinstance(value, int) else _whole(value, -_INT32, _INT32, f"{where}.{axis}")
    name = f"{where}.{friendly}"
    if frame not in GLOBAL_FRAMES:
        raise MissionInvalid(name, f"frame {frame} has none", limit="x and y in units of 0.1 mm")
    degrees, most = data[friendly], 90 if axis == "x" else 180
    value = _number(degrees, name)
    if not -most <= value <= most:
        raise MissionInvalid(name, f"it is {degrees}", limit=f"degrees from -{most} to {most}")
    return _scaled(value, 1e7, name)


def _scaled(value: float, scale: float, name: str) -> int:
    if not math.isfinite(value) or abs(value * scale) > _INT32:
        raise MissionInvalid(name, f"it is {value}", limit="a number that fits")
    return round(value * scale)


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MissionInvalid(
            name, f"it is {type(value).__name__}", limit="a number, or null to leave it to the vehicle"
        )
    if abs(value) > _LARGEST_FLOAT:
        raise MissionInvalid(name, f"it is {value}", limit="a number that fits a 32-bit float")
    return float(value)


def _whole(value: Any, least: int, most: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise MissionInvalid(name, f"it is {value!r}", limit=f"a whole number from {least} to {most}")
    return value


def _flag(value: Any, name: str) -> bool:
    if value not in (0, 1):
        raise MissionInvalid(name, f"it is {value!r}", limit="true or false")
    return bool(value)


def command_number(value: Any, name: str) -> int:
    """A MAV_CMD by its number or name. Raises MissionInvalid, which names ``name``."""
    return _enum_value(value, "MAV_CMD", name)


def _frame(data: Mapping[str, Any], command: int, where: str) -> int:
    if "frame" in data:
        return _enum_value(data["frame"], "MAV_FRAME", f"{where}.frame")
    if "latitude" in data or "longitude" in data:
        return FRAME_RELATIVE
    return default_frame(command, place_given=bool(data.get("x") or data.get("y")))


def _enum_value(value: Any, enum: str, name: str) -> int:
    """A number as it is, or that of a name, with or without the enumeration's own."""
    if not isinstance(value, str):
        return _whole(value, 0, 65_535, name)
    wanted = value.upper().removeprefix(f"{enum}_")
    for number, entry in load_dialect().module.enums[enum].items():
        if entry.name == f"{enum}_{wanted}" and not wanted.endswith("ENUM_END"):
            return int(number)
    raise MissionInvalid(name, f"{value!r} is not known", limit=f"a name of {enum}, or its number")
