"""Values as DynamoDB has them: ``{"N": "1.5"}``. What goes there comes back as it was, with three exceptions.

A tuple becomes a list, a date its ISO text, and a number that is no number (NaN, infinite) null. Numbers come back as
int, as float where that says the same, and as Decimal where it would not.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from petalbus.handlers.database.errors import Refused

MAX_DEPTH: Final = 32
_MOST_WHOLE: Final = 10**38
"""A table's numbers have 38 digits."""
_SETS: Final = {"SS": "S", "NS": "N", "BS": "B"}


def to_attribute(value: Any, depth: int = 0) -> dict[str, Any]:
    """One value. Raises Refused for what there is no type for."""
    if depth > MAX_DEPTH:
        raise Refused(f"an item may be nested {MAX_DEPTH} deep")
    if (plain := _plain(value)) is not None:
        return plain
    if isinstance(value, Mapping):
        return {"M": {str(name): to_attribute(one, depth + 1) for name, one in value.items()}}
    if isinstance(value, list | tuple):
        return {"L": [to_attribute(one, depth + 1) for one in value]}
    if isinstance(value, set | frozenset):
        return _set(value)
    raise Refused(f"a table has no type for {type(value).__name__}")


def _plain(value: Any) -> dict[str, Any] | None:
    """A value that holds no others; None for others."""
    made: dict[str, Any] | None = None
    if value is None or (isinstance(value, float | Decimal) and not _is_finite(value)):
        made = {"NULL": True}
    elif isinstance(value, bool):
        made = {"BOOL": value}
    elif isinstance(value, str):
        made = {"S": str(value)}
    elif isinstance(value, int | float | Decimal):
        made = {"N": _number(value)}
    elif isinstance(value, bytes | bytearray | memoryview):
        made = {"B": bytes(value)}
    elif isinstance(value, dt.date | dt.time):  # a datetime is a date
        made = {"S": value.isoformat()}
    return made


def from_attribute(attribute: Mapping[str, Any]) -> Any:
    """The value again. Raises Refused for what is no attribute value."""
    try:
        ((kind, told),) = attribute.items()
        match kind:
            case "S" | "BOOL":
                return told
            case "N":
                return _from_number(told)
            case "B":
                return bytes(told)
            case "NULL":
                return None
            case "M":
                return {name: from_attribute(one) for name, one in told.items()}
            case "L":
                return [from_attribute(one) for one in told]
            case "SS" | "NS" | "BS":
                return {from_attribute({_SETS[kind]: one}) for one in told}
    except (AttributeError, TypeError, ValueError, InvalidOperation, RecursionError):
        pass
    raise Refused(f"{attribute!r:.80} is no value of a table")


def members(item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """An item's members."""
    return {str(name): to_attribute(value) for name, value in item.items()}


def from_members(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item's members again."""
    return {name: from_attribute(value) for name, value in item.items()}


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether JSON says it as it is."""
    if value is None or isinstance(value, bool | str | int):
        return not isinstance(value, int) or -(2**63) <= value < 2**64
    if isinstance(value, float):
        return math.isfinite(value)
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, list):
        return all(is_plain(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_plain(one, depth + 1) for name, one in value.items())
    return False


def members_to_wire(item: Mapping[str, Any]) -> dict[str, Any]:
    """Members as a record carries them where JSON has no words: attribute values, bytes in base64."""
    return {name: _coded(value, encode=True) for name, value in members(item).items()}


def members_from_wire(item: Mapping[str, Any]) -> dict[str, Any]:
    """Those members again. Raises Refused."""
    try:
        return from_members({name: _coded(value, encode=False) for name, value in item.items()})
    except (AttributeError, TypeError, ValueError):
        raise Refused("item is typed, and its members are no attribute values") from None


def _coded(attribute: Mapping[str, Any], *, encode: bool) -> dict[str, Any]:
    ((kind, told),) = attribute.items()
    if kind == "B":
        return {kind: base64.b64encode(told).decode() if encode else base64.b64decode(told, validate=True)}
    if kind == "BS":
        return {kind: [_coded({"B": one}, encode=encode)["B"] for one in told]}
    if kind == "M":
        return {kind: {name: _coded(one, encode=encode) for name, one in told.items()}}
    if kind == "L":
        return {kind: [_coded(one, encode=encode) for one in told]}
    return {kind: told}


def _set(value: set[Any] | frozenset[Any]) -> dict[str, Any]:
    if not value:
        raise Refused("a table has no empty sets: leave the member out, or write a list")
    made = [to_attribute(one) for one in value]
    kinds = {next(iter(one)) for one in made}
    if len(kinds) != 1 or not kinds <= set(_SETS.values()):
        raise Refused("a set must hold texts, or numbers, or bytes")
    (kind,) = kinds
    return {f"{kind}S": sorted((one[kind] for one in made), key=repr)}


def _is_finite(value: float | Decimal) -> bool:
    return value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)


def _number(value: float | Decimal) -> str:
    if isinstance(value, float) and (abs(value) >= _MOST_WHOLE or not value.is_integer()):
        return float.__repr__(value)
    return str(value) if isinstance(value, Decimal) else str(int(value))


def _from_number(text: str) -> int | float | Decimal:
    exact = Decimal(text)
    if exact == exact.to_integral_value() and abs(exact) < _MOST_WHOLE:
        return int(exact)
    near = float(exact)
    return near if math.isfinite(near) and Decimal(repr(near)) == exact else exact
