"""Checking payloads, in both directions: bytes that came in, and values that are to go out.

Both ends check the same thing, the JSON that is on the wire, so what one end accepts the other can read: strict JSON as
orjson defines it (no NaN, no Infinity, no lone surrogates), at most ``MAX_PAYLOAD_BYTES`` long, ``MAX_DEPTH`` deep and
``MAX_KEYS`` members an object, and the model of its type where the type has one.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads.models import PAYLOADS
from petalbus.schemas.payloads.plain import plain_validator
from petalbus.schemas.record import JSON_TYPE
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

MAX_DEPTH: Final = 64
"""Deepest nesting of objects and arrays in a payload."""

MAX_KEYS: Final = 8192
"""Most members of one object: more than any autopilot has parameters."""

_VALIDATORS: Final = {name: plain_validator(model) for name, model in PAYLOADS.items()}

# A level of nesting takes two bytes and a member five (`"a":1,` less one), so a short body cannot break those limits.
_SURELY_SHALLOW: Final = 2 * MAX_DEPTH
_SURELY_FEW_KEYS: Final = 5 * MAX_KEYS

# A dataclass could hide a NaN from the search below; its author can send `dataclasses.asdict(...)`.
_DUMP_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS


def validate_payload(record_type: str, body: bytes) -> Any:
    """Check the JSON bytes of a payload against its type; return the decoded value.

    Raises RecordInvalid naming the member (``data.parameters.altitude``) and what was expected of it.
    """
    size = len(body)
    if size > MAX_PAYLOAD_BYTES:
        raise _too_large(size)
    value = decode_json(body)
    if size > _SURELY_SHALLOW:
        _check_shape(body, value)
    check = _VALIDATORS.get(record_type)
    if check is not None:
        try:
            check(value)
        except ValidationError as error:
            raise _complaint(record_type, error, value) from None
    return value


def validate_value(record_type: str, value: Any) -> Any:
    """Check a payload that is still a Python value, as ``prepare`` does; return it unchanged. Raises RecordInvalid."""
    prepare(record_type, value)
    return value


def prepare(record_type: str, data: Any, *, content_type: str | None = None) -> bytes:
    """Check a payload once and give the bytes that go on the wire.

    ``data`` is a JSON value (datetimes and UUIDs become text), a payload model, or bytes. Bytes need a
    ``content_type``: anything but JSON passes as it is, JSON is checked like any other. Raises RecordInvalid naming the
    member and the limit.
    """
    if type(data) is not dict:
        if isinstance(data, bytes | bytearray | memoryview):
            return _prepare_bytes(record_type, bytes(data), content_type)
        if isinstance(data, BaseModel):
            data = data.model_dump(exclude_unset=True)
    if content_type is not None and content_type != JSON_TYPE:
        problem = f"is {type(data).__name__} but content_type is {content_type!r}"
        raise RecordInvalid("data", problem, limit="bytes, or no content_type")
    body = encode_json(data)
    size = len(body)
    if size > MAX_PAYLOAD_BYTES:
        raise _too_large(size)
    check = _VALIDATORS.get(record_type)
    if check is not None:
        try:
            check(data)
        except ValidationError:
            # Python knows more than JSON (tuples, enums, datetimes): what counts is what the reader will get.
            validate_payload(record_type, body)
    if size > _SURELY_SHALLOW:
        _check_shape(body, data)
    return body


def encode_json(value: Any, *, under: str = "data", sort_keys: bool = False) -> bytes:
    """Write strict JSON; ``under`` is the name of the value in errors, ``sort_keys`` gives equal values equal bytes.

    Raises RecordInvalid naming the place of what is not JSON: NaN, Infinity, keys that are not text, integers beyond 64
    bits, foreign objects.
    """
    try:
        body = orjson.dumps(value, option=_DUMP_OPTIONS | orjson.OPT_SORT_KEYS if sort_keys else _DUMP_OPTIONS)
    except TypeError as error:
        raise _fault(value, under, 0) or RecordInvalid(under, f"cannot become JSON: {error}") from None
    # orjson writes NaN and Infinity as null: only then is it worth a search
    if b"null" in body and (fault := _fault(value, under, 0)) is not None:
        raise fault
    return body


def decode_json(body: bytes | str, *, under: str = "data") -> Any:
    """Read strict JSON; ``under`` is the name of the value in errors. Raises RecordInvalid."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = body.encode("utf-8", "replace") if isinstance(body, str) else body
        hint = ""
        if b"NaN" in text or b"Infinity" in text:
            hint = "; NaN and Infinity are no JSON values, send null instead"
        problem = f"is not JSON: {error}{hint}"
        raise RecordInvalid(under, problem, limit="a JSON value, or another content_type") from None


def _prepare_bytes(record_type: str, body: bytes, content_type: str | None) -> bytes:
    if content_type is None:
        raise RecordInvalid("content_type", "is missing for a payload of bytes", limit="a media type")
    if content_type == JSON_TYPE:
        validate_payload(record_type, body)
    elif len(body) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(body))
    elif record_type in PAYLOADS:
        raise RecordInvalid(
            "content_type", f"is {content_type!r} but payloads of type {record_type!r} are JSON", limit=JSON_TYPE
        )
    return body


