"""MAVLink FTP on the wire: the 251 bytes inside FILE_TRANSFER_PROTOCOL, folder listings, and the file's checksum. Pure.

Facts that the layout does not show: an answer carries the request's number plus one; a burst's packets count on from
there. A path travels without a terminating zero, and both autopilots put one into the last of the 239 bytes: a path of
239 bytes would name another file there, so 238 is the limit here.
"""

from __future__ import annotations

import os
import struct
import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.errors import MavlinkError

FTP_ID: Final = 110
"""FILE_TRANSFER_PROTOCOL."""

MOST_DATA: Final = 239
MOST_PATH: Final = 238
"""Bytes of a path, and of both paths of a rename with the zero between them."""

_HEADER: Final = struct.Struct("<HBBBBBxI")
_TARGET: Final = struct.Struct("<BBB")
_PAYLOAD: Final = 251
_WHOLE: Final = _TARGET.size + _PAYLOAD
_U32: Final = struct.Struct("<I")


class Opcode(IntEnum):
    """What is asked for."""

    NONE = 0
    TERMINATE_SESSION = 1
    RESET_SESSIONS = 2
    LIST_DIRECTORY = 3
    OPEN_FILE_RO = 4
    READ_FILE = 5
    CREATE_FILE = 6
    WRITE_FILE = 7
    REMOVE_FILE = 8
    CREATE_DIRECTORY = 9
    REMOVE_DIRECTORY = 10
    OPEN_FILE_WO = 11
    TRUNCATE_FILE = 12
    RENAME = 13
    CALC_FILE_CRC32 = 14
    BURST_READ_FILE = 15
    ACK = 128
    NAK = 129


class FtpNak(IntEnum):
    """Why a vehicle refuses."""

    FAIL = 1
    FAIL_ERRNO = 2
    INVALID_DATA_SIZE = 3
    INVALID_SESSION = 4
    NO_SESSIONS_AVAILABLE = 5
    END_OF_FILE = 6
    UNKNOWN_COMMAND = 7
    FILE_EXISTS = 8
    FILE_PROTECTED = 9
    FILE_NOT_FOUND = 10


NAK_TEXTS: Final = {
    FtpNak.FAIL: "it failed, without a reason",
    FtpNak.FAIL_ERRNO: "its file system refused",
    FtpNak.INVALID_DATA_SIZE: "it does not accept the request's size",
    FtpNak.INVALID_SESSION: "the file is not open any more",
    FtpNak.NO_SESSIONS_AVAILABLE: "no more files can be open; does another ground station transfer one?",
    FtpNak.END_OF_FILE: "there is nothing more behind this place",
    FtpNak.UNKNOWN_COMMAND: "it does not know this command",
    FtpNak.FILE_EXISTS: "it exists already",
    FtpNak.FILE_PROTECTED: "it is write-protected",
    FtpNak.FILE_NOT_FOUND: "there is no such file or folder",
}


class FtpPacket(NamedTuple):
    """One request or answer. ``opcode`` and ``req_opcode`` are Opcode's numbers, or unknown ones."""

    seq: int
    opcode: int
    session: int = 0
    offset: int = 0
    data: bytes = b""
    size: int | None = None
    """The size field where it is not the data's length: how many bytes a read asks for."""
    req_opcode: int = 0
    burst_complete: bool = False

    @property
    def nak(self) -> tuple[int, int | None] | None:
        """The refusal's number and the vehicle's errno, where it is a refusal."""
        if self.opcode != Opcode.NAK:
            return None
        error = self.data[0] if self.data else int(FtpNak.FAIL)
        return error, self.data[1] if error == FtpNak.FAIL_ERRNO and len(self.data) > 1 else None


class Entry(NamedTuple):
    """One name in a folder; ``size`` in bytes, None for a folder."""

    name: str
    size: int | None


class FtpError(MavlinkError):
    """A file operation did not succeed."""

    code = "FTP_ERROR"


class FtpPathInvalid(FtpError, ValueError):
    """The path cannot travel; nothing was sent."""

    code = "FTP_PATH_INVALID"


