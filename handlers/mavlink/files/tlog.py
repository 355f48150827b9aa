"""``.tlog`` files, as ground stations write them: per frame its time, then the frame as it travelled.

The time is a big-endian u64 of microseconds since 1970.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.wire.crc import crc, crc_with_extra, implied_extra
from petalbus.handlers.mavlink.wire.dialect import Dialect, load_dialect
from petalbus.handlers.mavlink.wire.framing import FLAG_SIGNED, MARKER_V1, MARKER_V2, MAX_FRAME_BYTES, Frame

log = logging.getLogger(__name__)

MOST_WAITING: Final = 8 << 20
_STAMP: Final = struct.Struct(">Q")
_WRITE_EVERY_S: Final = 0.5
_BLOCK: Final = 256 << 10
_LONGEST_ENTRY: Final = _STAMP.size + MAX_FRAME_BYTES
_SANE: Final = 631_152_000_000_000, 4_102_444_800_000_000
"""1990 to 2100: where a time must lie to be believed after damage."""
_NEAR: Final = 3_600_000_000
"""Or within an hour of the one before: the clock of a vehicle may begin at 1970."""


class TlogError(MavlinkError):
    """The file could not be written. ``lost``: how many frames are not in it."""

    code = "TLOG_UNWRITABLE"

    def __init__(self, path: Path, lost: int, reason: str) -> None:
        self.lost = lost
        super().__init__(f"{path}: {reason}; {lost} frames are not in it. Check the disk's space and the rights")

    @property
    def detail(self) -> dict[str, Any]:
        """How many frames are missing."""
        return {"lost": self.lost}


class TlogWriter:
    """Appends to a file from a thread of its own: ``with TlogWriter(path) as tlog: tlog.write(entries)``.

    ``write`` never waits. What waits to be written is bounded; beyond that entries are dropped and counted in
    ``lost``, as they are once the disk refuses. Leaving the block writes the rest and waits for it: on an event
    loop use ``await asyncio.to_thread(tlog.close)`` for that.
    """

    def __init__(self, path: str | os.PathLike[str], *, most_waiting: int = MOST_WAITING) -> None:
        """``most_waiting`` is bytes. Raises OSError when the file cannot be opened."""
        self.path = Path(path)
        self.lost = 0
        """Frames that are not in the file."""
        self.written = 0
        """Bytes handed to the system."""
        self._most = most_waiting
        self._waiting: list[bytes] = []
        self._size = 0
        self._closing = False
        self._error: OSError | None = None
        self._wake = threading.Condition()
        self._file: BinaryIO = self.path.open("ab", buffering=0)
        self._thread = threading.Thread(target=self._run, name=f"tlog {self.path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, entries: Iterable[tuple[int, Frame]]) -> int:
        """Add frames, each with its time in microseconds since 1970; returns how many were taken."""
        taken = lost = 0
        with self._wake:
            idle = not self._waiting
            refused = self._closing or self._error is not None
            for microseconds, frame in entries:
                entry = _STAMP.pack(microseconds) + frame.raw
                if refused or self._size + len(entry) > self._most:
                    lost += 1
                    continue
                self._waiting.append(entry)
                self._size += len(entry)
                taken += 1
            if lost and not self.lost:
                why = "it is closed" if refused else "the disk is too slow"
                log.warning("%s: frames are lost: %s", self.path, why)
            self.lost += lost
            if idle or self._size > self._most // 2:
                self._wake.notify()
        return taken

    def close(self) -> None:
        """Write the rest and wait until it is on the disk; twice is allowed. Raises TlogError when some is not."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        if self._error is not None:
            raise TlogError(self.path, self.lost, self._error.strerror or str(self._error))

    def _run(self) -> None:
        with self._file:
            while not self._closing or self._waiting:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._waiting)
                    self._wake.wait_for(lambda: self._closing or self._size > self._most // 2, _WRITE_EVERY_S)
                    batch, self._waiting = self._waiting, []
                if batch:
                    self._put(batch)
                with self._wake:
                    self._size -= sum(map(len, batch))
            self._sync()

    def _put(self, batch: list[bytes]) -> None:
        data = memoryview(b"".join(batch))
        done = 0
        try:
            if self._error is None:
                while done < len(data):
                    done += self._file.write(data[done:])
        except OSError as error:
            log.error("%s: %s; nothing more is written", self.path, error)  # noqa: TRY400  # the text says it all
            with self._wake:
                self._error = error
        self.written += done
        if done < len(data):
            with self._wake:
                self.lost += _not_whole(batch, done)

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._error = self._error or error


def _not_whole(batch: list[bytes], done: int) -> int:
    """How many entries of a batch are not in its first ``done`` bytes."""
    for number, entry in enumerate(batch):
        done -= len(entry)
        if done < 0:
            return len(batch) - number
    return 0


def read_tlog(
    path: str | os.PathLike[str], *, dialect: Dialect | None = None, block: int = _BLOCK
) -> Iterator[tuple[int, Frame]]:
    """The frames of a file, each with its time in microseconds since 1970. It blocks, and holds ``block`` bytes.

    Damage and a cut end are passed over: the scan goes on byte by byte until an intact frame comes. A frame whose
    own time cannot be right, after damage, gets the time of the one before it. Raises OSError.
    """
    scanner = _Scanner(dialect or load_dialect())
    data = b""
    with Path(path).open("rb") as file:
        while True:
            more = file.read(max(block, _LONGEST_ENTRY))
            data += more
            consumed = 0
            for at, end, frame in scanner.scan(data, final=not more):
                consumed = end
                if frame is not None:
                    yield at, frame
            data = data[consumed:]
            if not more:
                return


class _Scanner:
    """Finds entries in bytes, one stretch after the other."""

    def __init__(self, dialect: Dialect) -> None:
        self._extras = dialect.crc_extras
        self._learned: dict[int, int] = {}
        self._latest = 0
        self._astray = False  # no intact entry ends where the next stretch begins

    def scan(self, data: bytes, *, final: bool) -> Iterator[tuple[int, int, Frame | None]]:
        """Entries as (time, where it ends, frame); the last one has no frame and says how far was looked."""
        position, size = 0, len(data)
        while position < size and (final or position + _LONGEST_ENTRY <= size):
            astray = self._astray
            frame = self._frame(data, position + _STAMP.size, sure=astray)
            if frame is not None:
                self._latest = self._time(data, position, exact=not astray)
                position += _STAMP.size + len(frame.raw)
                self._astray = False
                yield self._latest, position, frame
                continue
            early = None if astray else self._early(data, position)
            if early is not None:
                position += early[0]
                yield self._latest, position, early[1]
                continue
            self._astray = True
            position += 1
        yield 0, position, None

    def _early(self, data: bytes, position: int) -> tuple[int, Frame] | None:
        """A frame that begins where a time should be, because bytes are missing; and where it ends."""
        for early in range(_STAMP.size):
            frame = self._frame(data, position + early, sure=True)
            if frame is not None:
                return early + len(frame.raw), frame
        return None

    def _time(self, data: bytes, position: int, *, exact: bool) -> int:
        (found,) = _STAMP.unpack_from(data, position)
        near = abs(found - self._latest) <= _NEAR
        return int(found) if exact or near or _SANE[0] <= found < _SANE[1] else self._latest

    def _frame(self, data: bytes, position: int, *, sure: bool) -> Frame | None:
        """The intact frame that begins there; ``sure``: only one whose message the dialect knows."""
        if position + 3 > len(data) or data[position] not in (MARKER_V1, MARKER_V2):
            return None
        header = 10 if data[position] == MARKER_V2 else 6
        checksum = header + data[position + 1]
        signature = 13 if header == 10 and data[position + 2] & FLAG_SIGNED else 0
        end = position + checksum + 2 + signature
        try:
            frame = Frame.from_raw(data[position:end])
        except ValueError:
            return None
        state = crc(frame.raw[1:checksum])
        received = frame.raw[checksum] | frame.raw[checksum + 1] << 8
        extra = self._extras.get(frame.msgid)
        if extra is not None:
            return frame if crc_with_extra(state, extra) == received else None
        implied = implied_extra(state, received)
        followed = data[end + _STAMP.size : end + _STAMP.size + 1] in (b"", b"\xfd", b"\xfe")
        if sure or implied is None or not followed or self._learned.setdefault(frame.msgid, implied) != implied:
            return None
        return frame
