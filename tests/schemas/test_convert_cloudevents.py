"""CloudEvents 1.0 in both modes: the specification's own kinds of events, attributes and data."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from petalbus.schemas import Record, RecordInvalid
from petalbus.schemas.convert import cloudevents

BASE: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "/mycontext",
    "type": "com.example.someevent",
    "time": "2018-04-05T17:31:00Z",
    "comexampleothervalue": 5,
    "comexamplebool": True,
    "subject": "larger-context",
}
FULL = {
    "id": "m-1",
    "type": "command",
    "source": "gcs",
    "data": b'{"command":"takeoff"}',
    "recipient": "vehicle",
    "priority": 4,
    "reply_to": "m-0",
    "kind": "result",
    "wants_reply": True,
    "deadline": 2**62,
    "time": 1763683200123456789,
    "boot_id": "0123456789ab",
    "mono": 2**61,
    "key": "motors",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def record(**fields: Any) -> Record:
    return Record.checked({"id": "1", "type": "t", "source": "s", "data": b"{}"} | fields)


def test_a_record_is_a_valid_event() -> None:
    event = cloudevents.from_record(Record.checked(FULL))
    assert event == {
        "specversion": "1.0",
        "id": "m-1",
        "source": "gcs",
        "type": "command",
        "time": "2025-11-21T00:00:00.123456789Z",
        "datacontenttype": "application/json",
        "data": {"command": "takeoff"},
        "pbrecipient": "vehicle",
        "pbpriority": "4",
        "pbreplyto": "m-0",
        "pbkind": "result",
        "pbwantsreply": "1",
        "pbdeadline": str(2**62),
        "pbbootid": "0123456789ab",
        "pbmono": str(2**61),
        "partitionkey": "motors",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)


def test_a_foreign_event_becomes_a_record() -> None:
    made = cloudevents.to_record(BASE | {"data": {"a": 1}}, recipient="HEAR_FC")
    assert (made.id, made.source, made.type, made.recipient) == (
        "A234-1234-1234",
        "mycontext",
        "com.example.someevent",
        "HEAR_FC",
    )
    assert made.time == 1522949460 * 10**9
    assert made.content_type is None
    assert made.data == {"a": 1}
    assert made.extra["subject"] == b"larger-context"


DATA = [
    pytest.param({"data": {"appinfoA": "abc", "appinfoB": 123}}, None, id="json"),
    pytest.param({"data": None}, None, id="null"),
    pytest.param({"data": "I'm just a string"}, None, id="json-string"),
    pytest.param({"data": [1], "datacontenttype": "application/json"}, None, id="json-named"),
    pytest.param({"data": [1], "datacontenttype": "application/json; charset=utf-8"}, None, id="json-charset"),
    pytest.param({"data": [1], "datacontenttype": "application/geo+json"}, "application/geo+json", id="json-like"),
    pytest.param({"data": '<much wow="xml"/>', "datacontenttype": "application/xml"}, "application/xml", id="xml"),
    pytest.param({"data": "ü", "datacontenttype": "application/x-odd"}, "application/x-odd", id="text-of-odd-type"),
    pytest.param({"data_base64": "/w==", "datacontenttype": "image/png"}, "image/png", id="binary"),
    pytest.param({"data_base64": "aGk=", "datacontenttype": "text/plain"}, "text/plain", id="text-as-binary"),
    pytest.param({"data_base64": "WzFd"}, None, id="json-as-binary"),
    pytest.param({}, None, id="no-data"),
    pytest.param({"datacontenttype": "image/png"}, "image/png", id="no-binary-data"),
]


@pytest.mark.parametrize(("data", "content_type"), DATA)
@pytest.mark.parametrize("carry", [True, False])
def test_all_kinds_of_data_come_back(data: dict[str, Any], content_type: str | None, carry: bool) -> None:
    made = cloudevents.to_record(BASE | data, carry=carry)
    assert made.content_type == content_type
    assert cloudevents.from_record(made, carry=carry) == BASE | data


@pytest.mark.parametrize(("data", "content_type"), DATA)
def test_all_kinds_of_data_come_back_by_way_of_http(data: dict[str, Any], content_type: str | None) -> None:
    made = cloudevents.to_record(BASE | data)
    headers, body = cloudevents.to_http(made)
    assert cloudevents.from_record(cloudevents.from_http(headers, body)) == BASE | data


def test_unset_attributes_are_as_if_they_were_not_there() -> None:
    assert cloudevents.from_record(cloudevents.to_record(BASE | {"unset": None, "data": 1})) == BASE | {"data": 1}


def test_binary_mode_has_the_payload_as_body_byte_for_byte() -> None:
    headers, body = cloudevents.to_http(Record.checked(FULL | {"data": b' {"command": "takeoff"} ', "wörter": "ü %"}))
    assert body == b' {"command": "takeoff"} '
    assert headers["content-type"] == "application/json"
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-time"] == "2025-11-21T00:00:00.123456789Z"
    assert headers["ce-pbdeadline"] == str(2**62)
    for name, value in headers.items():
        assert re.fullmatch(r"content-type|ce-[a-z0-9]+", name)
        assert re.fullmatch(r"[!#-$&-~]|[!#-~]*", value), "no space, quote or anything beyond ASCII"


def test_binary_mode_reads_what_others_write() -> None:
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "CE-specversion": "1.0",
        "Ce-Id": "1",
        "ce-source": "/a%20b",
        "ce-type": "t",
        "ce-euro": "Euro%20%E2%82%AC%20%F0%9F%98%80",
        "host": "drone",
    }
    made = cloudevents.from_http(headers, b"[1]")
    assert (made.id, made.source, made.data) == ("1", "a_b", [1])
    assert made.extra["euro"].decode() == "Euro € 😀"
    assert "host" not in made.extra


def test_a_payload_that_was_written_in_other_bytes_is_carried_exactly() -> None:
    spaced = record(data=b'{ "a": 1.50 }')
    event = cloudevents.from_record(spaced)
    assert event["data"] == {"a": 1.5}
    assert base64.b64decode(event["pbdata"]) == b'{ "a": 1.50 }'
    assert cloudevents.to_record(event).raw == spaced.raw
    assert "pbdata" not in cloudevents.from_record(spaced, carry=False)


def test_exact_data_that_say_something_else_are_refused() -> None:
    lie = base64.b64encode(b'{"command":"disarm"}').decode()
    with pytest.raises(RecordInvalid, match="'pbdata': is not the same value as data"):
        cloudevents.to_record(BASE | {"data": {"command": "hover"}, "pbdata": lie})


def test_ids_of_several_sources_can_be_told_apart() -> None:
    first = cloudevents.to_record(BASE | {"source": "/sensors/1", "id": "7"}, qualify=True)
    second = cloudevents.to_record(BASE | {"source": "/sensors/2", "id": "7"}, qualify=True)
    assert (first.id, second.id) == ("/sensors/1#7", "/sensors/2#7")
    assert cloudevents.from_record(first, carry=False)["id"] == "7"


@pytest.mark.parametrize(
    ("source", "app"),
    [
        ("HEAR_FC", "HEAR_FC"),
        ("/mycontext", "mycontext"),
        ("https://github.com/cloudevents", "https_//github.com/cloudevents"),
        ("urn:uuid:6e8bc430-9c3a", "urn_uuid_6e8bc430-9c3a"),
    ],
)
def test_sources_become_app_ids_and_come_back(source: str, app: str) -> None:
    made = cloudevents.to_record(BASE | {"source": source})
    assert made.source == app
    assert cloudevents.from_record(made)["source"] == source


def test_long_sources_and_types_are_cut_but_stay_different() -> None:
    long = "https://example.com/" + "x" * 100
    one, other = (cloudevents.to_record(BASE | {"source": long + end, "type": (long + end) * 2}) for end in "ab")
    assert one.source != other.source
    assert one.type != other.type
    assert cloudevents.from_record(one)["source"] == long + "a"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"specversion": "0.3"}, "specversion"),
    ({"specversion": None}, "specversion"),
    ({"id": ""}, "id"),
    ({"id": 5}, "id"),
    ({"source": None}, "source"),
    ({"type": ""}, "type"),
    ({"myExtension": "x"}, "myExtension"),
    ({"my_extension": "x"}, "my_extension"),
    ({"list": [1]}, "list"),
    ({"number": 1.5}, "number"),
    ({"datacontenttype": 5}, "datacontenttype"),
    ({"pbpriority": "9"}, "pbpriority"),
    ({"pbdeadline": "soon"}, "pbdeadline"),
    ({"pbkind": "perhaps"}, "pbkind"),
    ({"data_base64": "?"}, "data_base64"),
    ({"data_base64": 5}, "data_base64"),
    ({"data": 1, "data_base64": "MQ=="}, "data_base64"),
    ({"data": {"a": 1}, "datacontenttype": "text/plain"}, "data"),
    ({"pbdata": "?", "data": 1}, "pbdata"),
    ({"data": float("nan")}, "data"),
    ({"data": "x" * 1_048_576}, "data"),
]


@pytest.mark.parametrize(("attributes", "field"), REFUSED, ids=[f"{f}-{i}" for i, (_, f) in enumerate(REFUSED)])
def test_s153_a_malformed_event_is_refused_by_name(attributes: dict[str, Any], field: str) -> None:
    with pytest.raises(RecordInvalid) as caught:
        cloudevents.to_record(BASE | attributes)
    assert caught.value.field == field


def test_headers_that_are_not_utf8_are_refused() -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "%ff", "ce-source": "s", "ce-type": "t"}
    with pytest.raises(RecordInvalid, match="'ce-id'"):
        cloudevents.from_http(headers, b"1")


def test_an_event_that_is_no_object_is_refused() -> None:
    with pytest.raises(RecordInvalid, match="'event': is list"):
        cloudevents.to_record([])  # type: ignore[arg-type]
