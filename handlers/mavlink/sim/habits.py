"""What the two autopilots say without being asked, as recorded from real ones."""

from __future__ import annotations

import math
from typing import Final

from petalbus.handlers.mavlink.sim.autopilot import PX4, Mode
from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.sim.streams import Streams
from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage

_CRITICAL: Final = 2
_INFO: Final = 6
_HOME: Final = 242
_ORIGIN: Final = 49
_HEARTBEAT: Final = 0
_GIMBAL_CONFIGURE: Final = 1001
_GIMBAL_PITCHYAW: Final = 1000
_NAN: Final = math.nan


class Habits:
    """Watches the flight and speaks up: ArduPilot tells arming and new modes at once, PX4 stows a gimbal to land."""

    def __init__(self, flight: Flight, streams: Streams, dialect: Dialect, *, system: int) -> None:
        self._flight = flight
        self._streams = streams
        self._dialect = dialect
        self._system = system
        self._seen = flight.mode, flight.airframe.armed

    def forget(self) -> None:
        """The vehicle boots: what changed with that is no news."""
        self._seen = self._flight.mode, self._flight.airframe.armed

    def spoken(self, now: float) -> list[MavMessage]:
        """What is to be sent now; called fifty times a second. ``now``: seconds since boot."""
        before, self._seen = self._seen, (self._flight.mode, self._flight.airframe.armed)
        said = [self._dialect.message("STATUSTEXT", severity=_CRITICAL, text=text) for text in self._flight.says]
        self._flight.says.clear()
        if before == self._seen:
            return said
        mode, armed = self._seen
        if self._flight.autopilot is PX4:
            return said + (self._stow() if mode is Mode.LAND and before[0] is not Mode.LAND else [])
        if mode is not before[0]:
            self._streams.request(_HEARTBEAT, now)
        if armed is not before[1]:
            if armed:
                self._streams.request(_ORIGIN, now)
                self._streams.request(_HOME, now)
            text = "Arming motors" if armed else "Disarming motors"
            said.append(self._dialect.message("STATUSTEXT", severity=_INFO, text=text))
        return said

    def banner(self) -> list[MavMessage]:
        """What ArduPilot says when somebody fetches its parameters."""
        texts = ("ArduCopter V4.8.0 (simulated)", "Frame: QUAD/PLUS")
        return [self._dialect.message("STATUSTEXT", severity=_INFO, text=text) for text in texts]

    def _stow(self) -> list[MavMessage]:
        """Take control of any gimbal, turn it forward, give it back: commands to its own system."""
        asked = (
            (_GIMBAL_CONFIGURE, (1.0, 1.0, -1.0, -1.0)),
            (_GIMBAL_PITCHYAW, (_NAN, _NAN, _NAN, _NAN, 2.0)),
            (_GIMBAL_CONFIGURE, (-3.0, -3.0, -1.0, -1.0)),
        )
        return [
            self._dialect.message(
                "COMMAND_LONG",
                target_system=self._system,
                target_component=0,
                command=number,
                **{f"param{place}": value for place, value in enumerate(params, 1)},
            )
            for number, params in asked
        ]
