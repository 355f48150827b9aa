"""The simulated vehicle's flight logs over the LOG_* messages, at a bounded rate.

PX4 counts logs from 0, wants a list asked for before data, and lets a new request replace the one that runs. A list
goes from the first id that is asked for to the last log there is; where that is none nothing is sent. The file that it
reads stays open until its end was sent, or another one is asked for. When all logs are erased meanwhile it goes on
reading no file, under the old id.
ArduPilot counts from 1 and ignores what is asked while it sends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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
_ALL: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class _Open:
    """A log that is read; PX4 keeps the size that it listed."""

    id: int
    data: bytes | bytearray
    size: int


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
        self._known: list[tuple[Log, int]] | None = None
        """What was listed, with its sizes."""
        self._entries: range = range(0)
        self._last = 0
        self._open: _Open | None = None
        self._sending = False
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
            self._halt()

    def tick(self) -> None:
        """Send what the rate allows."""
        for _ in range(self._per_tick):
            if self._entries:
                self._send_entry(self._entries[0])
                self._entries = self._entries[1:]
            elif self._sending and self._open is not None:
                self._send_data(self._open)
            else:
                return

    def reset(self) -> None:
        """The vehicle boots."""
        self._halt()
        self._open = None

    def _halt(self) -> None:
        """Forget what is under way."""
        self._known = None
        self._entries = range(0)
        self._sending = False
        if not self._px4:
            self._open = None

    @property
    def _busy(self) -> bool:
        """ArduPilot hears no request while it sends."""
        return not self._px4 and (bool(self._entries) or self._sending)

    def _list(self, start: int, end: int) -> None:
        if self._busy:
            return
        self._sending = False
        self._known = [(log, len(self._contents(log))) for log in self._disk.logs]
        number = len(self._known)
        if self._px4:
            # it counts from 0, and yet tells the number as the last one
            self._last = number if end == _ALL else end
            self._entries = range(start, number)
            return
        if not number:
            self._entries, self._last = range(1), 0
            return
        self._last = min(end, number)
        begin = max(start, 1)
        self._entries = range(begin, max(self._last, begin) + 1)

    def _request(self, fields: dict[str, Any]) -> None:
        place = fields["id"] - self._first
        if self._busy or not (self._open_at(place) if self._px4 else self._open_now(place)):
            return
        self._entries = range(0)
        self._offset = fields["ofs"]
        file = self._open
        assert file is not None
        size = min(file.size, len(file.data)) if self._px4 else len(file.data)
        self._left = max(0, min(fields["count"], size - self._offset))
        self._sending = not self._px4 or self._offset < file.size

    def _open_now(self, place: int) -> bool:
        """Open a log; False when there is none."""
        if not 0 <= place < len(self._disk.logs):
            return False
        data = self._contents(self._disk.logs[place])
        self._open = _Open(place + self._first, data, len(data))
        return True

    def _open_at(self, place: int) -> bool:
        """The same for PX4, as the list said: a file that is still open under this id is gone on with."""
        self._sending = False
        if self._known is None or not 0 <= place < len(self._known):
            return False
        if self._open is None or self._open.id != place:
            log, size = self._known[place]
            self._open = _Open(place, self._contents(log), size)
        return True

    def _erase(self) -> None:
        self._onboard.note({"event": "log erase"})
        still = self._open
        self.reset()
        if self._px4 and still is not None:
            self._open = _Open(still.id, b"", still.size)  # it closes the file, and takes its id for open still
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
        payload = _ENTRY_LAYOUT.pack(at, size, number & _ALL, len(self._disk.logs), self._last)
        self._onboard.send_payload(_ENTRY, payload)

    def _send_data(self, file: _Open) -> None:
        data = bytes(file.data[self._offset : self._offset + min(_PIECE, self._left)])
        self._onboard.send_payload(_DATA, _DATA_LAYOUT.pack(self._offset, file.id, len(data), data))
        self._offset += len(data)
        self._left -= len(data)
        if len(data) < _PIECE or self._left == 0:
            self._sending = False
            if not self._px4 or self._offset >= file.size:
                self._open = None
