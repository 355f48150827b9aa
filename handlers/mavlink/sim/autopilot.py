"""What differs between the two autopilots: their numbers for modes, how they refuse, where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from petalbus.handlers.mavlink.params.values import ParamEncoding


class Mode(Enum):
    """What the vehicle is about."""

    MANUAL = "manual"
    HOLD = "hold"
    GUIDED = "guided"
    TAKEOFF = "takeoff"
    BRAKE = "brake"
    MISSION = "mission"
    OFFBOARD = "offboard"
    LAND = "land"
    RETURN = "return"


class Result(IntEnum):
    """MAV_RESULT."""

    ACCEPTED = 0
    TEMPORARILY_REJECTED = 1
    DENIED = 2
    UNSUPPORTED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Autopilot:
    """One kind of autopilot."""

    name: str
    number: int
    """MAV_AUTOPILOT."""
    encoding: ParamEncoding
    capabilities: int
    """MAV_PROTOCOL_CAPABILITY, no more than the simulation offers."""
    first_mode: Mode
    mode_numbers: Mapping[Mode, tuple[int, int, int]]
    """Mode -> custom_mode, and param2 and param3 of DO_SET_MODE that choose it."""
    base_mode: int
    """HEARTBEAT.base_mode of a disarmed vehicle that flies by itself."""
    manual_base_mode: int
    """The same in the mode that a pilot flies."""
    boot_base_mode: int
    boot_status: int
    """The same and MAV_STATE while it boots."""
    cannot: Result
    """Its answer to what it understands and will not do now."""
    bad_mode: Result
    takeoff_from: frozenset[Mode]
    altitude_above_sea: bool
    """Whether NAV_TAKEOFF's altitude counts from the sea, or from home."""
    disarm_landed: str
    disarm_unused: str
    """The parameters that hold the seconds until it disarms by itself, after landing and without a takeoff."""
    latitude: float
    longitude: float
    altitude: float

    def mode_of(self, main: int, sub: int) -> Mode | None:
        """The mode that DO_SET_MODE's param2 and param3 choose; None when it has no such mode."""
        return next((mode for mode, numbers in self.mode_numbers.items() if numbers[1:] == (main, sub)), None)


def _px4(main: int, sub: int) -> tuple[int, int, int]:
    return main << 16 | sub << 24, main, sub


def _ardupilot(number: int) -> tuple[int, int, int]:
    return number, number, 0


PX4: Final = Autopilot(
    name="px4",
    number=12,
    encoding=ParamEncoding.BYTEWISE,
    capabilities=2 | 4 | 8 | 16 | 32 | 8192 | 16384 | 32768,
    first_mode=Mode.HOLD,
    mode_numbers={
        Mode.MANUAL: _px4(3, 0),
        Mode.TAKEOFF: _px4(4, 2),
        Mode.HOLD: _px4(4, 3),
        Mode.MISSION: _px4(4, 4),
        Mode.OFFBOARD: _px4(6, 0),
        Mode.RETURN: _px4(4, 5),
        Mode.LAND: _px4(4, 6),
    },
    base_mode=29,
    manual_base_mode=81,
    boot_base_mode=29,
    boot_status=0,
    cannot=Result.TEMPORARILY_REJECTED,
    bad_mode=Result.DENIED,
    takeoff_from=frozenset(Mode),
    altitude_above_sea=True,
    disarm_landed="COM_DISARM_LAND",
    disarm_unused="COM_DISARM_PRFLT",
    latitude=47.3977432,
    longitude=8.5455940,
    altitude=489.4,
)

ARDUPILOT: Final = Autopilot(
    name="ardupilot",
    number=3,
    encoding=ParamEncoding.C_CAST,
    capabilities=2 | 4 | 8 | 32 | 8192 | 16384 | 32768,
    first_mode=Mode.MANUAL,
    mode_numbers={
        Mode.MANUAL: _ardupilot(0),
        Mode.GUIDED: _ardupilot(4),
        Mode.HOLD: _ardupilot(5),
        Mode.BRAKE: _ardupilot(17),
        Mode.MISSION: _ardupilot(3),
        Mode.RETURN: _ardupilot(6),
        Mode.LAND: _ardupilot(9),
    },
    base_mode=89,
    manual_base_mode=81,
    boot_base_mode=89,
    boot_status=1,
    cannot=Result.FAILED,
    bad_mode=Result.FAILED,
    takeoff_from=frozenset((Mode.GUIDED,)),
    altitude_above_sea=False,
    disarm_landed="SIM_DISARM_LAND",
    disarm_unused="DISARM_DELAY",
    latitude=-35.3632621,
    longitude=149.1652371,
    altitude=584.1,
)

AUTOPILOTS: Final = {autopilot.name: autopilot for autopilot in (PX4, ARDUPILOT)}
