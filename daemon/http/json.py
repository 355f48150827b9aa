"""JSON that tolerates what petals return: NaN and infinities become null, numpy values numbers, and so on.

A large value is encoded in pieces with the event loop running between them: the encoder itself holds the interpreter,
so a thread would not help.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from datetime import time as day_time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final
from uuid import UUID

import orjson

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_AT_ONCE: Final = 5_000
"""Values that are encoded in one go: about half a millisecond."""
_HOLD_SECONDS: Final = 0.004
_DEEPEST: Final = 200
_LARGEST_INT: Final = 1 << 63


class Unencodable(TypeError):
    """A value cannot be written as JSON; the message says where it is and what it is."""

    code = "unencodable"


def encode(value: Any) -> bytes:
    """JSON of a value, in one go. Raises Unencodable, which names the member that is to blame."""
    try:
        return orjson.dumps(value, default=_known, option=_OPTIONS)
    except TypeError:  # a key that is no text, a large integer, half a character, or a value that nobody knows
        plain = _plain(value, "$", 0)
    try:
        return orjson.dumps(plain)
    except TypeError:
        return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode("ascii")


async def encode_large(value: Any) -> bytes:
    """The same for a value of any size, giving the event loop its turn every few milliseconds."""
    if _left(value, _AT_ONCE) >= 0:
        return encode(value)
    pieces = []
    since = time.monotonic()
    for piece in _pieces(value, 0):
        pieces.append(piece)
        if time.monotonic() - since > _HOLD_SECONDS:
            await asyncio.sleep(0)
            since = time.monotonic()
    return b"".join(pieces)


def native(value: Any) -> Any:
    """The same value with numpy's scalars and arrays as Python's own, for a validator that does not know them."""
    if isinstance(value, dict):
        return {key: native(member) for key, member in value.items()}
    if type(value) in (list, tuple):
        return type(value)(native(member) for member in value)
    return value.tolist() if _is_numpy(value) else value


def _pieces(value: Any, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise Unencodable(f"the value is nested more than {_DEEPEST} levels deep, or contains itself")
    if isinstance(value, dict):
        yield b"{"
        comma = b""
        for key, member in list(value.items()):
            yield comma + _key(key, "$") + b":"
            yield from _whole_or_pieces(member, depth)
            comma = b","
        yield b"}"
        return
    if isinstance(value, list | tuple) or (_is_numpy(value) and getattr(value, "ndim", 0) > 0):
        yield b"["
        comma = b""
        for group in _groups(value):
            yield comma
            if len(group) == 1:
                yield from _whole_or_pieces(group[0], depth)
            else:
                yield encode(group)[1:-1]
            comma = b","
        yield b"]"
        return
    yield encode(value)


def _whole_or_pieces(value: Any, depth: int) -> Iterator[bytes]:
    if _left(value, _AT_ONCE) >= 0:
        yield encode(value)
    else:
        yield from _pieces(value, depth + 1)


def _groups(values: Any) -> Iterator[list[Any]]:
    """Members that are small together, each large one alone."""
    group: list[Any] = []
    left = _AT_ONCE
    for member in list(values):
        after = _left(member, left - 1)
        if after < 0 and group:
            yield group
            group, after = [], _left(member, _AT_ONCE)
        group.append(member)
        left = after
        if after < 0:
            yield group
            group, left = [], _AT_ONCE
    if group:
        yield group


def _left(value: Any, budget: int) -> int:
    """What is left of a budget of values after this one; below 0: it is too large."""
    if isinstance(value, str):
        return budget - 1 - (len(value) >> 6)
    if isinstance(value, dict | list | tuple):
        budget -= 1 + len(value)
        for member in value.values() if isinstance(value, dict) else value:
            if budget < 0:
                break
            if type(member) not in (int, float, bool, type(None)):
                budget = _left(member, budget)
        return budget
    return budget - 1 - int(getattr(value, "size", 0)) if _is_numpy(value) else budget - 1


def _known(value: Any) -> Any:
    """What orjson asks about a value that it does not know. Raises TypeError for what nobody knows."""
    if hasattr(value, "model_dump"):
        try:
            return value.model_dump(mode="json", by_alias=True)
        except ValueError:  # pydantic cannot write something in it that we perhaps can
            return value.model_dump(by_alias=True)
    if _is_numpy(value):
        return value.tolist()
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    if isinstance(value, _NEVER):
        raise TypeError
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    if hasattr(value, "__dict__"):
        return {name: member for name, member in vars(value).items() if not name.startswith("_")}
    raise TypeError


def _plain(value: Any, where: str, depth: int) -> Any:
    """A value in JSON's own types, whatever it is made of; ``where`` names it in an error."""
    if depth > _DEEPEST:
        raise Unencodable(f"{where}: nested more than {_DEEPEST} levels deep, or it contains itself")
    if isinstance(value, Enum):
        return _plain(value.value, where, depth + 1)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, _DATES):
        return value.isoformat()
    if isinstance(value, dict):
        return {_key_text(key, where): _plain(member, f"{where}.{key}", depth + 1) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member, f"{where}[{number}]", depth + 1) for number, member in enumerate(value)]
    return _plain(_taken_apart(value, where), where, depth + 1)


def _taken_apart(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, UUID):
        return str(value)
    try:
        return _known(value)
    except TypeError:
        raise Unencodable(f"{where} is {_described(value)}") from None


def _described(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} {kind}, which JSON cannot hold: decode them, or return a Response with a media type"
    return f"a {kind}, which cannot be written as JSON"


def _key_text(key: Any, where: str) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    if isinstance(key, _DATES):
        return key.isoformat()
    if isinstance(key, UUID | PurePath):
        return str(key)
    if _is_numpy(key):
        return _key_text(key.tolist(), where)
    raise Unencodable(f"{where} has the key {key!r}, a {type(key).__name__}; keys must be texts or numbers")


def _key(key: Any, where: str) -> bytes:
    return orjson.dumps(_key_text(key, where))


def _number(value: Decimal) -> int | float | None:
    if not value.is_finite():
        return None
    whole = value == value.to_integral_value() and abs(value) < _LARGEST_INT
    return int(value) if whole else float(value)


def _is_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "tolist")


_DATES: Final = (datetime, date, day_time)
_NEVER: Final = (bytes, bytearray, memoryview, type, FunctionType, MethodType, ModuleType, BaseException)
_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (PurePath, str),
    ((set, frozenset, deque, tuple), list),
    (timedelta, timedelta.total_seconds),
    (Decimal, _number),
    (Mapping, dict),
)
