"""Names and times of other systems, put into the forms that a record takes."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Final

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import APP_RULE, ID_RULE, MAX_ID_CHARS, MAX_NAME_CHARS, MAX_TYPE_CHARS, TYPE_RULE

_NOT_IN_APP: Final = re.compile(r"[^A-Za-z0-9_.@/-]")
_NOT_IN_TYPE: Final = re.compile(r"[^A-Za-z0-9_./-]")
_NS: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_NS: Final = 2**63 - 1  # the year 2262: a time on the wire is a signed 64-bit integer

_RFC_3339: Final = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})[Tt ](?P<clock>\d{2}:\d{2}:\d{2})(?:[.,](?P<fraction>\d{1,9}))?"
    r"(?P<zone>[Zz]|[+-]\d{2}:?\d{2})?"
)


def utf8(text: str, *, under: str) -> bytes:
    """UTF-8 of a text; raises RecordInvalid naming ``under`` where it holds half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RecordInvalid(under, "holds half a surrogate pair", limit="text that UTF-8 can write") from None


def bus_id(text: str) -> str:
    """A record id for a foreign one: the same text where it may be an id, else a hash of it.

    The hash is stable, so a repeated message is still recognised as one.
    """
    if ID_RULE.fullmatch(text):
        return text
    return f"h-{_digest(text, 40)}"


def bus_app(text: str) -> str:
    """An app id for a foreign sender, such as a URI: what an app id may not hold becomes ``_``."""
    return text if APP_RULE.fullmatch(text) else _slug(_NOT_IN_APP.sub("_", text).lstrip("_.@/-"), text, MAX_NAME_CHARS)


def bus_type(text: str) -> str:
    """A record type for a foreign one: what a type may not hold becomes ``_``."""
    return text if TYPE_RULE.fullmatch(text) else _slug(_NOT_IN_TYPE.sub("_", text).lstrip("./-"), text, MAX_TYPE_CHARS)


def content_id(*parts: str, content: bytes) -> str:
    """An id for a message that has none of its own: ``parts`` and a hash of what it says."""
    text = "/".join((*parts, hashlib.sha256(content).hexdigest()[:16]))
    return text if len(text) <= MAX_ID_CHARS and ID_RULE.fullmatch(text) else bus_id(text)


def ns_from_seconds(seconds: float) -> int:
    """Nanoseconds, rounded once from the exact value of the float; ``seconds`` must be finite."""
    return round(Fraction(seconds) * _NS)


def seconds_from_ns(ns: int) -> float:
    """The float nearest to ``ns`` nanoseconds; undoes ``ns_from_seconds`` for every date after April 1970."""
    return ns / _NS


def time_text(ns: int) -> str | None:
    """UTC in RFC 3339, with as many digits as needed; None for what is no time on the wire."""
    if not 0 <= ns <= _LATEST_NS:
        return None
    seconds, fraction = divmod(ns, _NS)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def time_ns(text: str) -> int | None:
    """Read an RFC 3339 time; without a zone it is UTC. None where it is no time, before 1970 or after 2262."""
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return None
    zone = (match["zone"] or "Z").upper().replace("Z", "+00:00")
    try:
        whole = datetime.fromisoformat(f"{match['day']}T{match['clock']}{zone}")
    except ValueError:
        return None
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    ns = seconds * _NS + int((match["fraction"] or "").ljust(9, "0"))
    return wire_ns(ns)


def wire_ns(ns: int) -> int | None:
    """The same, or None where it is no time on the wire."""
    return ns if 0 <= ns <= _LATEST_NS else None


def _slug(cleaned: str, original: str, limit: int) -> str:
    if cleaned and len(cleaned) <= limit:
        return cleaned
    return f"{cleaned[: limit - 13]}-{_digest(original, 12)}" if cleaned else f"x-{_digest(original, 12)}"


def _digest(text: str, digits: int) -> str:
    # a lone surrogate is possible in text that came from JSON by way of Python
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
