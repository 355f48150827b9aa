"""Which bytes of an object a request asks for: ``Range``, ``If-Range``, ``If-None-Match`` (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

Range = tuple[int, int]
"""The first and the last byte."""

NOTHING: Final[Range] = (0, -1)
"""No byte that was asked for is there."""

_ONE: Final = re.compile(r"\s*bytes\s*=\s*(?:([0-9]{1,18})\s*-\s*([0-9]{1,18})?|-\s*([0-9]{1,18}))\s*", re.IGNORECASE)


def asked_for(headers: Mapping[str, str], size: int, etag: str) -> Range | None:
    """None: all of it (also where several ranges, or what nobody can read, are asked for); NOTHING: 416."""
    found = _ONE.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return None
    if found[3] is not None:
        length = min(int(found[3]), size)
        return (size - length, size - 1) if length else NOTHING
    first, last = int(found[1]), size - 1 if found[2] is None else int(found[2])
    if found[2] is not None and last < first:
        return None
    return (first, min(last, size - 1)) if first < size else NOTHING


def matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names this object."""
    if header is None:
        return False
    return header.strip() == "*" or etag in (one.strip().removeprefix("W/") for one in header.split(","))


def parsed(when: str) -> datetime:
    """An ISO time in UTC."""
    return datetime.fromisoformat(when).astimezone(UTC)
