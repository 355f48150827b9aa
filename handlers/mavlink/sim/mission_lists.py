"""What the simulated vehicle keeps of missions, fences and rally points, and which items it takes.

PX4 keeps items as they came, all at once, and has an id for each list. ArduPilot keeps each as it comes, in its own
frames and without NaN, and makes a mission's item 0 home.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from enum import IntEnum
from typing import Final

from petalbus.handlers.mavlink.missions.items import GLOBAL_FRAMES, MissionItem
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot

PX4_MOST: Final = (2000, 64, 32)
ARDUPILOT_MOST: Final = (724, 84, 10)
"""Items at most: mission, fence, rally points."""

_ID_LAYOUT: Final = struct.Struct("<BHB4fiif")
_COMMANDS: Final = (
    frozenset(
        (16, 17, 18, 19, 20, 21, 22, 82, 84, 85, 92, 93, 94, 112, 113, 114, 115, 177, 178, 179, 181, 183, 195, 201)
    )
    | frozenset((203, 206, 530, 2000, 2500, 2501)),
    frozenset((5000, 5001, 5002, 5003, 5004)),
    frozenset((5100,)),
)
_INT_FRAMES: Final = {5: 0, 6: 3, 11: 10}


class MissionResult(IntEnum):
    """MAV_MISSION_RESULT."""

    ACCEPTED = 0
    ERROR = 1
    UNSUPPORTED_FRAME = 2
    UNSUPPORTED = 3
    NO_SPACE = 4
    INVALID = 5
    INVALID_PARAM5_X = 10
    INVALID_SEQUENCE = 13
    DENIED = 14
    OPERATION_CANCELLED = 15


class MissionLists:
    """Three lists, in the order of MAV_MISSION_TYPE."""

    def __init__(self, autopilot: Autopilot) -> None:
        self.items: list[list[MissionItem]] = [[], [], []]
        """Mission, fence, rally points, as they would be sent."""
        self.ids = [0, 0, 0]
        """PX4's ids of the lists; 0 where there is none."""
        self.current = -1
        """The item to be flown; -1: from the first on."""
        self.most = PX4_MOST if autopilot is PX4 else ARDUPILOT_MOST
        self._home = autopilot

    def clear(self, kind: int) -> None:
        """Forget a list."""
        self.items[kind] = []
        self.ids[kind] = 0

    def replace(self, kind: int, items: list[MissionItem]) -> None:
        """PX4 takes a list when all of it is there."""
        self.items[kind] = items
        self.ids[kind] = _list_id(items)

    def judge(self, item: MissionItem, kind: int) -> MissionResult:
        """Whether the vehicle takes an item."""
        if item.frame not in GLOBAL_FRAMES and item.frame != 2:
            return MissionResult.UNSUPPORTED_FRAME
        if item.command not in _COMMANDS[kind]:
            return MissionResult.UNSUPPORTED
        if item.frame in GLOBAL_FRAMES and abs(item.x) > 900_000_000:
            return MissionResult.INVALID_PARAM5_X
        if item.command in (5001, 5002) and not item.param1 >= 3:
            return MissionResult.ERROR
        return MissionResult.ACCEPTED

    def keep(self, kind: int, seq: int, item: MissionItem) -> None:
        """Keep an item as ArduPilot does: no NaN, other frames, home first."""
        zeroed = {f"param{at}": 0.0 for at, value in enumerate(item.params, 1) if math.isnan(value)}
        frame = 0 if item.frame == 2 else _INT_FRAMES.get(item.frame, item.frame)
        kept = replace(replace(item, **zeroed), frame=frame, current=False, autocontinue=True)  # type: ignore[arg-type]  # only floats
        if kind == 0 and seq == 0:
            home = self._home
            x, y = round(home.latitude * 1e7), round(home.longitude * 1e7)
            kept = MissionItem(0, 0, 16, x=x, y=y, z=home.altitude)
        self.items[kind][seq : seq + 1] = [kept]


def _list_id(items: list[MissionItem]) -> int:
    """PX4's own: a CRC-32 without its usual inversions over the items as they came."""
    state = 0
    for item in items:
        values = (*item.params, item.x, item.y, item.z)
        data = _ID_LAYOUT.pack(item.frame, item.command, item.autocontinue, *values)
        state = ~zlib.crc32(data, ~state & 0xFFFFFFFF) & 0xFFFFFFFF
    return state
