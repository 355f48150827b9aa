"""Values as DynamoDB has them: ``{"N": "1.5"}``. What goes there comes back as it was, with four exceptions.

A tuple becomes a list, a date its ISO text, a number that is no number (NaN, infinite) null, and a float nearer to 0
than 1e-130 becomes 0. Numbers come back as int, as float where that says the same, and as Decimal where it would not.
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
_DIGITS: Final = 38
_MOST_WHOLE: Final = 10**_DIGITS
"""A table's numbers have 38 digits."""

_MOST_EXPONENT: Final = 125
_LEAST_EXPONENT: Final = -130
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
        return type(value) is float and math.isfinite(value)  # numpy's is a float, and no JSON
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


def same(one: Any, other: Any) -> bool:
    """Whether a table takes two values for the same: 1 is 1.0, but not true, and the empty text is not null."""
    return bool(_comparable(one) == _comparable(other))


def _comparable(value: Any) -> tuple[str, Any]:
    made: tuple[str, Any] = type(value).__name__, value
    if isinstance(value, float) and math.isfinite(value):
        exact = Decimal(_digits(value))
        made = "N", exact if exact.adjusted() >= _LEAST_EXPONENT else 0
    elif isinstance(value, Decimal) and value.is_finite():
        made = "N", value
    elif isinstance(value, int) and not isinstance(value, bool):
        made = "N", value  # no text is made of it: of a very long one Python makes none
    elif isinstance(value, Mapping):
        made = "M", {str(name): _comparable(one) for name, one in value.items()}
    elif isinstance(value, list | tuple):
        made = "L", [_comparable(one) for one in value]
    elif isinstance(value, set | frozenset):
        made = "set", frozenset(map(_comparable, value))
    elif (plain := _plain(value)) is not None:
        ((kind, told),) = plain.items()
        made = kind, told
    return made


def _set(value: set[Any] | frozenset[Any]) -> dict[str, Any]:
    if not value:
        raise Refused("a table has no empty sets: leave the member out, or write a list")
    made = [to_attribute(one) for one in value]
    kinds = {next(iter(one)) for one in made}
    if len(kinds) != 1 or not kinds <= set(_SETS.values()):
        raise Refused("a set must hold texts, or numbers, or bytes")
    (kind,) = kinds
    # 0.1 and Decimal("0.10") are two in Python, and one in a table
    told = {Decimal(one[kind]) if kind == "N" else one[kind]: one[kind] for one in made}
    return {f"{kind}S": sorted(told.values(), key=repr)}


def _is_finite(value: float | Decimal) -> bool:
    return value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)


def _number(value: float | Decimal) -> str:
    """Its digits. Raises Refused for what a table's number cannot be."""
    if isinstance(value, int) and abs(value) >= 10 ** (_MOST_EXPONENT + 1):  # of a very long one Python makes no text
        raise Refused(f"a table's number is less than 1e{_MOST_EXPONENT + 1}, and this one has more digits")
    text = _digits(value)
    exact = Decimal(text)
    if not exact:
        return "0"
    if exact.adjusted() < _LEAST_EXPONENT and isinstance(value, float):
        return "0"
    if not _LEAST_EXPONENT <= exact.adjusted() <= _MOST_EXPONENT:
        raise Refused(f"a table's number is from 1e{_LEAST_EXPONENT} to 9.9e{_MOST_EXPONENT}, not {text:.40}")
    if len("".join(map(str, exact.as_tuple().digits)).rstrip("0")) > _DIGITS:
        raise Refused(f"a table's number has {_DIGITS} digits at most, and {text:.40}... has more: write it as a text")
    return text


def _digits(value: float | Decimal) -> str:
    if isinstance(value, Decimal):
        return str(value)
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < _MOST_WHOLE)
    return str(int(value)) if is_whole else float.__repr__(value)


def _from_number(text: str) -> int | float | Decimal:
    exact = Decimal(text)
    if exact == exact.to_integral_value() and abs(exact) < _MOST_WHOLE:
        return int(exact)
    near = float(exact)
    return near if math.isfinite(near) and Decimal(repr(near)) == exact else exact
