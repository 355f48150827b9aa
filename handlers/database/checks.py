"""What can be known of a write before it is stored: that it can never be done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import orjson

from petalbus.handlers.database.errors import Refused
from petalbus.handlers.database.values import members
from petalbus.handlers.database.writes import Write

Check = Callable[[Write], None]
"""Raises Refused."""

HTTP_BYTES: Final = 1 << 20
DYNAMO_BYTES: Final = 400 << 10
_KEY_BYTES: Final = 2048
_MARKS: Final = 256
"""Room for our own members."""

_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")


def http(write: Write) -> None:
    """For the HTTP service: JSON of 1 MiB. Raises Refused."""
    try:
        size = len(orjson.dumps(write.marked, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY))
    except orjson.JSONEncodeError as error:
        raise Refused(f"{write}: it cannot be written as JSON: {error}") from None
    if size + _MARKS > HTTP_BYTES:
        raise Refused(f"{write}: it has {size} bytes as JSON; {HTTP_BYTES} are allowed", 413)


def dynamodb(prefix: str) -> Check:
    """For DynamoDB: what tables have types for, 400 KB, and a name for the table."""

    def check(write: Write) -> None:
        name = f"{prefix}{write.table}"
        if _TABLE.fullmatch(name) is None:
            raise Refused(f"{name!r} cannot be the name of a table: 3 to 255 of A-Z a-z 0-9 _ . -")
        if len(write.value.encode()) > _KEY_BYTES:
            raise Refused(f"{write}: the key's value has more than {_KEY_BYTES} bytes")
        size = len(write.key.encode()) + len(write.value.encode()) + sum(_sizes(members(write.marked)))
        members(write.condition or {})
        if size > DYNAMO_BYTES:
            raise Refused(f"{write}: it has about {size} bytes; an item has {DYNAMO_BYTES} at most", 413)

    return check


def _sizes(item: dict[str, dict[str, object]]) -> list[int]:
    return [len(name.encode()) + _size(one) for name, one in item.items()]


def _size(attribute: dict[str, object]) -> int:
    """As DynamoDB counts, rather less than more: it has the last word."""
    ((kind, told),) = attribute.items()
    if isinstance(told, dict):
        return 3 + sum(_sizes(told))
    if isinstance(told, list):
        return 3 + sum(_size(one) if isinstance(one, dict) else _plain(kind[0], one) for one in told)
    return _plain(kind, told)


def _plain(kind: str, told: object) -> int:
    if isinstance(told, str):
        return len(told) // 2 if kind == "N" else len(told.encode())
    return len(told) if isinstance(told, bytes) else 1
