"""The latest telemetry of one vehicle. Pure: frames and times go in, a snapshot comes out.

Frames come at hundreds a second and are looked at by few: a frame is kept as it came, the newest of each message, and
decoded when somebody asks. Times are monotonic seconds of the vehicle computer's boot clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from petalbus.handlers.mavlink.wire.dialect import Dialect
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.petals.vehicle_status import names

HEARTBEAT: Final = 0
SYS_STATUS: Final = 1
GPS_RAW_INT: Final = 24
ATTITUDE: Final = 30
GLOBAL_POSITION_INT: Final = 33
BATTERY_STATUS: Final = 147
EXTENDED_SYS_STATE: Final = 245

KEPT: Final = frozenset(
    (HEARTBEAT, SYS_STATUS, GPS_RAW_INT, ATTITUDE, GLOBAL_POSITION_INT, BATTERY_STATUS, EXTENDED_SYS_STATE)
)
FORGET_AFTER: Final = 30.0
"""Seconds of silence after which another vehicle may take this one's place."""

_AUTOPILOT_COMPONENT: Final = 1
_NO_AUTOPILOT: Final = 8
_ARMED: Final = 128
_UNKNOWN_U16: Final = 65535
_UNKNOWN_U8: Final = 255
_WINDOW_S: Final = 10
_LATE: Final = 128


class Quality:
    """How many of a component's frames arrive, by their sequence numbers, over the last ten seconds."""

    def __init__(self) -> None:
        self.received = 0
        self.lost = 0
        self._seq: int | None = None
        self._began: float | None = None
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=_WINDOW_S)

    def frame(self, seq: int, now: float) -> None:
        """A frame has come."""
        gap = 0 if self._seq is None else (seq - self._seq - 1) % 256
        if gap >= _LATE:
            gap = 0  # a late or repeated one, or a vehicle that began anew: nothing is lost by it
        self._seq = seq
        self._began = now if self._began is None else self._began
        self.received += 1
        self.lost += gap
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            _, received, lost = self._seconds.pop()
            self._seconds.append((second, received + 1, lost + gap))
        else:
            self._seconds.append((second, 1, gap))

    def snapshot(self, now: float) -> dict[str, Any]:
        """Share that arrived (percent) and rate over the window; None and 0 when nothing came."""
        recent = [one for one in self._seconds if one[0] > int(now) - _WINDOW_S]
        received, lost = sum(one[1] for one in recent), sum(one[2] for one in recent)
        percent = round(100 * received / (received + lost), 1) if received else None
        # of a link that is younger than the window, only what has passed of it counts
        seconds = min(_WINDOW_S, max(1.0, now - self._began)) if self._began is not None else _WINDOW_S
        return {"quality_percent": percent, "frames_per_second": round(received / seconds, 1), "lost": self.lost}


