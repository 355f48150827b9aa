"""Parameter values on the wire, byte for byte.

A parameter's value travels in four bytes that MAVLink calls a float. PX4 puts an integer's own bytes there, ArduPilot
converts the number to a float. In the first way some integers look like a signalling NaN, and a Python float turns
such a NaN into a quiet one: -5000000 would arrive as -805696. So the four bytes never become a float on their way.
"""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

PARAM_REQUEST_READ_ID: Final = 20
PARAM_REQUEST_LIST_ID: Final = 21
PARAM_VALUE_ID: Final = 22
PARAM_SET_ID: Final = 23
PARAM_ERROR_ID: Final = 345
MAX_NAME: Final = 16

_FLOAT: Final = struct.Struct("<f")
_PARAM_REQUEST_READ: Final = struct.Struct("<hBB16s")
_PARAM_VALUE: Final = struct.Struct("<4sHH16sB")
_PARAM_SET: Final = struct.Struct("<4sBB16sB")
_PARAM_ERROR: Final = struct.Struct("<hBB16sB")
_EXACT_IN_FLOAT: Final = 1 << 24


class ParamEncoding(StrEnum):
    """How a vehicle puts integers into the four bytes."""

    C_CAST = "c_cast"
    BYTEWISE = "bytewise"


class ParamType(IntEnum):
    """MAV_PARAM_TYPE, as far as four bytes can carry it."""

    UINT8 = 1
    INT8 = 2
    UINT16 = 3
    INT16 = 4
    UINT32 = 5
    INT32 = 6
    REAL32 = 9


_INTEGERS: Final[dict[ParamType, tuple[struct.Struct, int, int]]] = {
    ParamType.UINT8: (struct.Struct("<Bxxx"), 0, 0xFF),
    ParamType.INT8: (struct.Struct("<bxxx"), -0x80, 0x7F),
    ParamType.UINT16: (struct.Struct("<Hxx"), 0, 0xFFFF),
    ParamType.INT16: (struct.Struct("<hxx"), -0x8000, 0x7FFF),
    ParamType.UINT32: (struct.Struct("<I"), 0, 0xFFFFFFFF),
    ParamType.INT32: (struct.Struct("<i"), -0x80000000, 0x7FFFFFFF),
}


class ParamValue(NamedTuple):
    """A PARAM_VALUE or PARAM_SET: the name, the four bytes, the type's number, and where PARAM_VALUE places it."""

    name: str
    raw: bytes
    param_type: int
    position: int = 0
    total: int = 0


class ParamError(IntEnum):
    """MAV_PARAM_ERROR: why a vehicle refuses. pymavlink's table ends before the last three."""

    DOES_NOT_EXIST = 1
    VALUE_OUT_OF_RANGE = 2
    PERMISSION_DENIED = 3
    COMPONENT_NOT_FOUND = 4
    READ_ONLY = 5
    TYPE_UNSUPPORTED = 6
    TYPE_MISMATCH = 7
    READ_FAIL = 8


def encode_value(value: float, param_type: int, encoding: ParamEncoding) -> bytes:
    """The four bytes of ``value``. Raises ValueError when the type cannot travel or the value does not fit it."""
    kind = _known(param_type)
    if kind is ParamType.REAL32:
        try:
            return _FLOAT.pack(value)
        except OverflowError:
            raise ValueError(f"{value} does not fit REAL32 (at most 3.4e38)") from None
    layout, low, high = _INTEGERS[kind]
    number = int(value)
    if number != value or not low <= number <= high:
        raise ValueError(f"{value} does not fit {kind.name} (a whole number from {low} to {high})")
    if encoding is ParamEncoding.BYTEWISE:
        return layout.pack(number)
    if abs(number) > _EXACT_IN_FLOAT and _FLOAT.unpack(_FLOAT.pack(number))[0] != number:
        raise ValueError(f"{number} cannot travel as a float without changing (exact up to {_EXACT_IN_FLOAT})")
    return _FLOAT.pack(number)


def decode_value(raw: bytes, param_type: int, encoding: ParamEncoding) -> float | int:
    """The value in four bytes. Raises ValueError when the type cannot travel, or an integer's float is no number."""
    kind = _known(param_type)
    if kind is ParamType.REAL32:
        value: float = _FLOAT.unpack(raw)[0]
        return value
    layout, _, _ = _INTEGERS[kind]
    if encoding is ParamEncoding.BYTEWISE:
        number: int = layout.unpack(raw)[0]
        return number
    try:
        return int(_FLOAT.unpack(raw)[0])
    except (ValueError, OverflowError):
        raise ValueError(f"bytes {raw.hex()} are no number for {kind.name} in the {encoding} encoding") from None


def _known(param_type: int) -> ParamType:
    try:
        return ParamType(param_type)
    except ValueError:
        allowed = ", ".join(f"{kind.name} ({kind.value})" for kind in ParamType)
        raise ValueError(f"parameter type {param_type} cannot travel in four bytes; it is one of {allowed}") from None


def pack_param_value(value: ParamValue) -> bytes:
    """The payload of PARAM_VALUE."""
    return _PARAM_VALUE.pack(value.raw, value.total, value.position, value.name.encode(), value.param_type)


def unpack_param_value(payload: bytes) -> ParamValue:
    """Read a PARAM_VALUE's payload."""
    raw, total, position, name, kind = _PARAM_VALUE.unpack(_filled(payload, _PARAM_VALUE.size))
    return ParamValue(_text(name), raw, kind, position, total)


def pack_param_set(value: ParamValue, *, system: int, component: int) -> bytes:
    """The payload of PARAM_SET to ``system`` and ``component``."""
    return _PARAM_SET.pack(value.raw, system, component, value.name.encode(), value.param_type)


def unpack_param_set(payload: bytes) -> tuple[ParamValue, int, int]:
    """Read a PARAM_SET's payload: the value, the target system, the target component."""
    raw, system, component, name, kind = _PARAM_SET.unpack(_filled(payload, _PARAM_SET.size))
    return ParamValue(_text(name), raw, kind), system, component


def pack_param_read(key: str | int, *, system: int, component: int) -> bytes:
    """The payload of PARAM_REQUEST_READ, by name or, where ``key`` is a number, by position."""
    name, position = (key, -1) if isinstance(key, str) else ("", key)
    return _PARAM_REQUEST_READ.pack(position, system, component, name.encode())


def pack_param_list(*, system: int, component: int) -> bytes:
    """The payload of PARAM_REQUEST_LIST."""
    return bytes((system, component))


def unpack_param_error(payload: bytes) -> tuple[str, int, int, int]:
    """Read a PARAM_ERROR's payload: the name, the error, and the system and component that it answers.

    Its position is not given: PX4 leaves there what it finds.
    """
    _, system, component, name, error = _PARAM_ERROR.unpack(_filled(payload, _PARAM_ERROR.size))
    return _text(name), error, system, component


def _filled(payload: bytes, size: int) -> bytes:
    return payload[:size].ljust(size, b"\0")


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("ascii", "backslashreplace")
