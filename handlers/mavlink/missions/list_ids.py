"""The ids (MAVLink's opaque_id) that were heard of a vehicle's lists: what a new one may prove."""

from __future__ import annotations

from collections import deque
from typing import Final

from petalbus.handlers.mavlink.missions.items import MissionKind

_MOST: Final = 64


class ListIds:
    """The last ids heard of one vehicle, and of which kinds the list that it has now is among them.

    An acknowledgement may come late or twice. So an id proves that a list is a new one only when it was never
    heard before, and when that of the list before it was.
    """

    def __init__(self) -> None:
        self._heard: deque[int] = deque(maxlen=_MOST)
        self._current: dict[MissionKind, int] = {}

    @property
    def used(self) -> bool:
        """This vehicle's lists have ids, as far as is known."""
        return bool(self._heard)

    def hear(self, list_id: int) -> bool:
        """Take note of an id; True when it is a new one. 0 is none."""
        if not list_id:
            return False
        new = list_id not in self._heard
        if not new:
            self._heard.remove(list_id)  # to the end: ids go in the order in which they were heard last
        self._heard.append(list_id)
        return new

    def counted(self, kind: MissionKind, list_id: int) -> None:
        """The vehicle told which list of this kind it has now; 0: it has no id."""
        self.hear(list_id)
        self._current[kind] = list_id

    def changing(self, kind: MissionKind) -> None:
        """The vehicle's list of this kind may become another one, whose id may be lost on its way."""
        self._current.pop(kind, None)

    def knows_current(self, kind: MissionKind) -> bool:
        """The list that the vehicle had when we last spoke of this kind has no id that was not heard."""
        return kind in self._current

    def current(self, kind: MissionKind) -> int:
        """The id of the list that the vehicle had when we last spoke of this kind; 0: none, or not known."""
        return self._current.get(kind, 0)
