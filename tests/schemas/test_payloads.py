"""Typed payloads: the documents' samples pass, nonsense does not, and an error says where and what."""

from __future__ import annotations

import datetime as dt
import enum
import math
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from petalbus.schemas import Priority, RecordInvalid
from petalbus.schemas.payloads import (
    MAX_DEPTH,
    MAX_KEYS,
    PAYLOADS,
    Command,
    CommandParameters,
    Coordinates,
    Telemetry,
    default_priority,
    prepare,
    validate_payload,
    validate_value,
)
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

from . import strategies as some

NAN, INFINITY = math.nan, math.inf
COMMAND_PARAMETERS = {"command_id": "cmd_123", "command": "takeoff", "parameters": {"altitude": 20, "speed": 2.0}}
TELEMETRY = {
    "timestamp": 1763683200.25,
    "battery_level": 85,
    "gps_coordinates": {"lat": 37.7749, "lon": -122.4194},
    "altitude": 50.5,
    "speed": 5.2,
    "system_status": "normal",
}
CONFIGURATION = {
    "flight_mode": "autonomous",
    "max_altitude": 100,
    "geofence": {"enabled": True, "center": {"lat": 37.7749, "lon": -122.4194}, "radius": 1000},
    "safety_settings": {"battery_low_threshold": 20, "auto_land_enabled": True},
}
ALERT = {
    "severity": "warning",
    "message": "Low battery warning",
    "details": {"battery_level": 15, "estimated_flight_time": 120},
}
EMERGENCY_STOP = {"command_id": "emergency_001", "command": "emergency_stop", "parameters": {"immediate": True}}

SAMPLES = [
    pytest.param("command", {"command": "takeoff", "altitude": 20}, id="S-121"),
    pytest.param("command", COMMAND_PARAMETERS, id="S-122"),
    pytest.param("command", EMERGENCY_STOP, id="S-123"),
    pytest.param("command", {"command": "hover", "parameters": {}}, id="command-hover"),
    pytest.param("command", {"command": "goto", "parameters": {"lat": 37.7, "lon": -122.4, "altitude": 50}}, id="goto"),
    pytest.param("command", {"command": "land", "parameters": {"precision": True}}, id="command-land"),
    pytest.param("status_request", {"fields": ["battery", "gps"]}, id="S-124"),
    pytest.param("status_request", {}, id="status_request-all"),
    pytest.param("telemetry", TELEMETRY, id="S-125"),
    pytest.param("telemetry", {"timestamp": "2025-08-25T10:30:00Z", "temperature": 23.5, "humidity": 65.2}, id="mqtt"),
    pytest.param(
        "telemetry", {"timestamp": "2025-08-25T10:30:00.123456", "location": {"latitude": 1.5}}, id="isoformat"
    ),
    pytest.param("configuration", CONFIGURATION, id="S-126"),
    pytest.param("alert", ALERT, id="S-127"),
    pytest.param("ping", {}, id="S-128"),
    pytest.param("emergency_command", {"action": "land_immediately"}, id="S-129"),
    pytest.param("command_response", {"status": "success"}, id="S-130-success"),
    pytest.param("command_response", {"status": "failed"}, id="S-130-failed"),
    pytest.param("command_response", {"status": "success", "result": {"altitude": 10}}, id="S-130-result"),
    pytest.param("command_response", {"status": "error", "message": "motor 3"}, id="S-130-error"),
    pytest.param(
        "command_response", {"command_id": "cmd_1", "result": "success", "message": ""}, id="command_response-c++"
    ),
    pytest.param("command_response", {}, id="command_response-empty"),
]


@pytest.mark.parametrize(("record_type", "sample"), SAMPLES)
def test_s121_to_s130_every_sample_of_the_documents_passes_unchanged(record_type: str, sample: dict[str, Any]) -> None:
    body = prepare(record_type, sample)
    assert body == orjson.dumps(sample)
    assert validate_payload(record_type, body) == sample
    assert validate_value(record_type, sample) is sample
    model = PAYLOADS[record_type].model_validate_json(body)
    assert model.model_dump(exclude_unset=True) == sample