class VehicleState:
    """One vehicle: the first autopilot heard. ``on_sample(msgid, fields, now)`` gets what alerts are made of."""

    def __init__(self, dialect: Dialect, on_sample: Callable[[int, dict[str, Any], float], None]) -> None:
        self.system: int | None = None
        self.heard: float | None = None
        """When the last heartbeat came."""
        self._dialect = dialect
        self._on_sample = on_sample
        self._frames: dict[int, tuple[Frame, float]] = {}
        self._quality = Quality()

    def take(self, frame: Frame, now: float) -> None:
        """Take a frame that came at ``now``. Frames of others than the autopilot are ignored."""
        if frame.compid != _AUTOPILOT_COMPONENT or (frame.sysid != self.system and not self._adopt(frame, now)):
            return
        self._quality.frame(frame.seq, now)
        msgid = frame.msgid
        if msgid not in KEPT:
            return
        self._frames[msgid] = (frame, now)
        if msgid == HEARTBEAT:
            self.heard = now
            self._on_sample(msgid, {}, now)
        elif msgid in (SYS_STATUS, GPS_RAW_INT):
            self._on_sample(msgid, self._dialect.fields(frame), now)

    def _adopt(self, frame: Frame, now: float) -> bool:
        """Is it the heartbeat of an autopilot, and is there room for it? Then it is our vehicle."""
        if frame.msgid != HEARTBEAT or self._dialect.fields(frame)["autopilot"] == _NO_AUTOPILOT:
            return False
        if self.heard is not None and now - self.heard < FORGET_AFTER:
            return False  # the state of one vehicle must not change between two
        self.system = frame.sysid
        self._frames.clear()
        self._quality = Quality()
        return True

    def silence(self, now: float) -> float | None:
        """Seconds since the last heartbeat; None before the first."""
        return None if self.heard is None else max(0.0, now - self.heard)

    def snapshot(self, now: float, *, lost_after: float) -> dict[str, Any]:
        """Everything that is known, for people and programs; what is not known is None, ages are seconds."""
        silence = self.silence(now)
        link = {"heartbeat_age_s": None if silence is None else round(silence, 2), **self._quality.snapshot(now)}
        return {
            "vehicle": self.system,
            "connected": silence is not None and silence < lost_after,
            "link": link,
            **self._flight(),
            "position": self._part(GLOBAL_POSITION_INT, now, _position),
            "attitude": self._part(ATTITUDE, now, _attitude),
            "battery": self._battery(now),
            "gps": self._part(GPS_RAW_INT, now, _gps),
        }

    def _flight(self) -> dict[str, Any]:
        heartbeat, landed = self._fields(HEARTBEAT), self._fields(EXTENDED_SYS_STATE)
        known: dict[str, Any] = {"autopilot": None, "armed": None, "mode": None, "landed": None}
        if heartbeat is not None:
            pilot = heartbeat["autopilot"]
            known["autopilot"] = names.autopilot(pilot)
            known["armed"] = bool(heartbeat["base_mode"] & _ARMED)
            known["mode"] = names.mode(pilot, heartbeat["type"], heartbeat["custom_mode"])
        if landed is not None:
            known["landed"] = names.landed(landed["landed_state"])
        return known

    def _battery(self, now: float) -> dict[str, Any] | None:
        """SYS_STATUS; where that knows no charge, BATTERY_STATUS."""
        told = self._part(SYS_STATUS, now, _battery)
        if told is None or told["percent"] is None:
            more = self._part(BATTERY_STATUS, now, lambda fields: {"percent": _charge(fields)})
            told = {"volts": None, "amperes": None, **(told or {}), **more} if more is not None else told
        return told

    def _fields(self, msgid: int) -> dict[str, Any] | None:
        found = self._frames.get(msgid)
        return None if found is None else self._dialect.fields(found[0])

    def _part(self, msgid: int, now: float, read: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any] | None:
        fields = self._fields(msgid)
        if fields is None:
            return None
        return {**read(fields), "age_s": round(max(0.0, now - self._frames[msgid][1]), 2)}


def charge_of(fields: dict[str, Any]) -> float | None:
    """The charge left in a SYS_STATUS, percent; None when the vehicle does not know it."""
    return _charge(fields)


def _charge(fields: dict[str, Any]) -> float | None:
    return float(fields["battery_remaining"]) if fields["battery_remaining"] >= 0 else None


def _position(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "lat": fields["lat"] / 1e7,
        "lon": fields["lon"] / 1e7,
        "alt_m": fields["alt"] / 1000,
        "above_home_m": fields["relative_alt"] / 1000,
        "north_m_s": fields["vx"] / 100,
        "east_m_s": fields["vy"] / 100,
        "down_m_s": fields["vz"] / 100,
        "heading_deg": None if fields["hdg"] == _UNKNOWN_U16 else fields["hdg"] / 100,
    }


def _attitude(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_deg": _degrees(fields[name]) for name in ("roll", "pitch", "yaw")}


def _degrees(radians: float) -> float | None:
    return round(math.degrees(radians), 2) if math.isfinite(radians) else None


def _battery(fields: dict[str, Any]) -> dict[str, Any]:
    volts, amperes = fields["voltage_battery"], fields["current_battery"]
    return {
        "percent": _charge(fields),
        "volts": None if volts == _UNKNOWN_U16 else volts / 1000,
        "amperes": None if amperes < 0 else amperes / 100,
    }


def _gps(fields: dict[str, Any]) -> dict[str, Any]:
    satellites, spread = fields["satellites_visible"], fields["eph"]
    return {
        "fix": names.fix(fields["fix_type"]),
        "satellites": None if satellites == _UNKNOWN_U8 else satellites,
        "hdop": None if spread == _UNKNOWN_U16 else spread / 100,
    }
