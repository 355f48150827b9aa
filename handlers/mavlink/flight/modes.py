"""Flight modes by name. Each autopilot numbers them in its own way, ArduPilot for each kind of vehicle anew.

The common words below mean the same everywhere; an autopilot's own names (``POSHOLD``, ``offboard``) work beside them.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from petalbus.handlers.mavlink.errors import OrderInvalid
from petalbus.handlers.mavlink.wire.dialect import Dialect

ARDUPILOT: Final = 3
PX4: Final = 12

_PX4_MODES: Final = {
    "manual": (1, 0),
    "altitude": (2, 0),
    "position": (3, 0),
    "position_slow": (3, 2),
    "takeoff": (4, 2),
    "hold": (4, 3),
    "mission": (4, 4),
    "return": (4, 5),
    "land": (4, 6),
    "follow": (4, 8),
    "precision_land": (4, 9),
    "vtol_takeoff": (4, 10),
    "acro": (5, 0),
    "offboard": (6, 0),
    "stabilized": (7, 0),
}
"""PX4's main and sub mode (px4_custom_mode.h)."""

_PX4_NAMES: Final = {numbers: name for name, numbers in _PX4_MODES.items()} | {(3, 1): "orbit"}
"""Orbit is told and not taken: who asks for it gets the pilot's position mode, and is told that it was accepted."""

_PX4_WORDS: Final = {
    "loiter": "hold",
    "rtl": "return",
    "auto": "mission",
    "altctl": "altitude",
    "posctl": "position",
} | {
    "guided": "offboard",
    "stabilize": "stabilized",
}

_FAMILIES: Final = {
    "PLANE": (1, 16, 19, 20, 21, 22, 23, 24, 25, 28, 47),
    "ROVER": (10, 11),
    "SUB": (12,),
    "TRACKER": (5,),
}
"""MAV_TYPE of each of ArduPilot's programs; all others are ArduCopter's."""

_VTOL: Final = range(19, 26)
"""MAV_TYPE of planes that say that they can hover. ArduPlane's say "fixed wing" unless Q_MAV_TYPE is set."""

_PLANE_HOVERING: Final = range(17, 24)
"""ArduPlane's Q modes, in which it hovers: QSTABILIZE to QACRO."""

_QLOITER: Final = 19
_QLAND: Final = 20

_ARDUPILOT_WORDS: Final = {
    "COPTER": {"hold": "brake", "mission": "auto", "return": "rtl", "position": "poshold", "altitude": "alt_hold"}
    | {"stabilized": "stabilize", "offboard": "guided"},
    "PLANE": {"hold": "loiter", "mission": "auto", "return": "rtl", "offboard": "guided", "stabilized": "stabilize"},
    "ROVER": {"mission": "auto", "return": "rtl", "offboard": "guided"},
    "SUB": {"hold": "poshold", "mission": "auto", "offboard": "guided", "altitude": "alt_hold"},
    "TRACKER": {"hold": "stop", "mission": "auto"},
}

_DOWN_MODES: Final = frozenset(
    (
        *("land", "return", "rtl", "smart_rtl", "auto_rtl", "qland", "qrtl", "autoland", "precision_land"),
        *("hold", "brake", "qloiter", "loiter_alt_qland", "surface"),
    )
)
"""Modes in which a vehicle comes down or stays; its kind's own ``hold`` is one more."""


def mode_numbers(name: str, autopilot: int, kind: int, dialect: Dialect) -> tuple[float, float]:
    """A mode as param2 and param3 of MAV_CMD_DO_SET_MODE. ``kind`` is the MAV_TYPE.

    Raises OrderInvalid with the modes there are.
    """
    word = name.strip().lower().replace(" ", "_").replace("-", "_")
    if autopilot == PX4:
        numbers = _PX4_MODES.get(_PX4_WORDS.get(word, word))
        if numbers is None:
            raise _unknown(name, (*_PX4_MODES, *_PX4_WORDS))
        return float(numbers[0]), float(numbers[1])
    family = _family(kind)
    modes = _ardupilot_modes(dialect, family) if autopilot == ARDUPILOT else {}
    words = _ARDUPILOT_WORDS[family] if autopilot == ARDUPILOT else {}
    number = modes.get(words.get(word, word))
    if number is None:
        raise _unknown(name, (*modes, *words))
    return float(number), 0.0


