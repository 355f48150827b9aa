"""What the simulated vehicle keeps of missions, fences and rally points, and which items it takes.

PX4 takes all items at once, and has an id for each list; it takes commands without a place in a frame of their own
alone. ArduPilot takes each item as it comes, and makes a mission's item 0 home.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final

from petalbus.handlers.mavlink.missions.items import GLOBAL_FRAMES, MissionItem
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.mission_keeping import as_ardupilot, as_px4

PX4_MOST: Final = (2000, 64, 32)
ARDUPILOT_MOST: Final = (724, 84, 10)
"""Items at most: mission, fence, rally points."""

_ID_LAYOUT: Final = struct.Struct("<BHB4fiif")
_FENCE: Final = frozenset((5000, 5001, 5002, 5003, 5004))
_RALLY: Final = frozenset((5100,))
_ARDUPILOT_COMMANDS: Final = (
    frozenset(
        (16, 17, 18, 19, 20, 21, 22, 82, 84, 85, 92, 93, 94, 112, 113, 114, 115, 177, 178, 179, 181, 183, 195, 201)
    )
    | frozenset((203, 206, 530, 2000, 2500, 2501)),
    _FENCE,
    _RALLY,
)
_IN_LOCATION: Final = frozenset((16, 17, 18, 19, 21, 22, 82, 84, 85, 92, 94, 179, 195, 201))
_PX4_PLACED: Final = frozenset((16, 17, 19, 21, 22, 31, 80, 84, 85, 195, 201, 212, 400, 4501)), _FENCE, _RALLY
_PX4_PLACELESS: Final = frozenset(
    (20, 80, 93, 112, 114, 177, 178, 179, 187, 189, 196, 197, 200, 201, 203, 204, 205, 206, 211, 212, 214, 400, 530)
) | frozenset((532, 534, 1000, 1001, 2000, 2001, 2003, 2500, 2501, 3000, 42600))
_PX4_FRAMES: Final = frozenset((0, 3, 5, 6))


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
        self.settled = True
        """Whether PX4 tells which that is: not where a new mission marks none, until that was looked at."""
        self.most = PX4_MOST if autopilot is PX4 else ARDUPILOT_MOST
        self._autopilot = autopilot

    def clear(self, kind: int) -> None:
        """Forget a list."""
        self.items[kind] = []
        self.ids[kind] = 0
        if kind == 0 and self._autopilot is PX4:
            self.current = 0

    def begin(self, items: list[MissionItem]) -> None:
        """A new mission begins at the item marked so. PX4 goes on, with none, at the number that it is at.

        So what comes after a flight begins in its middle, or at its end.
        """
        marked = [item.seq for item in items if item.current]
        self.settled = bool(marked) or not items or self._autopilot is not PX4
        if marked:
            self.current = marked[-1]
        else:
            self.current = max(0, min(self.current, len(items) - 1)) if self._autopilot is PX4 else -1

    def replace(self, kind: int, items: list[MissionItem]) -> bool:
        """PX4 takes a list when all of it is there, False when it has that one. The id is of the items as they came."""
        new = _list_id(items)
        if new == self.ids[kind] and len(items) == len(self.items[kind]):
            return False
        self.items[kind] = [as_px4(item) for item in items]
        self.ids[kind] = new
        return True

    def replace_fence(self, items: list[MissionItem]) -> None:
        """ArduPilot takes a fence when all of it is there."""
        self.items[1] = [as_ardupilot(1, item) for item in items]

    def judge(self, item: MissionItem, kind: int) -> MissionResult:
        """Whether the vehicle takes an item."""
        refusal = _judge_as_px4(item, kind) if self._autopilot is PX4 else _judge_as_ardupilot(item, kind)
        if refusal is not MissionResult.ACCEPTED:
            return refusal
        if item.frame in GLOBAL_FRAMES and abs(item.x) > 900_000_000:
            return MissionResult.INVALID_PARAM5_X
        if item.command in (5001, 5002) and not item.param1 >= 3:
            return MissionResult.ERROR
        return MissionResult.ACCEPTED

    def keep(self, kind: int, seq: int, item: MissionItem) -> None:
        """Keep an item as ArduPilot does, at once; a mission's first one is home."""
        kept = as_ardupilot(kind, item)
        if kind == 0 and seq == 0:
            home = self._autopilot
            x, y = round(home.latitude * 1e7), round(home.longitude * 1e7)
            kept = MissionItem(0, 0, 16, x=x, y=y, z=home.altitude)
        self.items[kind][seq : seq + 1] = [kept]


def _judge_as_px4(item: MissionItem, kind: int) -> MissionResult:
    if item.frame == 2 and kind == 0:
        known = item.command in _PX4_PLACELESS
    elif item.frame in _PX4_FRAMES:
        known = item.command in _PX4_PLACED[kind]
    else:
        return MissionResult.UNSUPPORTED_FRAME
    return MissionResult.ACCEPTED if known else MissionResult.UNSUPPORTED


def _judge_as_ardupilot(item: MissionItem, kind: int) -> MissionResult:
    if item.command not in _ARDUPILOT_COMMANDS[kind]:
        return MissionResult.UNSUPPORTED
    if kind == 0:
        right = item.command not in _IN_LOCATION or item.frame == 2 or item.frame in GLOBAL_FRAMES
    else:
        right = item.frame in (GLOBAL_FRAMES if kind == 1 else (3, 6))
    return MissionResult.ACCEPTED if right else MissionResult.UNSUPPORTED_FRAME


def _list_id(items: list[MissionItem]) -> int:
    """PX4's own: a CRC-32 without its usual inversions over the items as they came."""
    state = 0
    for item in items:
        values = (*item.params, item.x, item.y, item.z)
        data = _ID_LAYOUT.pack(item.frame, item.command, item.autocontinue, *values)
        state = ~zlib.crc32(data, ~state & 0xFFFFFFFF) & 0xFFFFFFFF
    return state