REFUSED = [
    ("command", {}, "data.command", "is missing (expected required by type 'command')"),
    ("command", {"command": ""}, "data.command", "at least 1 characters"),
    ("command", {"command": 5}, "data.command", "is not text (5)"),
    ("command", {"command": "x" * 257}, "data.command", "at most 256 characters"),
    ("command", {"command": "x", "parameters": []}, "data.parameters", "a JSON object"),
    ("command", {"command": "x", "parameters": {"altitude": 1e6}}, "data.parameters.altitude", "at most 100000"),
    (
        "command",
        {"command": "x", "parameters": {"altitude": "10"}},
        "data.parameters.altitude",
        "is not a number ('10')",
    ),
    ("command", {"command": "x", "parameters": {"altitude": True}}, "data.parameters.altitude", "is not a number"),
    ("command", {"command": "x", "parameters": {"lat": 91}}, "data.parameters.lat", "at most 90"),
    ("command", {"command": "x", "parameters": {"immediate": 1}}, "data.parameters.immediate", "true or false"),
    ("command", {"command": "x", "altitude": -2000}, "data.altitude", "at least -1000"),
    ("emergency_command", {"command": "land"}, "data.action", "is missing"),
    ("status_request", {"fields": "battery"}, "data.fields", "a JSON array"),
    ("status_request", {"fields": ["battery", 3]}, "data.fields.1", "is not text (3)"),
    ("status_request", {"fields": ["x"] * 257}, "data.fields", "at most 256 items"),
    ("telemetry", {"timestamp": "yesterday"}, "data.timestamp", "ISO 8601"),
    ("telemetry", {"timestamp": -1}, "data.timestamp", "at least 0"),
    ("telemetry", {"battery_level": 101}, "data.battery_level", "at most 100"),
    ("telemetry", {"gps_coordinates": {"lat": 1}}, "data.gps_coordinates.lon", "is missing"),
    ("telemetry", {"gps_coordinates": [1, 2]}, "data.gps_coordinates", "a JSON object"),
    ("configuration", {"geofence": {"radius": 0}}, "data.geofence.radius", "more than 0"),
    ("configuration", {"geofence": {"center": {"lat": 0, "lon": 181}}}, "data.geofence.center.lon", "at most 180"),
    (
        "configuration",
        {"safety_settings": {"auto_land_enabled": "yes"}},
        "data.safety_settings.auto_land_enabled",
        "true",
    ),
    ("alert", {"severity": "warning"}, "data.message", "is missing"),
    ("alert", {"severity": "x" * 33, "message": "m"}, "data.severity", "at most 32 characters"),
    ("alert", {"severity": "warning", "message": "m", "details": "d"}, "data.details", "a JSON object"),
    ("command_response", {"status": ""}, "data.status", "at least 1 characters"),
    ("ping", [], "data", "a JSON object"),
    ("command", "takeoff", "data", "a JSON object"),
    ("command", None, "data", "a JSON object"),
]


@pytest.mark.parametrize(
    ("record_type", "value", "field", "words"), REFUSED, ids=[f"{r[0]}-{r[2]}-{i}" for i, r in enumerate(REFUSED)]
)
def test_s153_nonsense_is_refused_with_its_place_and_the_limit(
    record_type: str, value: Any, field: str, words: str
) -> None:
    for attempt in (
        lambda: prepare(record_type, value),
        lambda: validate_value(record_type, value),
        lambda: validate_payload(record_type, orjson.dumps(value)),
    ):
        with pytest.raises(RecordInvalid) as caught:
            attempt()
        assert caught.value.field == field
        assert words in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("record_type", PAYLOADS)
def test_the_plain_check_and_the_model_refuse_the_same(record_type: str) -> None:
    refused = [value for kind, value, _, _ in REFUSED if kind == record_type]
    assert refused, "each type has at least one case in the table"
    for value in refused:
        with pytest.raises(ValueError, match=r"validation error"):
            PAYLOADS[record_type].model_validate(value)