def _too_large(size: int) -> RecordInvalid:
    return RecordInvalid("data", f"has {size} bytes", limit=f"at most {MAX_PAYLOAD_BYTES} bytes")


def _check_shape(body: bytes, value: Any) -> None:
    """Refuse what is nested too deeply or has too many members; walks only where the bytes leave that possible."""
    crowded = len(body) > _SURELY_FEW_KEYS and body.count(b":") > MAX_KEYS
    if not crowded and body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    level = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(MAX_DEPTH):
        if crowded and any(isinstance(item, dict) and len(item) > MAX_KEYS for item in level):
            raise RecordInvalid("data", "has an object with too many members", limit=f"at most {MAX_KEYS} members")
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return
    raise RecordInvalid("data", "is nested too deeply", limit=f"at most {MAX_DEPTH} levels")


def _fault(value: Any, path: str, depth: int) -> RecordInvalid | None:
    """Find the first thing in a Python value that strict JSON cannot say."""
    problem = limit = None
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Mapping | list | tuple):
        return _fault_within(value, path, depth)
    if isinstance(value, float):
        if not math.isfinite(value):
            problem, limit = f"is {value}, which JSON cannot say", "a finite number, or null"
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            problem, limit = "is an integer of more than 64 bits", "an integer of 64 bits, or text"
    elif isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            problem, limit = "holds half a surrogate pair", "text that UTF-8 can write"
    elif value is not None:
        try:
            orjson.dumps(value, option=_DUMP_OPTIONS)
        except TypeError:
            problem, limit = f"is a {type(value).__name__}, which JSON cannot say", "a JSON value"
    return RecordInvalid(path, problem, limit=limit) if problem else None


def _fault_within(value: Any, path: str, depth: int) -> RecordInvalid | None:
    if depth >= MAX_DEPTH:  # also where a value contains itself
        return RecordInvalid(path, "is nested too deeply", limit=f"at most {MAX_DEPTH} levels")
    for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(value, Mapping) and not isinstance(key, str):
            return RecordInvalid(path, f"has the key {key!r}", limit="keys that are text")
        if (fault := _fault(child, f"{path}.{key}", depth + 1)) is not None:
            return fault
    return None


def _complaint(record_type: str, error: ValidationError, value: Any) -> RecordInvalid:
    """Say pydantic's first complaint in the contract's words."""
    first, *others = error.errors(include_url=False)
    path = _path(first, value)
    problem, limit = _explain(first, record_type)
    for other in others:  # a union complains once for each of its members
        if _path(other, value) == path:
            more, more_limit = _explain(other, record_type)
            problem = f"{problem} or {more}" if more != problem else problem
            limit = f"{limit} or {more_limit}" if limit and more_limit and more_limit != limit else limit
    return RecordInvalid(path, problem, limit=limit)


def _path(error: ErrorDetails, value: Any) -> str:
    """The member's path; pydantic mixes the names of union members into it, which nobody sent."""
    parts = ["data"]
    place = error["loc"]
    for index, part in enumerate(place):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list | tuple) and isinstance(part, int)):
            value = value[part]  # type: ignore[index]  # an index of a list, a key of a dict: checked just now
            parts.append(str(part))
        elif error["type"] == "missing" and index == len(place) - 1:
            parts.append(str(part))
    return ".".join(parts)


_EXPLAINED: Final[Mapping[str, tuple[str, str]]] = {
    "model_type": ("is not an object", "a JSON object"),
    "dict_type": ("is not an object", "a JSON object"),
    "list_type": ("is not an array", "a JSON array"),
    "string_type": ("is not text", "text"),
    "bool_type": ("is neither true nor false", "true or false"),
    "float_type": ("is not a number", "a number"),
    "finite_number": ("is not finite", "a finite number"),
    "greater_than_equal": ("is too small", "at least {ge:g}"),
    "greater_than": ("is too small", "more than {gt:g}"),
    "less_than_equal": ("is too large", "at most {le:g}"),
    "string_too_short": ("is too short", "at least {min_length} characters"),
    "string_too_long": ("is too long", "at most {max_length} characters"),
    "too_long": ("has too many items", "at most {max_length} items"),
    "string_pattern_mismatch": ("is not a time", "ISO 8601, such as 2026-01-31T12:00:00Z"),
}


def _explain(error: ErrorDetails, record_type: str) -> tuple[str, str | None]:
    if error["type"] == "missing":
        return "is missing", f"required by type {record_type!r}"
    if error["type"] in _EXPLAINED:
        problem, limit = _EXPLAINED[error["type"]]
        shown = repr(error["input"])
        # the offending value helps, but an error must not carry a megabyte
        seen = f" ({shown})" if isinstance(error["input"], int | float | str) and len(shown) <= 64 else ""
        return problem + seen, limit.format(**error.get("ctx", {}))
    return error["msg"][0].lower() + error["msg"][1:], None
