"""How the simulated vehicle flies its mission: takeoff, waypoints, return and landing; it passes other items by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from petalbus.handlers.mavlink.missions.items import MissionItem
from petalbus.handlers.mavlink.sim.autopilot import PX4, Mode, Result
from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.streams import METRES_PER_DEGREE

_WAYPOINT, _RETURN, _LAND, _TAKEOFF = 16, 20, 21, 22
_ABOVE_HOME: Final = (3, 6)
_NEAR_M: Final = 1.5
_NOT_STARTED, _ACTIVE, _COMPLETE = 2, 3, 5
_IN_MODE, _NOT_IN_MODE = 1, 2


class Pilot:
    """Steers the flight by the mission while its mode is MISSION. ``reached`` is told the number of each item."""

    def __init__(self, flight: Flight, missions: Missions, *, reached: Callable[[int], None]) -> None:
        self._flight = flight
        self._missions = missions
        self._reached = reached
        self._list: list[MissionItem] | None = None
        self._under_way: int | None = None
        self._complete = False
        missions.told = self.told

    def told(self) -> tuple[int, int]:
        """MISSION_CURRENT's mission_state and mission_mode, as PX4 tells them: each flight counts as the mission's."""
        frame = self._flight.airframe
        landed = self._complete or (frame.flew and not frame.in_air)
        state = _COMPLETE if landed else _ACTIVE if frame.armed else _NOT_STARTED
        return state, _IN_MODE if frame.armed else _NOT_IN_MODE

    def step(self) -> None:
        """Called fifty times a second."""
        flight, items = self._flight, self._missions.items[0]
        if items is not self._list:
            self._list, self._complete, self._under_way = items, False, None
            flight.airframe.flew = flight.airframe.flew and flight.airframe.in_air
        if flight.mode is not Mode.MISSION or not flight.airframe.armed or not items or self._complete:
            self._under_way = None
            return
        first = 0 if flight.autopilot is PX4 else 1  # ArduPilot's item 0 is home
        number = max(first, self._missions.current)
        if number >= len(items):
            self._complete = True
        elif number != self._under_way:
            self._begin(items[number])
            self._under_way = number
        elif self._is_there(items[number]):
            self._reached(number)
            if number + 1 < len(items):
                self._missions.current = number + 1
            else:
                self._complete = True

    def _begin(self, item: MissionItem) -> None:
        flight, frame = self._flight, self._flight.airframe
        if item.command == _TAKEOFF:
            frame.climb_to(self._height(item))
        elif item.command == _WAYPOINT:
            flight.fly_to(*self._place(item), self._height(item))
        elif item.command == _LAND:
            frame.land()
        elif item.command == _RETURN:
            frame.place = (0.0, 0.0)
            frame.land()

    def _is_there(self, item: MissionItem) -> bool:
        frame = self._flight.airframe
        if item.command in (_LAND, _RETURN):
            return not frame.in_air
        if item.command not in (_TAKEOFF, _WAYPOINT):
            return True
        high = abs(frame.height - self._height(item)) < _NEAR_M
        if item.command == _TAKEOFF:
            return high
        north, east = self._place(item)
        return high and math.hypot(frame.north - north, frame.east - east) < _NEAR_M

    def _height(self, item: MissionItem) -> float:
        height = item.z if item.frame in _ABOVE_HOME else item.z - self._flight.autopilot.altitude
        return max(_NEAR_M, height) if math.isfinite(height) else _NEAR_M

    def _place(self, item: MissionItem) -> tuple[float, float]:
        home, frame = self._flight.autopilot, self._flight.airframe
        if not item.x and not item.y:
            return frame.place  # ArduPilot's way to say: where it is
        north = (item.x / 1e7 - home.latitude) * METRES_PER_DEGREE
        east = (item.y / 1e7 - home.longitude) * METRES_PER_DEGREE * math.cos(math.radians(home.latitude))
        return north, east


def start(flight: Flight, missions: Missions) -> Result:
    """MAV_CMD_MISSION_START: PX4 arms by itself and flies. ArduPilot takes it, and flies when it is armed."""
    if not missions.items[0]:
        return Result.DENIED if flight.autopilot is PX4 else flight.autopilot.cannot
    before = flight.mode
    result = flight.set_mode(Mode.MISSION)
    if flight.autopilot is PX4 and flight.arm() is not Result.ACCEPTED:
        flight.set_mode(before)
        return flight.autopilot.cannot
    return result
