"""The simulated vehicle's mind: mode, arming, and what it does by itself. Pure, like the airframe it steers."""

from __future__ import annotations

import math

from petalbus.handlers.mavlink.sim.airframe import Airframe, LandedState
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot, Mode, Result
from petalbus.handlers.mavlink.sim.params import ParamStore

FORCE = 21196
_MIN_TAKEOFF_CHARGE = 0.1
_MAX_HEIGHT = 10_000.0
_MAX_DISTANCE = 20_000.0
_STANDBY, _ACTIVE, _EMERGENCY = 3, 4, 6


class Flight:
    """Modes and rules of one autopilot around an airframe. Every order answers with a Result."""

    def __init__(self, autopilot: Autopilot, airframe: Airframe, params: ParamStore) -> None:
        self.autopilot = autopilot
        self.airframe = airframe
        self.mode = autopilot.first_mode
        self.params = params
        self.booting = False
        """True for the first moments after a reboot."""
        self.rebooted = False
        self.says: list[str] = []
        """What it is about to say to all."""
        self.refuses_changes = False
        """While it tests a motor it refuses every other test, also the end, as some ArduPlanes do."""
        self._series: tuple[int, float, int] | None = None
        self._tested_for = 0.0

    @property
    def custom_mode(self) -> int:
        """HEARTBEAT.custom_mode."""
        return self.autopilot.mode_numbers[self.mode][0]

    @property
    def base_mode(self) -> int:
        """HEARTBEAT.base_mode."""
        kind = self.autopilot
        if self.booting:
            return kind.boot_base_mode
        base = kind.manual_base_mode if self.mode is Mode.MANUAL else kind.base_mode
        return base | (128 if self.airframe.armed or self.tests_motor else 0)

    @property
    def tests_motor(self) -> bool:
        """True while ArduPilot tests a motor: its motors are armed then, and it says so, but it is not."""
        return self.autopilot is not PX4 and self._series is not None

    @property
    def status(self) -> int:
        """HEARTBEAT.system_status. PX4 is active when it is armed, ArduPilot when it flies."""
        frame = self.airframe
        if self.booting:
            return self.autopilot.boot_status
        if frame.in_air and not frame.armed:
            return _EMERGENCY
        active = frame.armed if self.autopilot is PX4 else frame.in_air
        return _ACTIVE if active else _STANDBY

    def arm(self) -> Result:
        """Arm, unless the battery is empty, it falls, or the mode is one to come down."""
        frame = self.airframe
        if frame.armed:
            return Result.ACCEPTED
        if frame.in_air or frame.battery.remaining < _MIN_TAKEOFF_CHARGE or self.mode in (Mode.LAND, Mode.RETURN):
            return self.autopilot.cannot
        frame.arm()
        self._series = None
        return Result.ACCEPTED

    def disarm(self, *, force: bool) -> Result:
        """Disarm; in the air only by force."""
        if self.airframe.in_air and not force:
            return self.autopilot.cannot
        self.airframe.disarm()
        if not self.airframe.in_air and self.autopilot is PX4 and self.mode is not Mode.MANUAL:
            self.mode = Mode.HOLD  # ArduPilot stays in the mode in which it came down
        return Result.ACCEPTED

    def takeoff(self, altitude: float) -> Result:
        """Climb. NaN is the default height of the autopilot's parameter."""
        if not self.airframe.armed:
            return self.autopilot.cannot
        if self.mode not in self.autopilot.takeoff_from:
            return self.autopilot.cannot
        if math.isnan(altitude):
            height = self.params.number("MIS_TAKEOFF_ALT", 2.5)
        else:
            height = altitude - self.autopilot.altitude if self.autopilot.altitude_above_sea else altitude
        if not 0.0 < height <= _MAX_HEIGHT:
            return Result.DENIED
        if Mode.TAKEOFF in self.autopilot.mode_numbers:
            self.mode = Mode.TAKEOFF
        self.airframe.climb_to(height)
        return Result.ACCEPTED

    def set_mode(self, mode: Mode | None) -> Result:
        """Change the mode; those to come down bring it down."""
        if mode is None:
            return self.autopilot.bad_mode
        if mode is self.mode is Mode.MISSION:
            return Result.ACCEPTED  # a mission goes on when it is started again
        self.mode = mode
        frame = self.airframe
        frame.place = (0.0, 0.0) if mode is Mode.RETURN else (frame.north, frame.east)
        if mode in (Mode.LAND, Mode.RETURN):
            self.airframe.land()
        elif self.airframe.in_air and self.airframe.armed:
            self.airframe.climb_to(self.airframe.height)
        return Result.ACCEPTED

    def go_to(self, north: float, east: float, height: float) -> Result:
        """Fly to a place, metres from home. It changes to the mode for that by itself."""
        frame = self.airframe
        if not (frame.armed and (frame.in_air or self.autopilot is PX4)):
            return self.autopilot.cannot
        if not 0.0 < height <= _MAX_HEIGHT or math.hypot(north, east) > _MAX_DISTANCE:
            return Result.DENIED
        self.mode = Mode.GUIDED if Mode.GUIDED in self.autopilot.mode_numbers else Mode.HOLD
        if not self.within_fence(north, east):
            frame.place = frame.north, frame.east
            self.says.append("Reposition is outside geofence\t")
        elif frame.in_air:  # on the ground PX4 accepts it, too, and stays there
            self.fly_to(north, east, height)
        return Result.ACCEPTED

    def within_fence(self, north: float, east: float) -> bool:
        """Whether PX4 goes to a place. ArduPilot's simulated one has no fence."""
        farthest = self.params.number("GF_MAX_HOR_DIST", 0.0) if self.autopilot is PX4 else 0.0
        return farthest <= 0.0 or math.hypot(north, east) <= farthest

    def test_motor(self, motor: int, seconds: float, count: int = 1) -> Result:
        """Turn one motor: PX4 any number at once and 3 s at most; ArduPilot one, and then so many in all, with rests of
        half the time between them. No time ends it.
        """
        frame = self.airframe
        if frame.armed:
            return Result.DENIED if self.autopilot is PX4 else self.autopilot.cannot
        if self.autopilot is PX4:
            frame.turning.pop(motor, None)
            if seconds > 0.0:
                frame.turning[motor] = min(seconds, 3.0)
            return Result.ACCEPTED
        if self.refuses_changes and self.tests_motor:
            return self.autopilot.cannot
        self._series = (motor, seconds, max(1, count)) if seconds > 0.0 else None
        self._tested_for = 0.0
        self._turn_next()
        return Result.ACCEPTED

    def _turn_next(self) -> None:
        """ArduPilot's test: which motor turns now."""
        turning = self.airframe.turning
        turning.clear()
        if self._series is None:
            return
        motor, seconds, count = self._series
        done, since = divmod(self._tested_for, 1.5 * seconds)
        if self._tested_for >= (1.5 * count - 0.5) * seconds:
            self._series = None
        elif since < seconds:
            turning[motor + int(done)] = seconds - since

    def fly_to(self, north: float, east: float, height: float) -> None:
        """Head for a place, metres from home, in whatever mode it is."""
        frame = self.airframe
        frame.place = north, east
        frame.climb_to(height)
        if frame.height > 0.0:
            frame.landed = LandedState.IN_AIR

    def step(self, seconds: float) -> None:
        """Let time pass: move, end a takeoff in hold, disarm by itself on the ground."""
        frame = self.airframe
        frame.step(seconds)
        if self._series is not None:
            self._tested_for += seconds
            self._turn_next()
        if self.mode is Mode.TAKEOFF and frame.in_air and frame.height >= frame.target - 0.1:
            self.mode = Mode.HOLD
        if frame.armed and not frame.in_air:
            name = self.autopilot.disarm_landed if frame.flew else self.autopilot.disarm_unused
            limit = self.params.number(name, 10.0)
            if 0 < limit < frame.grounded_for:
                self.disarm(force=False)
        if frame.battery.remaining <= 0.0 and frame.in_air and self.mode is not Mode.LAND:
            self.set_mode(Mode.LAND)
