"""The checksum of MAVLink (CRC-16/MCRF4XX), compiled where `fastcrc` is installed, else table-driven Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_compiled: Callable[[bytes], int] | None
try:
    from fastcrc.crc16 import mcrf4xx
except ImportError:  # there is no wheel of it for every processor
    _compiled = None
else:
    _compiled = mcrf4xx

_START: Final = 0xFFFF


def _table_entry(byte: int) -> int:
    mixed = (byte ^ (byte << 4)) & 0xFF
    return (mixed << 8) ^ (mixed << 3) ^ (mixed >> 4)


CRC_TABLE: Final = tuple(_table_entry(byte) for byte in range(256))
"""What one byte, already combined with the low half of the state, adds to the high half."""

_CRC_TABLE_INVERSE: Final = {value: byte for byte, value in enumerate(CRC_TABLE)}


def crc_in_python(data: bytes) -> int:
    """The checksum of ``data`` without compiled help."""
    state = _START
    for byte in data:
        state = (state >> 8) ^ CRC_TABLE[(state ^ byte) & 0xFF]
    return state


crc: Final[Callable[[bytes], int]] = _compiled or crc_in_python
"""The checksum of ``data``, the CRC extra byte not yet included."""


def crc_with_extra(state: int, extra: int) -> int:
    """Finish a checksum with the message's CRC extra byte."""
    return (state >> 8) ^ CRC_TABLE[(state ^ extra) & 0xFF]


def implied_extra(state: int, received: int) -> int | None:
    """The CRC extra byte that turns ``state`` into ``received``; None when no byte does.

    A frame of an unknown message can be checked with it all the same: damage leaves no fitting byte in 255 of 256
    cases, and the byte must be the same for every frame of that message.
    """
    byte = _CRC_TABLE_INVERSE.get(received ^ (state >> 8))
    return None if byte is None else byte ^ (state & 0xFF)
