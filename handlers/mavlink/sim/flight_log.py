"""The simulated vehicle's own log of a flight: begun when it arms, closed when it disarms, in its autopilot's format.

PX4's is ULog (docs.px4.io, "ULog File Format"), ArduPilot's is DataFlash (ardupilot.org, "Logs"): a few messages of
each, so that programs that read such files read these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from petalbus.handlers.mavlink.sim.airframe import Airframe
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk, DiskFull, Log

_EVERY_S: Final = 0.1
_ULOG_HEAD: Final = b"ULog\x01\x12\x35\x01"
_ULOG_FORMAT: Final = b"flown:uint64_t timestamp;float north;float east;float height;"
_FMT: Final = struct.Struct("<2sBBB4s16s64s")
_POSITION_TYPE: Final = 1
_POSITION: Final = struct.Struct("<Qfff")


class _Format(Protocol):
    """Writes one kind of log. ``micros``: since boot."""

    def head(self, micros: int) -> bytes:
        """What the file begins with."""

    def position(self, micros: int, north: float, east: float, height: float) -> bytes:
        """Where the vehicle is, metres from home."""

    def path(self, number: int) -> str:
        """Where the file is."""


class FlightLog:
    """Part of a vehicle: ``tick`` it. One log for each time that it is armed; none when the disk is full."""

    def __init__(
        self, autopilot: Autopilot, airframe: Airframe, disk: Disk, *, since_boot: Callable[[], float]
    ) -> None:
        self._airframe = airframe
        self._disk = disk
        self._since_boot = since_boot
        self._format: _Format = _Ulog() if autopilot is PX4 else _DataFlash()
        self._path: str | None = None
        self._due = 0.0

    def tick(self) -> None:
        """Called fifty times a second."""
        if not self._airframe.armed:
            self._path = None
            return
        now = self._since_boot()
        try:
            if self._path is None:
                self._begin(now)
            elif now >= self._due:
                self._append(now)
        except (KeyError, DiskFull):
            self._due = float("inf")  # somebody deleted it, or there is no room: nothing more of this flight

    def _begin(self, now: float) -> None:
        number = max((log.number for log in self._disk.logs), default=0) + 1
        self._path, self._due = self._format.path(number), now
        self._disk.make_folders(self._path.rpartition("/")[0])
        self._disk.files[self._path] = bytearray()
        self._disk.logs.append(Log(number, self._path, max((log.at for log in self._disk.logs), default=0) + 3600))
        self._disk.write(self._path, 0, self._format.head(round(now * 1e6)))

    def _append(self, now: float) -> None:
        assert self._path is not None
        self._due = now + _EVERY_S
        frame = self._airframe
        told = self._format.position(round(now * 1e6), frame.north, frame.east, frame.height)
        self._disk.write(self._path, len(self._disk.files[self._path]), told)


class _Ulog:
    def head(self, micros: int) -> bytes:
        key = b"char[3] sys_name"
        return b"".join(
            (
                _ULOG_HEAD + struct.pack("<Q", micros),
                _ulog(b"B", bytes(40)),
                _ulog(b"F", _ULOG_FORMAT),
                _ulog(b"I", bytes((len(key),)) + key + b"PX4"),
                _ulog(b"A", struct.pack("<BH", 0, _POSITION_TYPE) + b"flown"),
            )
        )

    def position(self, micros: int, north: float, east: float, height: float) -> bytes:
        return _ulog(b"D", struct.pack("<H", _POSITION_TYPE) + _POSITION.pack(micros, north, east, height))

    def path(self, number: int) -> str:
        return f"/fs/microsd/log/sess{number:03}/log100.ulg"  # PX4's names while it does not know the time


class _DataFlash:
    def head(self, micros: int) -> bytes:
        del micros  # each message tells its own
        formats = (
            (128, _FMT.size, b"FMT", b"BBnNZ", b"Type,Length,Name,Format,Columns"),
            (_POSITION_TYPE, 3 + _POSITION.size, b"FLWN", b"Qfff", b"TimeUS,North,East,Height"),
        )
        return b"".join(_FMT.pack(b"\xa3\x95", 128, kind, size, *texts) for kind, size, *texts in formats)

    def position(self, micros: int, north: float, east: float, height: float) -> bytes:
        return struct.pack("<2sB", b"\xa3\x95", _POSITION_TYPE) + _POSITION.pack(micros, north, east, height)

    def path(self, number: int) -> str:
        return f"/APM/LOGS/{number:08}.BIN"


def _ulog(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<Hc", len(body), kind) + body
