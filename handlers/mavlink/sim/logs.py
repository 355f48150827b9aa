"""The simulated vehicle's flight logs over the LOG_* messages, at a bounded rate.

PX4 counts logs from 0, wants a list asked for before data, and lets a new request replace the one that runs.
ArduPilot counts from 1 and ignores what is asked while it sends.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk, Log
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.framing import Frame

RATE: Final = 4_000
"""Packets a second."""
_TICKS_A_SECOND: Final = 50
_REQUEST_LIST: Final = 117
_ENTRY: Final = 118
_REQUEST_DATA: Final = 119
_DATA: Final = 120
_ERASE: Final = 121
_REQUEST_END: Final = 122
_ENTRY_LAYOUT: Final = struct.Struct("<IIHHH")
_DATA_LAYOUT: Final = struct.Struct("<IHB90s")
_PIECE: Final = 90


class LogServer:
    """Lists, sends and erases the logs of a disk."""

    handles = frozenset((_REQUEST_LIST, _REQUEST_DATA, _ERASE, _REQUEST_END))

    def __init__(self, onboard: Onboard, autopilot: Autopilot, disk: Disk, *, rate: int = RATE) -> None:
        """``rate``: packets a second at most."""
        self._onboard = onboard
        self._disk = disk
        self._px4 = autopilot is PX4
        self._first = 0 if self._px4 else 1
        self._per_tick = max(1, rate // _TICKS_A_SECOND)
        self._listed = False
        self._entries: range = range(0)
        self._last = 0
        self._log: Log | None = None
        self._log_id = 0
        self._offset = 0
        self._left = 0

    def receive(self, frame: Frame) -> None:
        """A request."""
        fields = self._onboard.dialect.fields(frame)
        if not self._onboard.is_for_us(fields["target_system"], fields["target_component"]):
            return
        if frame.msgid == _REQUEST_LIST:
            self._list(fields["start"], fields["end"])
        elif frame.msgid == _REQUEST_DATA:
            self._request(fields)
        elif frame.msgid == _ERASE:
            self._erase()
        else:
            self._onboard.note({"event": "log request end"})
            self.reset()

    def tick(self) -> None:
        """Send what the rate allows."""
        for _ in range(self._per_tick):
            if self._entries:
                self._send_entry(self._entries[0])
                self._entries = self._entries[1:]
            elif self._log is not None:
                self._send_data(self._log)
            else:
                return

    def reset(self) -> None:
        """Forget what is under way."""
        self._listed = False
        self._entries = range(0)
        self._log = None

    @property
    def _busy(self) -> bool:
        """ArduPilot hears no request while it sends."""
        return not self._px4 and (bool(self._entries) or self._log is not None)

    def _list(self, start: int, end: int) -> None:
        if self._busy:
            return
        self._log = None
        self._listed = True
        highest = self._first + len(self._disk.logs) - 1
        if not self._disk.logs:
            self._entries, self._last = range(1), 0
            return
        # PX4 counts its logs from 0 and yet tells their number as the last one
        self._last = min(end, highest + 1 if self._px4 else highest)
        begin = min(start, highest) if self._px4 else max(start, 1)
        self._entries = range(begin, max(min(self._last, highest), begin) + 1)

    def _request(self, fields: dict[str, Any]) -> None:
        place = fields["id"] - self._first
        if self._busy or (self._px4 and not self._listed) or not 0 <= place < len(self._disk.logs):
            return
        self._entries = range(0)
        self._log = self._disk.logs[place]
        self._log_id = fields["id"]
        self._offset = fields["ofs"]
        self._left = max(0, min(fields["count"], len(self._contents(self._log)) - self._offset))

    def _erase(self) -> None:
        self._onboard.note({"event": "log erase"})
        self.reset()
        for log in list(self._disk.logs):
            if log.path in self._disk.files:
                self._disk.remove(log.path)
        self._disk.logs = []

    def _contents(self, log: Log) -> bytes | bytearray:
        return self._disk.files.get(log.path, b"")

    def _send_entry(self, number: int) -> None:
        place = number - self._first
        known = 0 <= place < len(self._disk.logs)
        size = len(self._contents(self._disk.logs[place])) if known else 0
        at = self._disk.logs[place].at if known else 0
        payload = _ENTRY_LAYOUT.pack(at, size, number & 0xFFFF, len(self._disk.logs), self._last)
        self._onboard.send_payload(_ENTRY, payload)

    def _send_data(self, log: Log) -> None:
        data = bytes(self._contents(log)[self._offset : self._offset + min(_PIECE, self._left)])
        self._onboard.send_payload(_DATA, _DATA_LAYOUT.pack(self._offset, self._log_id, len(data), data))
        self._offset += len(data)
        self._left -= len(data)
        if len(data) < _PIECE or self._left == 0:
            self._log = None
