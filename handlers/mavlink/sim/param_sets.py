"""The parameters the simulated vehicle starts with: name, type, value."""

from __future__ import annotations

from typing import Final

from petalbus.handlers.mavlink.params.values import ParamType

_F: Final = ParamType.REAL32
_I8: Final = ParamType.INT8
_I16: Final = ParamType.INT16
_I32: Final = ParamType.INT32

PX4_PARAMS: Final[tuple[tuple[str, ParamType, float], ...]] = (
    ("BAT1_CAPACITY", _F, 5200.0),
    ("BAT1_N_CELLS", _I32, 4),
    ("CAL_ACC0_ID", _I32, 1310988),
    ("CAL_GYRO0_ID", _I32, 1310988),
    ("CAL_MAG0_ID", _I32, 197388),
    ("COM_ARM_WO_GPS", _I32, 1),
    ("COM_DISARM_LAND", _F, 2.0),
    ("COM_DISARM_PRFLT", _F, 10.0),
    ("COM_FLTMODE1", _I32, -1),
    ("COM_RC_IN_MODE", _I32, 3),
    ("EKF2_HGT_REF", _I32, 1),
    ("GF_ACTION", _I32, 2),
    ("GF_MAX_HOR_DIST", _F, 0.0),
    ("GF_MAX_VER_DIST", _F, 0.0),
    ("LND_FLIGHT_T_LO", _I32, 0),
    ("MAV_SYS_ID", _I32, 1),
    ("MAV_TYPE", _I32, 2),
    ("MC_PITCHRATE_P", _F, 0.15),
    ("MC_ROLLRATE_P", _F, 0.15),
    ("MIS_TAKEOFF_ALT", _F, 2.5),
    ("MPC_LAND_SPEED", _F, 0.7),
    ("MPC_XY_VEL_MAX", _F, 12.0),
    ("MPC_Z_VEL_MAX_DN", _F, 1.5),
    ("MPC_Z_VEL_MAX_UP", _F, 3.0),
    ("NAV_ACC_RAD", _F, 10.0),
    ("NAV_DLL_ACT", _I32, 0),
    ("NAV_RCL_ACT", _I32, 2),
    ("RTL_RETURN_ALT", _F, 30.0),
    ("SDLOG_MODE", _I32, 0),
    ("SDLOG_UTC_OFFSET", _I32, 0),
    ("SYS_AUTOSTART", _I32, 4001),
    ("SYS_HAS_BARO", _I32, 1),
)

ARDUPILOT_PARAMS: Final[tuple[tuple[str, ParamType, float], ...]] = (
    ("ARMING_CHECK", _I32, 1),
    ("ATC_RAT_PIT_P", _F, 0.135),
    ("ATC_RAT_RLL_P", _F, 0.135),
    ("BATT_CAPACITY", _I32, 5200),
    ("BATT_MONITOR", _I8, 4),
    ("COMPASS_DEV_ID", _I32, 97539),
    ("DISARM_DELAY", _I8, 10),
    ("FENCE_ACTION", _I8, 1),
    ("FENCE_ALT_MAX", _F, 100.0),
    ("FENCE_ENABLE", _I8, 0),
    ("FRAME_CLASS", _I8, 1),
    ("INS_GYR_ID", _I32, 2753028),
    ("LAND_SPEED", _I16, 50),
    ("LOG_BITMASK", _I32, 176126),
    ("MAV_SYSID", _I16, 1),
    ("RTL_ALT", _I16, 1500),
    ("RTL_ALT_M", _F, 15.0),
    ("SIM_DISARM_LAND", _F, 2.0),
    ("SIM_SPEEDUP", _F, 1.0),
    ("STAT_BOOTCNT", _I16, 1),
    ("WPNAV_SPEED", _F, 500.0),
    ("WP_SPD", _F, 10.0),
)


def more_params(number: int) -> tuple[tuple[str, ParamType, float], ...]:
    """Further parameters without an effect, ``SIM_P0000`` and so on: as many as a real vehicle has."""
    return tuple((f"SIM_P{place:04}", _F, place / 8) for place in range(number))
