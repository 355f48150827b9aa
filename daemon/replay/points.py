"""Points of a recording: where a replay begins and ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

MAX_PART: Final = 2**64 - 1
_STREAM_ID: Final = re.compile(r"^(\d{1,20})-(\d{1,20})$")
_BARE_MILLISECONDS: Final = re.compile(r"^\d{11,20}$")
_SECONDS: Final = re.compile(r"^\d{1,10}(\.\d+)?$")


@dataclass(frozen=True, slots=True)
class Point:
    """``edge``: the recording's own start or end. ``id``: a stream id. ``seconds``: since the recording's start."""

    kind: Literal["edge", "id", "seconds"]
    id: tuple[int, int] = (0, 0)
    seconds: float = 0.0


EDGE: Final = Point("edge")


def parse_point(text: str, *, end: bool) -> Point:
    """Read ``start``, ``end``, seconds since the start, a stream id, or an ISO 8601 time (local if it names no zone).

    A time of day means the server's wall clock when it was recorded. ``end``: the point ends a range, and includes all
    of its millisecond. Raises ValueError that shows the allowed forms.
    """
    if text in ("start", "end"):
        if (text == "end") is not end:
            raise ValueError(f"{text!r} as the {'end' if end else 'start'} of a replay leaves nothing to replay")
        return EDGE
    last = MAX_PART if end else 0
    if match := _STREAM_ID.match(text):
        return Point("id", id=(int(match[1]), int(match[2])))
    if _BARE_MILLISECONDS.match(text):
        return Point("id", id=(int(text), last))
    if _SECONDS.match(text):
        return Point("seconds", seconds=float(text))
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(
            f"point {text!r} is not understood; write start, end, seconds since the start (12.5), a stream id "
            "(1700000000000-0) or a time (2026-01-31T12:00:00Z)"
        ) from None
    return Point("id", id=(max(0, int(moment * 1000)), last))
