"""How the simulated vehicle moves. Pure: ``step`` takes the time that passed. North, east, down in metres."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

GRAVITY: Final = 9.81
CLIMB_SPEED: Final = 2.0
SINK_SPEED: Final = 1.5
TOUCHDOWN_SPEED: Final = 0.7
_TOUCHDOWN_HEIGHT: Final = 2.0
_ACCELERATION: Final = 3.0
_IDLE_AMPERES: Final = 0.6
_ARMED_AMPERES: Final = 3.0
_HOVER_AMPERES: Final = 16.0
_CELLS: Final = 4
_FULL_CELL: Final = 4.2
_EMPTY_CELL: Final = 3.5
_OHM: Final = 0.015
_FAR: Final = 13.0
_DRAG: Final = 0.8
_PULL: Final = 0.3


class LandedState(IntEnum):
    """MAV_LANDED_STATE."""

    ON_GROUND = 1
    IN_AIR = 2
    TAKEOFF = 3
    LANDING = 4


@dataclass(slots=True)
class Battery:
    """A four-cell battery. Charge in mAh, current in A."""

    capacity: float = 5200.0
    consumed: float = 0.0
    current: float = _IDLE_AMPERES

    @property
    def remaining(self) -> float:
        """What is left, 0 to 1."""
        return max(0.0, 1.0 - self.consumed / self.capacity)

    @property
    def cell_volts(self) -> float:
        """The voltage of one cell under the present load."""
        resting = _EMPTY_CELL + (_FULL_CELL - _EMPTY_CELL) * self.remaining
        return resting - self.current * _OHM / _CELLS

    @property
    def volts(self) -> float:
        """The whole battery's voltage."""
        return self.cell_volts * _CELLS

    def drain(self, seconds: float) -> None:
        """Use the present current for a while."""
        self.consumed = min(self.capacity, self.consumed + self.current * seconds / 3.6)


@dataclass(slots=True)
class Airframe:
    """A multicopter. ``rng`` makes the wind and the noise."""

    rng: random.Random
    battery: Battery = field(default_factory=Battery)
    armed: bool = False
    landed: LandedState = LandedState.ON_GROUND
    north: float = 0.0
    east: float = 0.0
    height: float = 0.0
    v_north: float = 0.0
    v_east: float = 0.0
    climb: float = 0.0
    roll: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.3
    rates: tuple[float, float, float] = (0.0, 0.0, 0.0)
    target: float = 0.0
    place: tuple[float, float] = (0.0, 0.0)
    """Where it wants to be, north and east."""
    grounded_for: float = 0.0
    """Seconds on the ground since armed or landed: what auto-disarm counts."""
    flew: bool = False
    """True from lift-off until the next arming."""
    far: float = _FAR
    """How far away a place pulls with full force, metres: that makes the speed."""
    turning: dict[int, float] = field(default_factory=dict)
    """The motors that a test turns, and for how many seconds yet. Arming ends it, disarming does not."""

    @property
    def in_air(self) -> bool:
        """True when it does not stand on the ground."""
        return self.landed is not LandedState.ON_GROUND

    def arm(self) -> None:
        """Let the motors turn."""
        self.armed = True
        self.turning.clear()
        self.flew = False
        self.grounded_for = 0.0

    def disarm(self) -> None:
        """Stop the motors; in the air it falls."""
        self.armed = False

    def limit_speed(self, speed: float | None) -> None:
        """Fly to places at this many metres a second at most; None: as fast as it can."""
        self.far = _FAR if speed is None else min(_FAR, speed * _DRAG / _PULL)

    def climb_to(self, height: float) -> None:
        """Fly to a height above the take-off place, in metres."""
        self.target = height
        self.landed = LandedState.TAKEOFF if self.height < height else LandedState.IN_AIR

    def land(self) -> None:
        """Come down where it is."""
        if self.in_air:
            self.landed = LandedState.LANDING

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.turning = {motor: left - seconds for motor, left in self.turning.items() if left > seconds}
        if self.in_air:
            self._fly(seconds)
        else:
            self.v_north = self.v_east = self.climb = 0.0
            self.grounded_for += seconds
        self._tilt(seconds)
        self.battery.current = self._amperes()
        self.battery.drain(seconds)

    def _fly(self, seconds: float) -> None:
        if self.armed:
            wanted = self._wanted_climb()
            change = _ACCELERATION * seconds
            self.climb += min(change, max(-change, wanted - self.climb))
        else:
            self.climb -= GRAVITY * seconds
        gust = self.rng.gauss
        north, east = self._pull(self.place[0] - self.north), self._pull(self.place[1] - self.east)
        self.v_north += (-_DRAG * self.v_north + north) * seconds + gust(0.0, 0.02)
        self.v_east += (-_DRAG * self.v_east + east) * seconds + gust(0.0, 0.02)
        self.north += self.v_north * seconds
        self.east += self.v_east * seconds
        self.height += self.climb * seconds
        if self.height > 0.3:
            self.flew = True
        if self.landed is LandedState.TAKEOFF and self.height >= self.target - 0.1:
            self.landed = LandedState.IN_AIR
        if self.height <= 0.0 and self.climb <= 0.0:
            self.height = self.climb = 0.0
            self.landed = LandedState.ON_GROUND
            self.grounded_for = 0.0

    def _wanted_climb(self) -> float:
        if self.landed is LandedState.LANDING:
            return -TOUCHDOWN_SPEED if self.height < _TOUCHDOWN_HEIGHT else -SINK_SPEED
        return min(CLIMB_SPEED, max(-SINK_SPEED, 1.2 * (self.target - self.height)))

    def _tilt(self, seconds: float) -> None:
        noise = 0.004 if self.in_air else 0.0004
        roll = 0.08 * self.v_east + self.rng.gauss(0.0, noise)
        pitch = -0.08 * self.v_north + self.rng.gauss(0.0, noise)
        yaw = math.remainder(self.yaw + self.rng.gauss(0.0, noise / 10), math.tau)
        if seconds > 0:
            turned = math.remainder(yaw - self.yaw, math.tau)
            self.rates = ((roll - self.roll) / seconds, (pitch - self.pitch) / seconds, turned / seconds)
        self.roll, self.pitch, self.yaw = roll, pitch, yaw

    def _amperes(self) -> float:
        if not self.armed:
            return _IDLE_AMPERES + len(self.turning)
        if not self.in_air:
            return _ARMED_AMPERES
        return max(_ARMED_AMPERES, _HOVER_AMPERES + 3.0 * self.climb)

    def _pull(self, distance: float) -> float:
        """The acceleration towards a place; with the air's drag it makes 5 m/s at most."""
        return _PULL * max(-self.far, min(self.far, distance))