def test_s123_s129_what_stops_an_aircraft_is_critical_unless_somebody_says_otherwise() -> None:
    assert default_priority("command", EMERGENCY_STOP) is Priority.CRITICAL
    assert default_priority("emergency_command", {"action": "land_immediately"}) is Priority.CRITICAL
    assert default_priority("command", COMMAND_PARAMETERS) is Priority.NORMAL
    assert default_priority("command", None) is Priority.NORMAL
    assert default_priority("anything", EMERGENCY_STOP) is Priority.NORMAL


@settings(max_examples=100, deadline=None)
@given(some.json_values)
def test_any_json_value_goes_in_an_open_type(value: Any) -> None:
    body = prepare("mavlink.PARAM_VALUE", value)
    assert validate_payload("mavlink.PARAM_VALUE", body) == orjson.loads(body) == value


@settings(max_examples=100, deadline=None)
@given(some.json_objects)
def test_unknown_members_of_a_typed_payload_are_kept(members: dict[str, Any]) -> None:
    sample = {name: value for name, value in members.items() if name not in Command.model_fields} | {"command": "x"}
    assert validate_payload("command", prepare("command", sample)) == sample


@pytest.mark.parametrize("number", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(
    ("record_type", "value", "field"),
    [
        ("command", lambda n: {"command": "x", "parameters": {"altitude": n}}, "data.parameters.altitude"),
        ("command", lambda n: {"command": "x", "later": {"deep": [1, n]}}, "data.later.deep.1"),
        ("anything", lambda n: {"a": None, "b": (0, n)}, "data.b.1"),
        ("anything", lambda n: n, "data"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_place(
    record_type: str, value: Any, field: str, number: float
) -> None:
    with pytest.raises(RecordInvalid, match=r"which JSON cannot say \(expected a finite number, or null") as caught:
        prepare(record_type, value(number))
    assert caught.value.field == field


@pytest.mark.parametrize("body", [b'{"command":"x","a":NaN}', b'{"command":"x","a":-Infinity}', b"NaN"])
@pytest.mark.parametrize("record_type", ["command", "anything"])
def test_nan_in_json_text_is_refused_with_a_hint(record_type: str, body: bytes) -> None:
    with pytest.raises(RecordInvalid, match=r"'data': is not JSON.*NaN and Infinity are no JSON values, send null"):
        validate_payload(record_type, body)


def test_the_word_nan_in_text_is_no_offence() -> None:
    assert validate_payload("alert", b'{"severity":"info","message":"NaN seen, null too"}')
    assert prepare("alert", {"severity": "info", "message": "null is not NaN", "details": None})


MALFORMED = [
    b"",
    b" ",
    b"{",
    b"}",
    b'{"a":1,}',
    b"{'a':1}",
    b'"\xff"',
    b'"\\ud800"',
    b"01",
    b"1e999",
    b"{} {}",
    b"\xef\xbb\xbf{}",
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("record_type", ["telemetry", "anything"])
def test_malformed_json_is_refused(record_type: str, body: bytes) -> None:
    with pytest.raises(RecordInvalid, match="'data': is not JSON"):
        validate_payload(record_type, body)


class Colour(enum.Enum):
    RED = "red"
    ODD = math.nan


@dataclass
class Point:
    x: float


FOREIGN = [
    ({1: 2}, "data", "keys that are text"),
    ({"a": [{"b": {2: 1}}]}, "data.a.0.b", "keys that are text"),
    ({"a": {1, 2}}, "data.a", "is a set"),
    ({"a": b"raw"}, "data.a", "is a bytes"),
    ({"a": Point(NAN)}, "data.a", "is a Point"),
    ({"a": object()}, "data.a", "is a object"),
    ({"a": 2**64}, "data.a", "more than 64 bits"),
    ({"a": "\ud800"}, "data.a", "half a surrogate pair"),
    ({"a": Colour.ODD}, "data.a", "is nan"),
]


@pytest.mark.parametrize(("value", "field", "words"), FOREIGN, ids=[str(i) for i in range(len(FOREIGN))])
def test_what_json_cannot_say_is_refused_with_its_place(value: Any, field: str, words: str) -> None:
    with pytest.raises(RecordInvalid) as caught:
        prepare("anything", value)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_what_json_can_say_in_other_words_goes() -> None:
    when = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    number = uuid.UUID(int=5)
    value = {"command": "x", "when": when, "number": number, "colour": Colour.RED, "pair": (1, 2)}
    assert validate_payload("command", prepare("command", value)) == {
        "command": "x",
        "when": "2026-01-31T12:00:00+00:00",
        "number": str(number),
        "colour": "red",
        "pair": [1, 2],
    }
    assert prepare("telemetry", {"timestamp": when}) == b'{"timestamp":"2026-01-31T12:00:00+00:00"}'
    assert prepare("status_request", {"fields": ("a", "b")}) == b'{"fields":["a","b"]}'


def test_a_model_is_a_payload() -> None:
    command = Command(command="takeoff", parameters=CommandParameters(altitude=10))
    assert prepare("command", command) == b'{"command":"takeoff","parameters":{"altitude":10.0}}'
    sample = Telemetry(gps_coordinates=Coordinates(lat=1, lon=2), battery_level=None)
    assert orjson.loads(prepare("telemetry", sample)) == {
        "gps_coordinates": {"lat": 1, "lon": 2},
        "battery_level": None,
    }


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(RecordInvalid, match=f"nested too deeply .expected at most {MAX_DEPTH} levels"):
        prepare("anything", loop)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_has_a_limit_at_both_ends(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(levels: int) -> bytes:
        return opening * levels + (b"" if opening == b"[" else b"1") + closing * levels

    deepest = validate_payload("anything", nested(MAX_DEPTH))
    assert prepare("anything", deepest) == nested(MAX_DEPTH)
    for levels in (MAX_DEPTH + 1, 254, 1024, 5000):
        with pytest.raises(RecordInvalid, match=r"'data"):
            validate_payload("anything", nested(levels))
    with pytest.raises(RecordInvalid, match=f"at most {MAX_DEPTH} levels"):
        prepare("anything", [deepest])


def test_many_shallow_objects_are_not_deep() -> None:
    body = orjson.dumps([{"a": [number]} for number in range(20_000)])
    assert len(validate_payload("anything", body)) == 20_000


def test_an_object_has_a_limit_of_members() -> None:
    members = {f"P{number}": number for number in range(MAX_KEYS)}
    assert validate_payload("anything", prepare("anything", members)) == members
    for crowded in (members | {"more": 1}, {"inside": [members | {"more": 1}]}):
        for attempt in (lambda v: prepare("anything", v), lambda v: validate_payload("anything", orjson.dumps(v))):
            with pytest.raises(RecordInvalid, match=f"at most {MAX_KEYS} members"):
                attempt(crowded)


def test_one_mebibyte_goes_and_one_byte_more_does_not() -> None:
    largest = "x" * (MAX_PAYLOAD_BYTES - 2)
    body = prepare("anything", largest)
    assert len(body) == MAX_PAYLOAD_BYTES
    assert validate_payload("anything", body) == largest
    for attempt in (
        lambda: prepare("anything", largest + "x"),
        lambda: prepare("anything", body + b" ", content_type="application/json"),
        lambda: prepare("anything", b"\0" * (MAX_PAYLOAD_BYTES + 1), content_type="image/png"),
        lambda: validate_payload("anything", body + b" "),
    ):
        with pytest.raises(RecordInvalid, match=r"'data': has 1048577 bytes \(expected at most 1048576 bytes"):
            attempt()


def test_bytes_pass_as_they_are_under_their_content_type() -> None:
    for data in (b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")):
        assert prepare("camera.frame", data, content_type="image/png") == b"\x00\xff"
    assert prepare("command", b' {"command":"x"}', content_type="application/json") == b' {"command":"x"}'


@pytest.mark.parametrize(
    ("data", "content_type", "field"),
    [
        (b"{}", None, "content_type"),
        (b"{}", "image/png", "content_type"),  # a command is JSON, whatever somebody calls it
        ({"command": "x"}, "image/png", "data"),
        (b"{}", "application/json", "data.command"),
    ],
)
def test_bytes_and_content_type_must_agree(data: Any, content_type: str | None, field: str) -> None:
    with pytest.raises(RecordInvalid) as caught:
        prepare("command", data, content_type=content_type)
    assert caught.value.field == field
