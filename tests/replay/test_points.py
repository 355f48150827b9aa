"""Where a replay begins and ends: the forms a person writes."""

from __future__ import annotations

import pytest

from petalbus.daemon.replay.points import EDGE, MAX_PART, Point, parse_point


@pytest.mark.parametrize(
    ("text", "end", "point"),
    [
        ("start", False, EDGE),
        ("end", True, EDGE),
        ("12", False, Point("seconds", seconds=12.0)),
        ("0.5", True, Point("seconds", seconds=0.5)),
        ("1700000000000-7", False, Point("id", id=(1700000000000, 7))),
        ("1700000000000", False, Point("id", id=(1700000000000, 0))),
        ("1700000000000", True, Point("id", id=(1700000000000, MAX_PART))),
        ("2026-01-31T12:00:00Z", False, Point("id", id=(1769860800000, 0))),
        ("2026-01-31T12:00:00.250+00:00", True, Point("id", id=(1769860800250, MAX_PART))),
    ],
)
def test_each_form_is_understood(text: str, end: bool, point: Point) -> None:
    assert parse_point(text, end=end) == point


@pytest.mark.parametrize(("text", "end"), [("start", True), ("end", False), ("", False), ("-3", True), ("noon", False)])
def test_what_is_not_understood_shows_what_is(text: str, end: bool) -> None:
    with pytest.raises(ValueError, match=r"not understood; write start, end|leaves nothing to replay"):
        parse_point(text, end=end)


def test_a_time_without_a_zone_is_local() -> None:
    from datetime import datetime

    local = datetime(2026, 1, 31, 12).astimezone()  # local on purpose
    assert parse_point("2026-01-31T12:00:00", end=False).id == (int(local.timestamp() * 1000), 0)