def mode_name(autopilot: int, kind: int, custom_mode: int, dialect: Dialect) -> str:
    """The name of the mode that a heartbeat's custom_mode says; ``mode_<number>`` for one without a name."""
    if autopilot == PX4:
        found = _PX4_NAMES.get((custom_mode >> 16 & 0xFF, custom_mode >> 24 & 0xFF))
    elif autopilot == ARDUPILOT:
        modes = _ardupilot_modes(dialect, _family(kind))
        found = next((name for name, number in modes.items() if number == custom_mode), None)
    else:
        found = None
    return found or f"mode_{custom_mode}"


def custom_mode_of(autopilot: int, param2: float, param3: float) -> int | None:
    """The custom_mode that a heartbeat will tell, from param2 and param3 of MAV_CMD_DO_SET_MODE; None for nonsense."""
    if not (0 <= param2 < 2**32 and 0 <= param3 < 2**32):  # NaN is nowhere
        return None
    return (int(param2) & 0xFF) << 16 | (int(param3) & 0xFF) << 24 if autopilot == PX4 else int(param2)


def is_down_mode(autopilot: int, kind: int, custom_mode: int, dialect: Dialect) -> bool:
    """Whether in this mode (a heartbeat's custom_mode) the vehicle comes down or stays."""
    name = mode_name(autopilot, kind, custom_mode, dialect)
    hold = _ARDUPILOT_WORDS[_family(kind)].get("hold") if autopilot == ARDUPILOT else None
    return name in _DOWN_MODES or name == hold


def is_plane(autopilot: int, kind: int) -> bool:
    """Whether ArduPlane flies it, which knows no command to land."""
    return autopilot == ARDUPILOT and _family(kind) == "PLANE"


def plane_landing(kind: int, custom_mode: int) -> float | None:
    """The mode in which an ArduPlane that hovers, or says that it can, lands where it is; None for one that cannot."""
    return float(_QLAND) if kind in _VTOL or custom_mode in _PLANE_HOVERING else None


def plane_hold(custom_mode: int) -> float | None:
    """The mode in which an ArduPlane that hovers stays where it is; None: it flies, and circles (``hold``)."""
    return float(_QLOITER) if custom_mode in _PLANE_HOVERING else None


def takes_off(autopilot: int, kind: int) -> bool:
    """Whether it obeys an order to take off. ArduPilot: copters, and planes that say that they can hover."""
    return autopilot != ARDUPILOT or _family(kind) == "COPTER" or kind in _VTOL


def repositions_at_speed(autopilot: int, kind: int) -> bool:
    """Whether DO_REPOSITION's speed is looked at: not by ArduCopter, ArduPlane and ArduSub."""
    return autopilot != ARDUPILOT or _family(kind) == "ROVER"


def _family(kind: int) -> str:
    return next((family for family, kinds in _FAMILIES.items() if kind in kinds), "COPTER")


@cache
def _ardupilot_modes(dialect: Dialect, family: str) -> dict[str, int]:
    entries = dialect.module.enums.get(f"{family}_MODE", {})
    names = {number: entry.name.removeprefix(f"{family}_MODE_").lower() for number, entry in entries.items()}
    return {name: number for number, name in names.items() if name != "enum_end"}


def _unknown(name: str, known: tuple[str, ...]) -> OrderInvalid:
    allowed = ", ".join(sorted(set(known))) or "none: this autopilot's modes have no names here"
    return OrderInvalid("parameters.mode", f"is {name[:40]!r}", limit=allowed)
