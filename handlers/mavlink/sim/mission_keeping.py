"""How the simulated vehicle keeps an item: PX4 what a command uses, ArduPilot in a few bytes of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from petalbus.handlers.mavlink.missions.items import MissionItem

_Keep = Callable[[float], float]

_FENCE_FIRST, _RALLY = 5000, 5100
_LOCATIONS: Final = {0: 0, 2: 0, 5: 0, 3: 3, 6: 3, 10: 10, 11: 10}


def _whole(value: float) -> float:
    return 0.0 if math.isnan(value) else float(int(value))


def _same(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _sign(value: float) -> float:
    return -1.0 if value < 0.0 else 1.0


def _flag(value: float) -> float:
    return 1.0 if value > 0.0 else 0.0


def _radius(value: float) -> float:
    """Up to 255 m in metres, above in tens."""
    metres = int(abs(_same(value)))
    return math.copysign(metres if metres < 256 else min(metres // 10, 255) * 10, value) if metres else 0.0


def _gone(_value: float) -> float:
    return 0.0


_COPTER: Final[dict[int, tuple[_Keep, ...]]] = {
    16: (_whole,),
    17: (_gone, _gone, _whole),
    18: (_whole, _gone, _radius, _flag),
    19: (_whole, _gone, _sign, _flag),
    21: (_whole, _gone, _gone, _sign),
    22: (_whole,),
    82: (_whole,),
    92: (_whole,),
    93: (_whole, _whole, _whole, _whole),
    94: (_same,),
    112: (_whole,),
    113: (_same,),
    114: (_same,),
    115: (_same, _same, _whole, _whole),
    177: (_whole, _whole),
    178: (_whole, _same, _whole),
    179: (_whole,),
    181: (_whole, _whole),
    183: (_whole, _whole),
    201: (_whole,),
    203: (_whole, _whole, _whole, _whole),
    206: (_same,),
}
"""What ArduCopter keeps of the parameters of each command; those after the last are gone."""
_IN_LOCATION: Final = frozenset((16, 17, 18, 19, 21, 22, 82, 84, 85, 92, 94, 179, 195, 201))


def as_ardupilot(kind: int, item: MissionItem) -> MissionItem:
    """As ArduCopter sends an item back."""
    kept = replace(item, current=False, autocontinue=True)
    if kind:
        first = _same(item.param1) if kind == 1 else 0.0
        kept = replace(kept, param1=first, param2=0.0, param3=0.0, param4=0.0)
        return replace(kept, frame=0, z=0.0) if kind == 1 else replace(kept, frame=3, z=_whole(item.z))
    keeps = (*_COPTER.get(item.command, ()), _gone, _gone, _gone, _gone)
    values = [keep(value) for keep, value in zip(keeps, item.params, strict=False)]
    kept = replace(kept, param1=values[0], param2=values[1], param3=values[2], param4=values[3])
    if item.command in _IN_LOCATION:
        return replace(kept, frame=_LOCATIONS.get(item.frame, item.frame), z=int(_same(item.z) * 100.0) / 100.0)
    return replace(kept, frame=0, x=0, y=0, z=0.0)


def _angle(value: float) -> float:
    return value if math.isnan(value) else value % 360.0


def _any(value: float) -> float:
    return value


_PX4: Final[dict[int, tuple[_Keep, ...]]] = {
    16: (_any, _any, _gone, _angle),
    17: (_gone, _gone, _any, _angle),
    19: (_any, _flag, _any, _flag),
    21: (_gone, _whole, _gone, _angle),
    22: (_gone, _gone, _gone, _angle),
    84: (_gone, _gone, _gone, _angle),
    85: (_gone, _gone, _gone, _angle),
    5001: (_any,),
    5002: (_any,),
    5003: (_any,),
    5004: (_any,),
}
"""What PX4 keeps of items with a place."""


def as_px4(item: MissionItem) -> MissionItem:
    """As PX4 sends an item back. In a fence it does not remember that a height was above home."""
    if item.frame == 2:
        return item
    keeps = (*_PX4.get(item.command, ()), _gone, _gone, _gone, _gone)
    values = [keep(value) for keep, value in zip(keeps, item.params, strict=False)]
    kept = replace(item, param1=values[0], param2=values[1], param3=values[2], param4=values[3])
    relative = item.frame in (3, 6) and not _FENCE_FIRST <= item.command < _RALLY
    return replace(kept, frame=6 if relative else 5)
