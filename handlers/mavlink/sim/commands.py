"""What the simulated vehicle does with COMMAND_LONG and COMMAND_INT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.sim.autopilot import Mode, Result
from petalbus.handlers.mavlink.sim.flight import FORCE, Flight
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.pilot import start
from petalbus.handlers.mavlink.sim.streams import METRES_PER_DEGREE, Streams
from petalbus.handlers.mavlink.wire.dialect import Dialect
from petalbus.handlers.mavlink.wire.framing import Frame

COMMAND_INT_ID: Final = 75
COMMAND_LONG_ID: Final = 76
_AUTOPILOT_COMPONENT: Final = 1
_AUTOPILOT_VERSION: Final = 148
_HOME_POSITION: Final = 242
_ABOVE_HOME: Final = (3, 6)
_AS_IT_IS: Final = -1
_MOTORS: Final = (1, 2, 3, 4)
_LONGEST_TEST_S: Final = 600.0
_PX4_FUNCTIONS: Final = 1100
"""PX4 also takes its own numbers of output functions."""


class Received(NamedTuple):
    """A command, from whichever message."""

    number: int
    params: tuple[float, ...]
    confirmation: int
    system: int
    component: int


class Answer(NamedTuple):
    """What became of a command. ``silent``: the sender is not told."""

    command: Received
    result: Result
    silent: bool


Obey = Callable[[Sequence[float]], Result]


class Commands:
    """Obeys commands. ``silent`` are the MAV_CMD numbers that are carried out and never acknowledged."""

    def __init__(
        self,
        flight: Flight,
        streams: Streams,
        dialect: Dialect,
        *,
        system: int,
        silent: frozenset[int],
        clock: Callable[[], float],
        reboot: Callable[[], None],
        report_interval: Callable[[int, int], None],
        missions: Missions | None = None,
    ) -> None:
        self._flight = flight
        self._streams = streams
        self._dialect = dialect
        self._system = system
        self._silent = silent
        self._clock = clock
        self._reboot = reboot
        self._report_interval = report_interval
        self.without: frozenset[int] = frozenset()
        """MAV_CMD numbers that this vehicle does not know."""
        self._missions = missions
        self._asked: int | None = None
        self._frame: int | None = None
        self._table: dict[int, Obey] = {
            20: lambda _: flight.set_mode(Mode.RETURN),
            21: lambda _: flight.set_mode(Mode.LAND),
            22: lambda params: flight.takeoff(params[6]),
            176: self._set_mode,
            178: self._change_speed,
            192: self._reposition,
            209: self._ardupilot_motor,
            310: self._px4_motor,
            224: self._set_current,
            246: self._obey_reboot,
            410: lambda _: self._request(_HOME_POSITION),
            300: self._start_mission,
            400: self._arm_disarm,
            510: self._get_interval,
            511: self._set_interval,
            512: lambda params: self._request(params[0]),
            520: lambda params: self._request(_AUTOPILOT_VERSION) if params[0] == 1 else Result.DENIED,
            526: self._format,
        }

    def receive(self, frame: Frame) -> Answer | None:
        """Carry out the command in ``frame``; None when it is for somebody else.

        A message that a command asks for leaves before the acknowledgement with PX4: who starts to listen only when
        the acknowledgement is in misses it. ArduPilot acknowledges first: see ``send_asked``.
        """
        fields = self._dialect.fields(frame)
        if fields["target_system"] not in (0, self._system):
            return None
        if fields["target_component"] not in (0, _AUTOPILOT_COMPONENT):
            return None
        command = _read(frame, fields)
        self._frame = fields["frame"] if frame.msgid == COMMAND_INT_ID else None
        obey = None if command.number in self.without else self._table.get(command.number)
        result = Result.UNSUPPORTED if obey is None else obey(command.params)
        return Answer(command, result, command.number in self._silent)

    def _arm_disarm(self, params: Sequence[float]) -> Result:
        if params[0] == 1:
            return self._flight.arm()
        if params[0] == 0:
            return self._flight.disarm(force=params[1] == FORCE)
        return Result.DENIED

    def _set_mode(self, params: Sequence[float]) -> Result:
        base, main, sub = (_whole(value) for value in params[:3])
        if base is None or main is None or sub is None or not base & 1:
            return Result.DENIED
        return self._flight.set_mode(self._flight.autopilot.mode_of(main, sub))

    def _reposition(self, params: Sequence[float]) -> Result:
        """DO_REPOSITION as COMMAND_INT alone: as floats the degrees would be metres off."""
        autopilot = self._flight.autopilot
        if self._frame is None or not all(map(math.isfinite, params[4:7])):
            return Result.DENIED
        height = params[6] if self._frame in _ABOVE_HOME else params[6] - autopilot.altitude
        north = (params[4] / 1e7 - autopilot.latitude) * METRES_PER_DEGREE
        east = (params[5] / 1e7 - autopilot.longitude) * METRES_PER_DEGREE
        result = self._flight.go_to(north, east * math.cos(math.radians(autopilot.latitude)), height)
        if result is Result.ACCEPTED:  # ArduCopter does not look at the speed, PX4 does
            speed = params[0] if autopilot.name == "px4" and params[0] > 0.0 else None
            self._flight.airframe.limit_speed(speed)
        return result

    def _change_speed(self, params: Sequence[float]) -> Result:
        """DO_CHANGE_SPEED: of the flight to the present place."""
        if not params[1] > 0.0:
            return Result.DENIED if self._flight.autopilot.name == "px4" else Result.FAILED
        self._flight.airframe.limit_speed(params[1])
        return Result.ACCEPTED

    def _set_current(self, params: Sequence[float]) -> Result:
        """DO_SET_MISSION_CURRENT: PX4 denies what is not in the list, for ArduPilot it failed."""
        number = _whole(params[0])
        if self._missions is None or number is None:
            return Result.DENIED
        if number == _AS_IT_IS or self._missions.set_current(number):
            return Result.ACCEPTED
        return Result.DENIED if self._flight.autopilot.name == "px4" else Result.FAILED

    def _start_mission(self, _params: Sequence[float]) -> Result:
        return Result.UNSUPPORTED if self._missions is None else start(self._flight, self._missions)

    def _ardupilot_motor(self, params: Sequence[float]) -> Result:
        """As ArduCopter: of a time that is none it makes the longest one."""
        seconds = params[3] if 0.0 <= params[3] <= _LONGEST_TEST_S else _LONGEST_TEST_S
        count = int(params[4]) if 1.0 <= params[4] <= 255.0 else 1
        return self._motor("ardupilot", params[0], params[2] / 100.0, seconds, count)

    def _px4_motor(self, params: Sequence[float]) -> Result:
        number = params[4] - _PX4_FUNCTIONS if params[4] > _PX4_FUNCTIONS else params[4]
        return self._motor("px4", number, params[0], params[1])

    def _motor(self, autopilot: str, number: float, throttle: float, seconds: float, count: int = 1) -> Result:
        if self._flight.autopilot.name != autopilot:
            return Result.UNSUPPORTED
        right = number in _MOTORS and (math.isnan(throttle) or 0.0 <= throttle <= 1.0)
        if not right or not math.isfinite(seconds):
            return self._flight.autopilot.cannot
        return self._flight.test_motor(int(number), seconds, count)

    def _obey_reboot(self, params: Sequence[float]) -> Result:
        autopilot = self._flight.autopilot
        if autopilot.name == "px4" or self._flight.airframe.armed:
            return Result.DENIED if autopilot.name == "px4" else autopilot.cannot
        if params[0] == 1:
            self._reboot()
        return Result.ACCEPTED

    def _format(self, params: Sequence[float]) -> Result:
        """ArduPilot formats its first storage, and only that; PX4 knows the command for cameras alone."""
        if self._flight.autopilot.name == "px4" or tuple(params[:2]) != (1, 1):
            return Result.UNSUPPORTED
        return self._flight.autopilot.cannot if self._flight.airframe.armed else Result.ACCEPTED

    def _get_interval(self, params: Sequence[float]) -> Result:
        msgid = _whole(params[0])
        if msgid is None:
            return Result.DENIED
        self._report_interval(msgid, self._streams.interval_us(msgid))
        return Result.ACCEPTED

    def _set_interval(self, params: Sequence[float]) -> Result:
        msgid = _whole(params[0])
        known = msgid is not None and self._streams.set_interval(msgid, params[1], self._clock())
        return Result.ACCEPTED if known else Result.DENIED

    def _request(self, wanted: float) -> Result:
        msgid = _whole(wanted)
        if msgid is None or not self._streams.knows(msgid):
            return Result.DENIED if self._flight.autopilot.name == "px4" else Result.FAILED
        if self._flight.autopilot.name == "px4":
            self._streams.request(msgid, self._clock())
        elif not self._flight.booting:  # while it boots, ArduPilot acknowledges and sends nothing
            self._asked = msgid
        return Result.ACCEPTED

    def send_asked(self) -> None:
        """Send the message that the last command asked for, where that was left for after the acknowledgement."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._streams.request(asked, self._clock())


def _whole(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def _read(frame: Frame, fields: dict[str, Any]) -> Received:
    if frame.msgid == COMMAND_INT_ID:
        params = (*(fields[f"param{index}"] for index in range(1, 5)), fields["x"], fields["y"], fields["z"])
        confirmation = 0
    else:
        params = tuple(fields[f"param{index}"] for index in range(1, 8))
        confirmation = fields["confirmation"]
    return Received(fields["command"], params, confirmation, frame.sysid, frame.compid)
