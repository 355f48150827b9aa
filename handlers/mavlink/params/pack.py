"""ArduPilot's ``@PARAM/param.pck``: all parameters in one small file. Pure.

A header (magic, parameters here, parameters in all; three u16), then one entry a parameter: type and flags in a byte,
shared and own letters of the name in another (the own ones minus one), the own letters, the value, and the default
where the flag says that one follows. Zero bytes between entries are padding: a value does not cross the packets that
the file is read in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.params.values import MAX_NAME, ParamType

PARAM_FILE: Final = "@PARAM/param.pck"
PARAM_FILE_WITH_DEFAULTS: Final = "@PARAM/param.pck?withdefaults=1"

_MAGIC: Final = 0x671B
_MAGIC_DEFAULTS: Final = 0x671C
_HEADER: Final = struct.Struct("<HHH")
_HAS_DEFAULT: Final = 1
_KINDS: Final[dict[int, tuple[ParamType, struct.Struct]]] = {
    1: (ParamType.INT8, struct.Struct("<b")),
    2: (ParamType.INT16, struct.Struct("<h")),
    3: (ParamType.INT32, struct.Struct("<i")),
    4: (ParamType.REAL32, struct.Struct("<f")),
}
_NUMBERS: Final = {kind: (number, form) for number, (kind, form) in _KINDS.items()}


class ParamPackError(MavlinkError, ValueError):
    """The file is not what it should be; the text says where."""

    code = "PARAM_PACK_INVALID"


class PackedParam(NamedTuple):
    """One parameter. ``default`` is None where the file does not tell one (it may be the value itself)."""

    name: str
    value: float
    """An int for integers."""
    kind: ParamType
    default: float | None = None


class ParamPack(NamedTuple):
    """The file's parameters, and how many the vehicle has in all."""

    params: list[PackedParam]
    total: int


def decode_param_pack(data: bytes) -> ParamPack:
    """Read the file. Raises ParamPackError when a byte of it makes no sense, or when it is cut."""
    if len(data) < _HEADER.size:
        raise ParamPackError(f"the parameter file has {len(data)} bytes, less than its header")
    magic, count, total = _HEADER.unpack_from(data)
    if magic not in (_MAGIC, _MAGIC_DEFAULTS):
        raise ParamPackError(f"the parameter file begins with {magic:#06x}, not with {_MAGIC:#06x}")
    params: list[PackedParam] = []
    at = _HEADER.size
    previous = b""
    for _ in range(count):
        while at < len(data) and data[at] == 0:
            at += 1
        param, previous, at = _decode_entry(data, at, previous, with_defaults=magic == _MAGIC_DEFAULTS)
        params.append(param)
    if any(data[at:]):
        raise ParamPackError(f"the parameter file goes on at byte {at}, behind the {count} parameters that it promises")
    return ParamPack(params, total)


def _decode_entry(data: bytes, at: int, previous: bytes, *, with_defaults: bool) -> tuple[PackedParam, bytes, int]:
    """The parameter at a place, its name's bytes, and the place behind it."""
    try:
        number, flags = data[at] & 15, data[at] >> 4
        common, own = data[at + 1] & 15, (data[at + 1] >> 4) + 1
        kind, form = _KINDS[number]
        raw = previous[:common] + data[at + 2 : at + 2 + own]
        name = raw.decode("ascii")
        if len(raw) != common + own or len(raw) > MAX_NAME:
            raise ParamPackError(f"the parameter file has a wrong name at byte {at}: {raw!r}")
        at += 2 + own
        value: float = form.unpack_from(data, at)[0]
        at += form.size
        default: float | None = None
        if with_defaults and flags & _HAS_DEFAULT:
            default = form.unpack_from(data, at)[0]
            at += form.size
    except (KeyError, UnicodeDecodeError):
        raise ParamPackError(f"the parameter file makes no sense at byte {at}") from None
    except (IndexError, struct.error):
        raise ParamPackError(f"the parameter file is cut: it ends within the parameter at byte {at}") from None
    return PackedParam(name, value, kind, default), raw, at


def encode_param_pack(
    params: Iterable[PackedParam], *, total: int | None = None, with_defaults: bool = False, block: int = 0
) -> bytes:
    """Write the file as a vehicle does that is read ``block`` bytes at a time (0: without padding).

    Raises ParamPackError for names and types that it cannot hold. ``total`` is the header's (default: all of them).
    """
    entries = list(params)
    magic = _MAGIC_DEFAULTS if with_defaults else _MAGIC
    out = bytearray(_HEADER.pack(magic, len(entries), len(entries) if total is None else total))
    previous = ""
    for param in entries:
        head, values = _encode_entry(param, previous, with_defaults=with_defaults)
        past = (len(out) + len(head) + len(values)) % block if block else 0
        if 0 < past < len(values):
            out += bytes(len(values) - past)
        out += head + values
        previous = param.name
    return bytes(out)


def _encode_entry(param: PackedParam, previous: str, *, with_defaults: bool) -> tuple[bytes, bytes]:
    name = param.name
    if not name.isascii() or "\0" in name or not 1 <= len(name) <= MAX_NAME:
        raise ParamPackError(f"parameter name {name!r}: it needs 1 to {MAX_NAME} ASCII letters")
    if param.kind not in _NUMBERS:
        raise ParamPackError(f"parameter {name}: the file cannot hold type {param.kind}")
    number, form = _NUMBERS[param.kind]
    same = next((at for at, (a, b) in enumerate(zip(name, previous, strict=False)) if a != b), len(previous))
    common = min(same, len(name) - 1, 15)
    own = name[common:].encode()
    default = param.default if with_defaults else None
    try:
        values = form.pack(param.value) + (b"" if default is None else form.pack(default))
    except (struct.error, OverflowError):
        raise ParamPackError(f"parameter {name}: {param.value!r} does not fit its type") from None
    flags = 0 if default is None else _HAS_DEFAULT
    return bytes((number | flags << 4, common | (len(own) - 1) << 4)) + own, values
