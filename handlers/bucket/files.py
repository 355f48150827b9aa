"""What a flight log must look like before it is stored: its extension, its first bytes, its size.

Sources: the ULog file format (header ``55 4C 6F 67 01 12 35`` and a version byte), the ROS bag format 2.0
(``#ROSBAG V2.0\\n``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from petalbus.handlers.bucket.errors import FileRefused

MAX_BYTES: Final = 2 * 1024**3
"""A file must be smaller."""

ULOG_MAGIC: Final = bytes((0x55, 0x4C, 0x6F, 0x67, 0x01, 0x12, 0x35))
DOCUMENTED_ULOG_MAGIC: Final = b"ULogData"
"""What one document calls the magic of a ULog. No real log begins so; accepted only where asked for."""

BAG_MAGIC: Final = b"#ROSBAG"
CONTENT_TYPES: Final = {".ulg": "application/x-ulog", ".bag": "application/x-rosbag"}
ALLOWED: Final = frozenset(CONTENT_TYPES)


@dataclass(frozen=True, slots=True)
class FlightLog:
    """A file that may be stored. ``stamp``: size, and time of the last change in ns, to see whether it is the same."""

    path: Path
    extension: str
    size: int
    stamp: tuple[int, int]

    @property
    def content_type(self) -> str:
        """As existing logs have it."""
        return CONTENT_TYPES[self.extension]


def check_file(path: Path, *, accept_documented: bool = False) -> FlightLog:
    """Look at a file. Blocks: call it in a thread. Raises FileRefused in the words that programs know."""
    extension = path.suffix.lower()
    if extension not in ALLOWED:
        raise FileRefused(f"Invalid file extension. Only {', '.join(sorted(ALLOWED))} files are allowed")
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            head = file.read(16)
    except OSError as error:
        raise FileRefused(f"File validation failed: {path} cannot be read ({error.strerror or error})") from error
    check_head(extension, head, accept_documented=accept_documented)
    if found.st_size >= MAX_BYTES:
        text = f"File is too large ({found.st_size} bytes; the limit is {MAX_BYTES})"
        raise FileRefused(f"File validation failed: {text}")
    return FlightLog(path, extension, found.st_size, (found.st_size, found.st_mtime_ns))


def check_head(extension: str, head: bytes, *, accept_documented: bool = False) -> None:
    """Compare the first bytes of a file with what its extension says. Raises FileRefused."""
    if not head:
        raise FileRefused("File validation failed: File is empty")
    if extension == ".ulg":
        documented = accept_documented and head.startswith(DOCUMENTED_ULOG_MAGIC)
        if not documented and not (head.startswith(ULOG_MAGIC) and len(head) > len(ULOG_MAGIC)):
            raise FileRefused("File validation failed: Invalid ULog header (magic/version mismatch)")
    elif not head.startswith(BAG_MAGIC):
        raise FileRefused("File validation failed: Invalid ROS bag header")


def unchanged(log: FlightLog) -> bool:
    """Whether the file is still the one that was looked at. Blocks."""
    try:
        found = log.path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == log.stamp
