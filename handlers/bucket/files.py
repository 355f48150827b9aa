"""What a flight log must look like before it is stored: its extension, its first bytes, its size.

Sources: the ULog file format (header of 16 bytes: ``55 4C 6F 67 01 12 35``, a version byte, the time), the ROS bag
format 2.0 (``#ROSBAG V2.0\\n``, then a record of which ``index_pos`` says where the index is). A log whose recording
was cut short is one: only its beginning must be there.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from petalbus.handlers.bucket.errors import FileRefused

MAX_BYTES: Final = 2 * 1024**3
"""A file must be smaller."""

ULOG_MAGIC: Final = bytes((0x55, 0x4C, 0x6F, 0x67, 0x01, 0x12, 0x35))
DOCUMENTED_ULOG_MAGIC: Final = b"ULogData"
"""What one document calls the magic of a ULog. No real log begins so; accepted only where asked for."""

ULOG_HEADER_BYTES: Final = 16
BAG_MAGIC: Final = b"#ROSBAG"
BAG_2_MAGIC: Final = b"#ROSBAG V2.0\n"
BAG_HEAD_BYTES: Final = 4096
"""So large is the first record of a bag."""

CONTENT_TYPES: Final = {".ulg": "application/x-ulog", ".bag": "application/x-rosbag"}
ALLOWED: Final = frozenset(CONTENT_TYPES)


@dataclass(frozen=True, slots=True)
class FlightLog:
    """A file that may be stored. ``stamp``: size, and time of the last change in ns, to see whether it is the same.

    ``indexed``: whether a ROS bag has its index, None where that is not known.
    """

    path: Path
    extension: str
    size: int
    stamp: tuple[int, int]
    indexed: bool | None = None

    @property
    def content_type(self) -> str:
        """As existing logs have it."""
        return CONTENT_TYPES[self.extension]


def check_file(path: Path, *, accept_documented: bool = False) -> FlightLog:
    """Look at a file. Blocks: call it in a thread. Raises FileRefused in the words that programs know.

    A symbolic link is refused: what it leads to may be another file when it is read.
    """
    extension = check_extension(path.name)
    try:
        found, head = _look(path)
    except OSError as error:
        why = "a symbolic link" if error.errno == errno.ELOOP and path.is_symlink() else None
        text = f"is {why}; give the file itself" if why else f"cannot be read ({error.strerror or error})"
        raise FileRefused(f"File validation failed: {path} {text}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileRefused(f"File validation failed: {path} is not a regular file")
    check_size(found.st_size)
    check_head(extension, head[:ULOG_HEADER_BYTES], accept_documented=accept_documented)
    indexed = is_indexed(head, found.st_size) if extension == ".bag" else None
    return FlightLog(path, extension, found.st_size, (found.st_size, found.st_mtime_ns), indexed)


def _look(path: Path) -> tuple[os.stat_result, bytes]:
    # without waiting: opening a pipe would last until somebody writes into it
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(number)
        return found, os.pread(number, BAG_HEAD_BYTES, 0) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(number)


def check_extension(name: str) -> str:
    """The extension of a file's name, in small letters. Raises FileRefused."""
    extension = Path(name).suffix.lower()
    if extension not in ALLOWED:
        raise FileRefused(f"Invalid file extension. Only {', '.join(sorted(ALLOWED))} files are allowed")
    return extension


def check_size(size: int) -> None:
    """More than 0 bytes and less than 2 GiB. Raises FileRefused."""
    if size <= 0:
        raise FileRefused("File validation failed: File is empty")
    if size >= MAX_BYTES:
        text = f"File is too large ({size} bytes; the limit is {MAX_BYTES})"
        raise FileRefused(f"File validation failed: {text}")


def check_head(extension: str, head: bytes, *, accept_documented: bool = False) -> None:
    """Compare the first bytes of a file (16, or all) with what its extension says. Raises FileRefused."""
    if not head:
        raise FileRefused("File validation failed: File is empty")
    if extension == ".ulg":
        documented = accept_documented and head.startswith(DOCUMENTED_ULOG_MAGIC)
        if not documented and not (head.startswith(ULOG_MAGIC) and len(head) >= ULOG_HEADER_BYTES):
            raise FileRefused("File validation failed: Invalid ULog header (magic/version mismatch)")
    elif not head.startswith(BAG_MAGIC):
        raise FileRefused("File validation failed: Invalid ROS bag header")


def is_indexed(head: bytes, size: int) -> bool | None:
    """Whether a ROS bag (its first bytes, its size) has its index; None where that cannot be read.

    ``index_pos`` is 0 until a recording ends in order. An index behind the end was lost with the rest.
    """
    if not head.startswith(BAG_2_MAGIC):
        return None
    try:
        at = len(BAG_2_MAGIC)
        end = at + 4 + struct.unpack_from("<I", head, at)[0]
        at += 4
        while at < min(end, len(head)):
            (length,) = struct.unpack_from("<I", head, at)
            name, _, value = head[at + 4 : at + 4 + length].partition(b"=")
            if name == b"index_pos":
                (index,) = struct.unpack("<Q", value)
                return bool(0 < index < size)
            at += 4 + length
    except struct.error:
        pass  # it is cut off there
    return None


class ArrivingLog:
    """The same checks for a log that comes in pieces: nothing is passed on before its first bytes are seen.

    ``size``: bytes, where the sender says it. Raises FileRefused, here and in both methods, as soon as it is decided.
    """

    def __init__(self, name: str, *, size: int | None = None, accept_documented: bool = False) -> None:
        self.size = 0
        self._extension = check_extension(name)
        self._documented = accept_documented
        self._head: bytes | None = b""
        if size is not None:
            check_size(size)

    def take(self, piece: bytes) -> bytes:
        """What may be stored now."""
        self.size += len(piece)
        if self.size >= MAX_BYTES:
            check_size(self.size)
        if self._head is None:
            return piece
        self._head += piece
        if len(self._head) < ULOG_HEADER_BYTES:
            return b""
        return self._seen()

    def end(self) -> bytes:
        """What is left when all has come."""
        check_size(self.size)
        return self._seen() if self._head is not None else b""

    def _seen(self) -> bytes:
        head, self._head = self._head or b"", None
        check_head(self._extension, head[:ULOG_HEADER_BYTES], accept_documented=self._documented)
        return head


def unchanged(log: FlightLog) -> bool:
    """Whether the file is still the one that was looked at. Blocks."""
    try:
        found = log.path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == log.stamp
