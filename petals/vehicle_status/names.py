"""Words for the numbers that MAVLink uses for modes, fixes and landed states."""

from __future__ import annotations

from typing import Final

ARDUPILOT: Final = 3
PX4: Final = 12
FIX_3D: Final = 3

_AUTOPILOTS: Final = {ARDUPILOT: "ardupilot", PX4: "px4"}
_LANDED: Final = {1: "on_ground", 2: "in_air", 3: "takeoff", 4: "landing"}
_FIXES: Final = {
    0: "no_gps", 1: "no_fix", 2: "2d", 3: "3d", 4: "dgps", 5: "rtk_float", 6: "rtk_fixed", 7: "static", 8: "ppp",
}  # fmt: skip
_COPTER: Final = frozenset((2, 3, 4, 13, 14, 15, 29, 35))
"""MAV_TYPE of everything that hovers on rotors: the numbers of their modes are ArduCopter's."""

_ARDUCOPTER: Final = {
    0: "stabilize", 1: "acro", 2: "alt_hold", 3: "auto", 4: "guided", 5: "loiter", 6: "rtl", 7: "circle", 9: "land",
    11: "drift", 13: "sport", 14: "flip", 15: "autotune", 16: "pos_hold", 17: "brake", 18: "throw", 19: "avoid_adsb",
    20: "guided_nogps", 21: "smart_rtl", 22: "flow_hold", 23: "follow", 24: "zigzag", 25: "system_id",
    26: "heli_autorotate", 27: "auto_rtl", 28: "turtle",
}  # fmt: skip
_PX4_MAIN: Final = {
    1: "manual", 2: "altitude", 3: "position", 5: "acro", 6: "offboard", 7: "stabilized", 8: "rattitude",
}  # fmt: skip
_PX4_AUTO: Final = {
    1: "ready", 2: "takeoff", 3: "hold", 4: "mission", 5: "return", 6: "land", 8: "follow", 9: "precision_land",
}  # fmt: skip
_PX4_AUTO_MAIN: Final = 4


def autopilot(number: int) -> str:
    """MAV_AUTOPILOT: ``px4``, ``ardupilot``, or the number."""
    return _AUTOPILOTS.get(number, str(number))


def landed(number: int) -> str:
    """MAV_LANDED_STATE; ``unknown`` where the vehicle does not know it."""
    return _LANDED.get(number, "unknown")


def fix(number: int) -> str:
    """GPS_FIX_TYPE; the number where it has no word."""
    return _FIXES.get(number, str(number))


def mode(autopilot_number: int, vehicle_type: int, custom_mode: int) -> str:
    """The flight mode in a heartbeat, as the autopilot's own ground stations call it; else ``custom_<number>``."""
    if autopilot_number == PX4:
        main, sub = custom_mode >> 16 & 0xFF, custom_mode >> 24 & 0xFF
        name = _PX4_AUTO.get(sub) if main == _PX4_AUTO_MAIN else _PX4_MAIN.get(main)
        return name or f"custom_{main}_{sub}"
    if autopilot_number == ARDUPILOT and vehicle_type in _COPTER:
        return _ARDUCOPTER.get(custom_mode, f"custom_{custom_mode}")
    return f"custom_{custom_mode}"