class FtpRefused(FtpError):
    """The vehicle said no. ``error`` is its number (FtpNak where it is known), ``errno`` its operating system's."""

    code = "FTP_REFUSED"

    def __init__(self, what: str, error: int, errno: int | None = None, *, sends: int = 1) -> None:
        """``what`` was asked for, in words; the request left ``sends`` times (a repeated one may have been done)."""
        self.error = error
        self.errno = errno
        self.sends = sends
        try:
            known = FtpNak(error)
        except ValueError:
            self.name, text = f"ERROR_{error}", "it tells an unknown reason"
        else:
            self.name, text = known.name, NAK_TEXTS[known]
        if errno is not None:
            text += f" ({os.strerror(errno)}, errno {errno})"
        if sends > 1:
            text += f"; it was asked {sends} times, and may have done it at an earlier one"
        super().__init__(f"{what}: the vehicle refuses: {text} ({self.name})")

    @property
    def detail(self) -> dict[str, object]:
        """The refusal's name and numbers."""
        return {"error": self.name, "number": self.error, "errno": self.errno, "times_sent": self.sends}


def pack_packet(packet: FtpPacket, *, system: int, component: int = 1) -> bytes:
    """FILE_TRANSFER_PROTOCOL's payload, 254 bytes, for a target. Raises ValueError when the data is too long."""
    if len(packet.data) > MOST_DATA:
        raise ValueError(f"{len(packet.data)} bytes of data; at most {MOST_DATA} fit")
    size = len(packet.data) if packet.size is None else packet.size
    head = _HEADER.pack(
        packet.seq, packet.session, packet.opcode, size, packet.req_opcode, packet.burst_complete, packet.offset
    )
    return (_TARGET.pack(0, system, component) + head + packet.data).ljust(_WHOLE, b"\0")


def unpack_packet(payload: bytes) -> tuple[FtpPacket, int, int] | None:
    """The packet, its target system and component; None when it claims more data than the message has.

    ``payload`` may have lost its trailing zeros, as MAVLink 2 sends it. The data of a read request is its size's.
    """
    whole = payload[:_WHOLE].ljust(_WHOLE, b"\0")
    _, system, component = _TARGET.unpack_from(whole)
    seq, session, opcode, size, req_opcode, complete, offset = _HEADER.unpack_from(whole, _TARGET.size)
    if size > MOST_DATA:
        return None
    start = _TARGET.size + _HEADER.size
    data = whole[start : start + size]
    return FtpPacket(seq, opcode, session, offset, data, size, req_opcode, bool(complete)), system, component


def path_bytes(path: str) -> bytes:
    """The path as it travels. Raises FtpPathInvalid."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise FtpPathInvalid(f"path {path!r}: it is no valid text") from None
    if not raw or b"\0" in raw or len(raw) > MOST_PATH:
        raise FtpPathInvalid(f"path {path!r}: it needs 1 to {MOST_PATH} bytes (it has {len(raw)}) without a zero byte")
    return raw


def rename_bytes(old: str, new: str) -> bytes:
    """Both paths of a rename as they travel. Raises FtpPathInvalid."""
    raw = path_bytes(old) + b"\0" + path_bytes(new)
    if len(raw) > MOST_PATH:
        raise FtpPathInvalid(f"paths {old!r} and {new!r}: together they have {len(raw) - 1} bytes, {MOST_PATH - 1} fit")
    return raw


def unpack_entries(data: bytes) -> tuple[int, list[Entry]]:
    """The entries of a listing's answer: how many places of the folder they take, and those that name something.

    A skipped one ("S") takes a place and names nothing; "." and ".." are left out. Older ArduPilot sends two zeros
    behind each entry: empty ones take no place. A name that is no UTF-8 comes with backslash escapes.
    """
    places = 0
    entries: list[Entry] = []
    for raw in data.split(b"\0"):
        if not raw:
            continue
        places += 1
        kind, text = raw[:1], raw[1:].decode("utf-8", "backslashreplace")
        if kind == b"F":
            name, _, size = text.rpartition("\t")
            if name and size.isascii() and size.isdigit():
                entries.append(Entry(name, int(size)))
            elif text:
                entries.append(Entry(name or text, 0))
        elif kind == b"D" and text not in ("", ".", ".."):
            entries.append(Entry(text, None))
    return places, entries


def pack_entry(entry: Entry) -> bytes:
    """One entry of a listing, with its zero."""
    text = f"D{entry.name}" if entry.size is None else f"F{entry.name}\t{entry.size}"
    return text.encode() + b"\0"


def pack_u32(number: int) -> bytes:
    """A size or a checksum as an answer's data."""
    return _U32.pack(number)


def unpack_u32(data: bytes) -> int:
    """A size or a checksum. Raises ValueError when it is too short."""
    if len(data) < _U32.size:
        raise ValueError(f"4 bytes are needed, {len(data)} came")
    number: int = _U32.unpack_from(data)[0]
    return number


def file_crc(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CalcFileCRC32 of a file whose beginning gave ``crc``.

    Both autopilots take zlib's polynomial, start at 0, and do not invert the result.
    """
    return zlib.crc32(data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
