"""Which item of its mission a vehicle flies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from petalbus.handlers.mavlink.missions.talk import CURRENT
from petalbus.handlers.mavlink.wire.dialect import Dialect
from petalbus.handlers.mavlink.wire.framing import Frame

NO_MISSION: Final = 1
NOT_KNOWN: Final = 0xFFFF
"""PX4's total without a mission, and its current item while that is not settled."""

_ITEM_REACHED: Final = 46
_IDS_AT: Final = 6, 10, 14
_FRESH_S: Final = 3.0


class MissionProgress:
    """Which item is flown, and which was reached last; ``on_frame`` must see MISSION_CURRENT and MISSION_ITEM_REACHED.

    Numbers are as the vehicle counts. Times are monotonic seconds.
    """

    msgids = frozenset((CURRENT, _ITEM_REACHED))

    def __init__(self, dialect: Dialect, system: Callable[[], int | None]) -> None:
        """``system()`` is the vehicle's, None while there is none."""
        self._dialect = dialect
        self._system = system
        self.forget()

    def forget(self) -> None:
        """Know nothing again: another mission is there."""
        self.current: int | None = None
        self.current_at = 0.0
        self.total: int | None = None
        self.state = 0
        """MISSION_STATE: 0 not known, 1 no mission, 2 not started, 3 active, 4 paused, 5 complete."""
        self.list_ids = (0, 0, 0)
        """MAVLink's opaque_ids of the lists that the vehicle has, by MAV_MISSION_TYPE; 0 where none was told."""
        self.reached: int | None = None
        self.reached_at = 0.0

    def on_frame(self, frame: Frame) -> None:
        """Look at one frame; others than these two are passed by."""
        if frame.msgid not in self.msgids or frame.compid != 1 or frame.sysid != self._system():
            return
        fields = self._dialect.fields(frame)
        if frame.msgid == _ITEM_REACHED:
            self.reached, self.reached_at = fields["seq"], time.monotonic()
            return
        self.current, self.current_at = fields["seq"], time.monotonic()
        self.total = fields.get("total") or None
        if self.total == NOT_KNOWN:
            self.total = 0  # PX4 without a mission
        self.state = fields.get("mission_state", 0)
        self.list_ids = _list_ids(frame)

    def is_fresh(self, now: float) -> bool:
        """Whether the vehicle told it lately; it does once a second."""
        return self.current is not None and now - self.current_at <= _FRESH_S

    def describe(self) -> dict[str, Any]:
        """For a person or a status record; ``current_age_s`` is the age of the last news."""
        age = None if self.current is None else round(time.monotonic() - self.current_at, 3)
        return {
            "current": self.current,
            "total": self.total,
            "state": self.state,
            "reached": self.reached,
            "current_age_s": age,
        }


def _list_ids(frame: Frame) -> tuple[int, int, int]:
    """MISSION_CURRENT's ids of the three lists, which are not in pymavlink's dialects yet."""
    mission, fence, rally = (int.from_bytes(frame.payload[at : at + 4], "little") for at in _IDS_AT)
    return mission, fence, rally
