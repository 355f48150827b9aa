"""The simulated vehicle's telemetry: what each message says, and how often it goes out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, Final

from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage

METRES_PER_DEGREE: Final = 111_319.5
_UNKNOWN_U16: Final = 65535
_FIX_3D: Final = 3
_SENSORS: Final = 0b11_0000_0010_1111  # gyro, accelerometer, compass, pressure, GPS, attitude control
_MULTICOPTER: Final = 2
_RARE_S: Final = 0.5
_CLOCK_KNOWN_AFTER_S: Final = 5.0

RATES: Final = {
    "HEARTBEAT": 1.0,
    "ATTITUDE": 50.0,
    "ATTITUDE_QUATERNION": 10.0,
    "LOCAL_POSITION_NED": 10.0,
    "GLOBAL_POSITION_INT": 10.0,
    "GPS_RAW_INT": 5.0,
    "EXTENDED_SYS_STATE": 2.0,
    "SYS_STATUS": 1.0,
    "BATTERY_STATUS": 1.0,
    "SYSTEM_TIME": 1.0,
    "TIMESYNC": 1.0,
    "HOME_POSITION": 0.5,
}
"""Messages a second, as long as nobody asks for another rate; fewer than a real PX4 sends."""

QUIET_RATES: Final = {"HEARTBEAT": 1.0, "TIMESYNC": 0.1}
"""The same of an ArduPilot whose streams nobody has asked for."""

GROUPS: Final = {
    2: ("SYS_STATUS", "GPS_RAW_INT"),
    6: ("GLOBAL_POSITION_INT", "LOCAL_POSITION_NED"),
    10: ("ATTITUDE",),
    11: ("VFR_HUD",),
    12: ("SYSTEM_TIME", "BATTERY_STATUS"),
}
"""MAV_DATA_STREAM -> what an ArduPilot sends of it."""

ALL_STREAMS: Final = tuple(name for name in RATES if name not in ("HEARTBEAT", "TIMESYNC"))

_Fields = dict[str, Any]


class Streams:
    """Builds and paces the messages. Times are seconds since the vehicle booted."""

    def __init__(
        self,
        flight: Flight,
        dialect: Dialect,
        *,
        rng: random.Random,
        send: Callable[[MavMessage], None],
        quiet: bool = False,
    ) -> None:
        """``quiet``: only what is asked for."""
        self._rates = QUIET_RATES if quiet else RATES
        self._flight = flight
        self._dialect = dialect
        self._rng = rng
        self._send = send
        self._builders: dict[str, Callable[[], _Fields]] = {
            "HEARTBEAT": self._heartbeat,
            "ATTITUDE": self._attitude,
            "ATTITUDE_QUATERNION": self._quaternion,
            "LOCAL_POSITION_NED": self._local_position,
            "GLOBAL_POSITION_INT": self._global_position,
            "GPS_RAW_INT": self._gps,
            "EXTENDED_SYS_STATE": self._extended_state,
            "SYS_STATUS": self._system_status,
            "BATTERY_STATUS": self._battery,
            "SYSTEM_TIME": self._system_time,
            "HOME_POSITION": self._home,
            "AUTOPILOT_VERSION": self._version,
            "TIMESYNC": self._timesync,
            "VFR_HUD": self._hud,
            "ALTITUDE": self._altitude,
            "GPS_GLOBAL_ORIGIN": self._origin,
        }
        self._now = 0.0
        self._intervals: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Back to the rates after a boot."""
        self._intervals = {name: 1.0 / rate for name, rate in self._rates.items()}
        self._due = dict.fromkeys(self._intervals, 0.0)

    def tick(self, now: float) -> None:
        """Send what is due."""
        self._now = now
        soon = now + 0.005  # half a tick's jitter must not push a 50 Hz message to the next tick
        for name, interval in self._intervals.items():
            due = self._due[name]
            if due <= soon:
                self._send(self._message(name))
                self._due[name] = due + interval if due + interval > now else now + interval

    def knows(self, msgid: int) -> bool:
        """Whether the vehicle has such a message."""
        return self._dialect.names.get(msgid, "") in self._builders

    def request(self, msgid: int, now: float) -> bool:
        """Send one message now; False when the vehicle has no such message."""
        self._now = now
        name = self._dialect.names.get(msgid, "")
        if name not in self._builders:
            return False
        self._send(self._message(name))
        return True

    def set_interval(self, msgid: int, microseconds: float, now: float) -> bool:
        """Change a rate: -1 stops it, 0 restores it; False when the vehicle has no such message."""
        name = self._dialect.names.get(msgid, "")
        if name not in self._builders or not math.isfinite(microseconds):
            return False
        if microseconds < 0:
            self._intervals.pop(name, None)
            return True
        default = 1.0 / self._rates[name] if name in self._rates else None
        interval = microseconds / 1e6 if microseconds > 0 else default
        if interval is None:
            self._intervals.pop(name, None)
        else:
            self._intervals[name] = max(0.02, interval)
            self._due[name] = now
        return True

    def greet(self, now: float) -> None:
        """Send one of each message that is rare, the heartbeat last: who is new need not wait for the next ones."""
        self._now = now
        rare = [name for name, interval in self._intervals.items() if interval >= _RARE_S and name != "HEARTBEAT"]
        for name in (*rare, "HEARTBEAT"):
            self._send(self._message(name))

    def set_group(self, group: int, hertz: float, now: float) -> None:
        """The old way, REQUEST_DATA_STREAM for a MAV_DATA_STREAM (0: all of them): at 0 its messages stop."""
        for name in GROUPS.get(group, ()) if group else ALL_STREAMS:
            self._intervals.pop(name, None)
            if hertz > 0:
                self._intervals[name] = max(0.02, 1.0 / hertz)
                self._due[name] = now

    def interval_us(self, msgid: int) -> int:
        """The interval of a message in microseconds: -1 when it is off, 0 when the vehicle has no such message."""
        name = self._dialect.names.get(msgid, "")
        if name not in self._builders:
            return 0
        interval = self._intervals.get(name)
        return -1 if interval is None else round(interval * 1e6)

    def _message(self, name: str) -> MavMessage:
        return self._dialect.message(name, **self._builders[name]())

    def _boot_ms(self) -> int:
        return int(self._now * 1000)

    def _heartbeat(self) -> _Fields:
        flight = self._flight
        return {
            "type": _MULTICOPTER,
            "autopilot": flight.autopilot.number,
            "base_mode": flight.base_mode,
            "custom_mode": flight.custom_mode,
            "system_status": flight.status,
            "mavlink_version": 3,
        }

    def _attitude(self) -> _Fields:
        frame = self._flight.airframe
        roll_rate, pitch_rate, yaw_rate = frame.rates
        return {
            "time_boot_ms": self._boot_ms(),
            "roll": frame.roll,
            "pitch": frame.pitch,
            "yaw": frame.yaw,
            "rollspeed": roll_rate,
            "pitchspeed": pitch_rate,
            "yawspeed": yaw_rate,
        }

    def _quaternion(self) -> _Fields:
        frame = self._flight.airframe
        roll, pitch, yaw = frame.roll / 2, frame.pitch / 2, frame.yaw / 2
        cr, sr, cp, sp = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
        cy, sy = math.cos(yaw), math.sin(yaw)
        roll_rate, pitch_rate, yaw_rate = frame.rates
        return {
            "time_boot_ms": self._boot_ms(),
            "q1": cr * cp * cy + sr * sp * sy,
            "q2": sr * cp * cy - cr * sp * sy,
            "q3": cr * sp * cy + sr * cp * sy,
            "q4": cr * cp * sy - sr * sp * cy,
            "rollspeed": roll_rate,
            "pitchspeed": pitch_rate,
            "yawspeed": yaw_rate,
        }

    def _system_time(self) -> _Fields:
        # after a reboot ArduPilot must find its satellites again; PX4 here does not reboot
        known = not self._flight.rebooted or self._now > _CLOCK_KNOWN_AFTER_S
        return {"time_unix_usec": time.time_ns() // 1000 if known else 0, "time_boot_ms": self._boot_ms()}

    def _timesync(self) -> _Fields:
        return {"tc1": 0, "ts1": int(self._now * 1e9)}

    def _hud(self) -> _Fields:
        frame = self._flight.airframe
        speed = math.hypot(frame.v_north, frame.v_east)
        return {
            "airspeed": speed,
            "groundspeed": speed,
            "heading": round(math.degrees(frame.yaw) % 360.0) % 360,
            "throttle": round(frame.battery.current),
            "alt": self._flight.autopilot.altitude + frame.height,
            "climb": frame.climb,
        }

    def _altitude(self) -> _Fields:
        frame = self._flight.airframe
        sea = self._flight.autopilot.altitude + frame.height
        return {
            "time_usec": int(self._now * 1e6),
            "altitude_monotonic": sea,
            "altitude_amsl": sea,
            "altitude_local": frame.height,
            "altitude_relative": frame.height,
            "altitude_terrain": frame.height,
            "bottom_clearance": frame.height,
        }

    def _origin(self) -> _Fields:
        home = self._home()
        return {name: home[name] for name in ("latitude", "longitude", "altitude", "time_usec")}

    def _local_position(self) -> _Fields:
        frame = self._flight.airframe
        return {
            "time_boot_ms": self._boot_ms(),
            "x": frame.north,
            "y": frame.east,
            "z": -frame.height,
            "vx": frame.v_north,
            "vy": frame.v_east,
            "vz": -frame.climb,
        }

    def _place(self) -> tuple[int, int, int]:
        home, frame = self._flight.autopilot, self._flight.airframe
        latitude = home.latitude + frame.north / METRES_PER_DEGREE
        longitude = home.longitude + frame.east / (METRES_PER_DEGREE * math.cos(math.radians(home.latitude)))
        return round(latitude * 1e7), round(longitude * 1e7), round((home.altitude + frame.height) * 1000)

    def _global_position(self) -> _Fields:
        frame = self._flight.airframe
        latitude, longitude, altitude = self._place()
        return {
            "time_boot_ms": self._boot_ms(),
            "lat": latitude,
            "lon": longitude,
            "alt": altitude,
            "relative_alt": round(frame.height * 1000),
            "vx": round(frame.v_north * 100),
            "vy": round(frame.v_east * 100),
            "vz": round(-frame.climb * 100),
            "hdg": round(math.degrees(frame.yaw) % 360.0 * 100) % 36000,
        }

    def _gps(self) -> _Fields:
        frame = self._flight.airframe
        latitude, longitude, altitude = self._place()
        return {
            "time_usec": int(self._now * 1e6),
            "fix_type": _FIX_3D,
            "lat": latitude + round(self._rng.gauss(0.0, 4.0)),
            "lon": longitude + round(self._rng.gauss(0.0, 4.0)),
            "alt": altitude + round(self._rng.gauss(0.0, 150.0)),
            "eph": 70,
            "epv": 110,
            "vel": round(math.hypot(frame.v_north, frame.v_east) * 100),
            "cog": round(math.degrees(math.atan2(frame.v_east, frame.v_north)) % 360.0 * 100) % 36000,
            "satellites_visible": 12,
            "alt_ellipsoid": altitude + 47_000,
            "h_acc": 900,
            "v_acc": 1780,
            "vel_acc": 400,
        }

    def _extended_state(self) -> _Fields:
        return {"vtol_state": 0, "landed_state": self._flight.airframe.landed}

    def _system_status(self) -> _Fields:
        battery = self._flight.airframe.battery
        return {
            "onboard_control_sensors_present": _SENSORS,
            "onboard_control_sensors_enabled": _SENSORS,
            "onboard_control_sensors_health": _SENSORS,
            "load": 250 + self._rng.randrange(50),
            "voltage_battery": round(battery.volts * 1000),
            "current_battery": round(battery.current * 100),
            "battery_remaining": round(battery.remaining * 100),
        }

    def _battery(self) -> _Fields:
        battery = self._flight.airframe.battery
        cell = round(battery.cell_volts * 1000)
        left = battery.capacity * battery.remaining
        return {
            "battery_function": 1,
            "type": 1,
            "temperature": 2500,
            "voltages": [cell] * 4 + [_UNKNOWN_U16] * 6,
            "current_battery": round(battery.current * 100),
            "current_consumed": round(battery.consumed),
            "energy_consumed": -1,
            "battery_remaining": round(battery.remaining * 100),
            "time_remaining": round(left * 3.6 / battery.current),
            "charge_state": 1,
        }

    def _home(self) -> _Fields:
        home = self._flight.autopilot
        return {
            "latitude": round(home.latitude * 1e7),
            "longitude": round(home.longitude * 1e7),
            "altitude": round(home.altitude * 1000),
            "q": [1.0, 0.0, 0.0, 0.0],
            "time_usec": int(self._now * 1e6),
        }

    def _version(self) -> _Fields:
        return {
            "capabilities": self._flight.autopilot.capabilities,
            "flight_sw_version": 1 << 24 | 16 << 16 | 255,
            "middleware_sw_version": 1 << 24 | 16 << 16 | 255,
            "board_version": 1,
            "flight_custom_version": list(b"petalsim"),
            "uid": 0x5E7A1B05,
        }
