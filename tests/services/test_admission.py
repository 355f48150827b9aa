"""Admission: the table of what a raw record may be, and where each goes. Pure logic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.services.admission import MAX_BESIDE_BYTES, MAX_FIELDS, admit
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

KEYS = Keys("drone")
GOOD: dict[str, Any] = {"id": "m1", "type": "note", "source": "HEAR_FC", "data": "{}"}


def flat(fields: dict[str, Any]) -> list[bytes]:
    return [
        part if isinstance(part, bytes) else str(part).encode()
        for item in fields.items()
        if item[1] is not None
        for part in item
    ]


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"id": None}, "id", "visible ASCII"),
        ({"id": ""}, "id", "{1,128}"),
        ({"id": "a b"}, "id", "[!-~]"),
        ({"id": "x" * 129}, "id", "{1,128}"),
        ({"type": None}, "type", None),
        ({"type": "no blanks"}, "type", None),
        ({"source": None}, "source", None),
        ({"source": "a:b"}, "source", None),
        ({"recipient": "{x}"}, "recipient", None),
        ({"recipient": "vehicle", "priority": "7"}, "priority", None),
        ({"recipient": "vehicle", "priority": "urgent"}, "priority", None),
        ({"data": "{not json"}, "data", "JSON"),
        ({"data": '{"a":NaN}'}, "data", "JSON"),
        ({"data": '"' + "x" * MAX_PAYLOAD_BYTES + '"'}, "data", str(MAX_PAYLOAD_BYTES)),
        ({"data": "x" * (MAX_PAYLOAD_BYTES + 1), "content_type": "text/plain"}, "data", str(MAX_PAYLOAD_BYTES)),
        ({"type": "telemetry", "data": '{"battery_level":"full"}'}, "data.battery_level", "number"),
        ({"type": "telemetry", "data": '{"battery_level":101}'}, "data.battery_level", "100"),
        ({"type": "telemetry", "data": "x", "content_type": "text/plain"}, "content_type", "application/json"),
        ({"type": "command", "recipient": "vehicle", "data": "{}"}, "data.command", "command"),
        ({"type": "command", "data": '{"command":"arm"}'}, "recipient", "app id, or a topic"),
        ({"kind": "result"}, "reply_to", "the id"),
        ({"reply_to": "m0"}, "recipient", "the source"),
        ({"reply_to": "m0", "kind": "maybe", "recipient": "gcs"}, "kind", None),
        ({"topic": "a:b"}, "topic", "letters"),
        ({"topic": "bus.loss"}, "topic", "outside bus"),
        ({"type": "bus.loss"}, "topic", "outside bus"),
        ({"type": "_hidden"}, "topic", "beginning with a letter"),
        ({"recipient": "vehicle", "deadline": "soon"}, "deadline", None),
        ({"recipient": "vehicle", "deadline": "1764000000"}, "deadline", "nanoseconds"),
        ({"recipient": "vehicle", "timeout": "-1"}, "timeout", "more than 0"),
        ({"recipient": "vehicle", "timeout": "nan"}, "timeout", "more than 0"),
        ({"encoding": "rot13"}, "encoding", "zlib"),
        ({"data": "zzz", "encoding": "zlib"}, "data", None),
        ({"note": b"x" * (MAX_BESIDE_BYTES + 1)}, "record", str(MAX_BESIDE_BYTES)),
        ({f"f{n}": n for n in range(MAX_FIELDS)}, "record", str(MAX_FIELDS)),
        ({"stream_id": "1-1"}, "stream_id", None),
    ],
)
def test_what_is_invalid_names_its_field_and_limit(fields: dict[str, Any], field: str, limit: str | None) -> None:
    """S-153: all incoming messages are validated; the reason names the field, and the limit where there is one."""
    with pytest.raises(RecordInvalid) as caught:
        admit(flat({**GOOD, **fields}), KEYS)
    assert caught.value.field == field
    assert limit is None or limit in str(caught.value)


def test_a_field_that_occurs_twice_is_ambiguous_and_refused() -> None:
    with pytest.raises(RecordInvalid, match="'priority': occurs more than once"):
        admit([*flat(GOOD), b"priority", b"4", b"priority", b"1"], KEYS)


def test_a_field_name_that_is_no_text_is_refused_because_it_could_not_be_kept_as_it_is() -> None:
    with pytest.raises(RecordInvalid, match="UTF-8"):
        admit([*flat(GOOD), b"\xff\xfe", b"1"], KEYS)


@pytest.mark.parametrize(
    ("fields", "what", "stream"),
    [
        ({"recipient": "vehicle"}, "inbox", KEYS.inbox("vehicle", 2)),
        ({"recipient": "vehicle", "priority": "4"}, "inbox", KEYS.inbox("vehicle", 4)),
        ({"recipient": "vehicle", "topic": "kept as it is"}, "inbox", KEYS.inbox("vehicle", 2)),
        ({"reply_to": "m0", "kind": "result", "recipient": "gcs"}, "reply", KEYS.replies("gcs")),
        ({"reply_to": "m0", "recipient": "gcs"}, "reply", KEYS.replies("gcs")),
        ({"type": "telemetry"}, "topic", KEYS.topic("telemetry")),
        ({"type": "telemetry.battery"}, "topic", KEYS.topic("telemetry")),
        ({"type": "alert", "data": '{"severity":"high","message":"!"}'}, "topic", KEYS.topic("alert")),
        ({"type": "telemetry", "topic": "lab"}, "topic", KEYS.topic("lab")),
        ({"type": "command", "topic": "lab", "data": '{"command":"arm"}'}, "topic", KEYS.topic("lab")),
    ],
)
def test_every_record_has_one_destination(fields: dict[str, Any], what: str, stream: str) -> None:
    admission = admit(flat({**GOOD, **fields}), KEYS)
    assert (admission.what, admission.stream) == (what, stream)


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({"type": "command", "data": '{"command":"arm"}'}, 2),
        ({"type": "command", "data": '{"command":"emergency_stop"}'}, 4),
        ({"type": "command", "data": '{"command":"emergency_stop"}', "priority": "1"}, 1),
        ({"type": "emergency_command", "data": '{"action":"land_immediately"}'}, 4),
        ({"type": "note", "data": "x", "content_type": "text/plain"}, 2),
    ],
)
def test_what_stops_an_aircraft_is_critical_unless_it_says_otherwise(fields: dict[str, Any], priority: int) -> None:
    """S-101, S-108: as for clients of the library."""
    admission = admit(flat({**GOOD, "recipient": "vehicle", **fields}), KEYS)
    assert admission.stream == KEYS.inbox("vehicle", priority)


def test_unknown_fields_and_raw_bytes_survive() -> None:
    body = bytes(range(256))
    fields = flat(
        {**GOOD, "data": body, "content_type": "application/octet-stream", "x-mine": b"\x00\xff", "topic": "t"}
    )
    kept = admit(fields, KEYS).record.to_fields()
    given = dict(zip(kept[::2], kept[1::2], strict=True))
    assert given[b"data"] == body
    assert given[b"x-mine"] == b"\x00\xff"
    assert given[b"topic"] == b"t"


def test_what_is_missing_is_stamped_and_what_is_there_stays() -> None:
    record = admit(flat(GOOD), KEYS).record
    assert record.boot_id == BOOT_ID
    assert abs((record.mono or 0) - boot_clock_ns()) < 5e9
    assert abs((record.time or 0) - time.time_ns()) < 5e9
    theirs = admit(flat({**GOOD, "time": 1, "boot_id": "otherboot", "mono": 2}), KEYS).record
    assert (theirs.time, theirs.boot_id, theirs.mono) == (1, "otherboot", 2)


def test_a_wall_clock_deadline_becomes_one_of_the_boot_clock() -> None:
    record = admit(flat({**GOOD, "recipient": "v", "deadline": time.time_ns() + 3 * 10**9}), KEYS).record
    assert record.boot_id == BOOT_ID
    assert abs((record.deadline or 0) - boot_clock_ns() - 3e9) < 1e9
    past = admit(flat({**GOOD, "recipient": "v", "deadline": time.time_ns() - 10**9}), KEYS).record
    assert past.expired(boot_clock_ns())


def test_a_timeout_in_seconds_needs_no_clock_at_all() -> None:
    """I9: a program without a correct clock says how long, not until when."""
    record = admit(flat({**GOOD, "recipient": "v", "timeout": "2.5"}), KEYS).record
    assert abs((record.deadline or 0) - boot_clock_ns() - 2.5e9) < 1e9
    assert not record.expired(boot_clock_ns())
    assert "timeout" not in record.extra


def test_the_kernels_own_spelling_of_this_boot_is_understood() -> None:
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    record = admit(
        flat({**GOOD, "recipient": "v", "boot_id": kernel, "deadline": boot_clock_ns() + 10**9}), KEYS
    ).record
    assert record.boot_id == BOOT_ID
    assert not record.expired(boot_clock_ns())
