"""Conversions lose nothing: record -> message -> record and message -> record -> message are the identity."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from petalbus.schemas import Record
from petalbus.schemas.convert import CommunicationMessage, MessagePriority, cloudevents, communication, mqtt
from petalbus.schemas.convert.exchange import wire

from . import strategies as some

FREELY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

unknown_members = st.dictionaries(
    some.text.filter(lambda name: name not in communication._DOCUMENTED)
    | st.sampled_from(["petalbus", "kind", "data"]),
    some.json_values,
    max_size=3,
)


@FREELY
@given(some.records())
def test_s096_a_record_comes_back_from_a_communication_message(record: Record) -> None:
    message = communication.from_record(record)
    again = CommunicationMessage.from_json(message.to_json())
    assert again == message
    assert wire(communication.to_record(again)) == wire(record)


@FREELY
@given(some.records())
def test_a_record_comes_back_from_an_mqtt_envelope(record: Record) -> None:
    assert wire(mqtt.to_record(mqtt.from_record(record))) == wire(record)


@FREELY
@given(some.records())
def test_a_record_comes_back_from_a_structured_cloud_event(record: Record) -> None:
    assert wire(cloudevents.to_record(cloudevents.from_record(record))) == wire(record)


@FREELY
@given(some.records())
def test_a_record_comes_back_from_a_binary_cloud_event(record: Record) -> None:
    headers, body = cloudevents.to_http(record)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert wire(cloudevents.from_http(headers, body)) == wire(record)


# The other way round. A member that holds null says the same as a missing one in CloudEvents, so there is none here.
messages = st.builds(
    CommunicationMessage,
    id=some.ids | some.text,
    sender=some.apps,
    recipient=some.apps | st.just(""),
    message_type=some.types,
    payload=some.json_objects,
    priority=st.sampled_from(MessagePriority),
    timestamp=st.floats(0, 9e9) | st.integers(0, 2**33) | st.just(1763683200.1234567),
    reply_to=st.none() | some.ids | some.text,
    timeout=st.none() | st.integers(0, 10**6) | st.floats(0, 1e6),
    extra=unknown_members,
)


def as_json(members: dict[str, Any]) -> bytes:
    """What tells 1 from 1.0 and from true, which Python's == does not."""
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)


@FREELY
@given(messages, st.booleans())
def test_s096_to_s104_a_communication_message_comes_back_from_a_record(
    message: CommunicationMessage, carry: bool
) -> None:
    record = over_the_wire(communication.to_record(message, carry=carry))
    assert as_json(communication.from_record(record, carry=carry).to_dict()) == as_json(message.to_dict())


@FREELY
@given(messages, st.integers(0, 2**62))
def test_a_stamped_message_comes_back_but_for_what_is_carried(message: CommunicationMessage, mono: int) -> None:
    record = over_the_wire(communication.to_record(message, mono=mono, carry=False))
    back = communication.from_record(record, carry=False)
    assert as_json(back.to_dict()) == as_json(message.to_dict())


def over_the_wire(record: Record) -> Record:
    return Record.from_fields(record.to_fields())


timestamps = (
    st.datetimes().map(lambda moment: moment.isoformat())
    | st.sampled_from(
        ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456789+02:00", "2026-02-30T00:00:00Z", "now", ""]
    )
    | some.scalars
)
envelopes = st.builds(
    lambda required, optional, unknown: unknown | required | optional,
    st.fixed_dictionaries({"messageId": some.ids | some.text.filter(bool) | st.integers(0, 2**40)}),
    st.fixed_dictionaries(
        {},
        optional={
            "deviceId": some.text,
            "command": some.text | st.sampled_from(["petal-warehouse/start", "/petal-warehouse/stream"]),
            "timestamp": timestamps,
            "waitResponse": st.booleans() | some.scalars,
            "waitAck": st.booleans(),
            "payload": some.json_objects,
            "data": some.json_values,
            "phase": st.sampled_from(["ack", "result", "landing"]),
            "ackType": st.just("service-received"),
            "service": some.text,
            "success": st.booleans(),
            "status": st.sampled_from(["success", "error", 5]),
        },
    ),
    st.dictionaries(
        some.text | some.telling_keys.filter(lambda name: name != "messageId"), some.json_values, max_size=3
    ),
)


@FREELY
@given(envelopes, st.booleans())
def test_an_mqtt_envelope_comes_back_from_a_record(envelope: dict[str, Any], carry: bool) -> None:
    record = over_the_wire(mqtt.to_record(envelope, carry=carry))
    assert as_json(mqtt.from_record(record, carry=carry)) == as_json(envelope)


@FREELY
@given(envelopes, st.sampled_from(mqtt.Envelope), st.integers(0, 2**62))
def test_an_mqtt_envelope_comes_back_with_what_the_topic_says(
    envelope: dict[str, Any], kind: mqtt.Envelope, mono: int
) -> None:
    record = mqtt.to_record(envelope, envelope=kind, source="cloud", recipient="petals", mono=mono, carry=False)
    assert (record.type, record.source, record.recipient, record.mono) == (kind, "cloud", "petals", mono)


attribute_values = some.text | st.integers(-(2**31), 2**31 - 1) | st.booleans()
event_attributes = st.builds(
    lambda required, optional, unknown: unknown | required | optional,
    st.fixed_dictionaries(
        {
            "specversion": st.just("1.0"),
            "id": some.ids | some.text.filter(bool),
            "source": some.apps
            | some.text.filter(bool)
            | st.sampled_from(["https://example.com/a?b=c#d", "/mycontext"]),
            "type": some.types | some.text.filter(bool),
        }
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "time": timestamps.filter(lambda value: isinstance(value, str)),
            "subject": some.text,
            "dataschema": some.text,
            "partitionkey": attribute_values | st.text("k", min_size=129, max_size=130),
            "traceparent": some.text,
            "pbpriority": st.integers(1, 4) | st.sampled_from("1234"),
        },
    ),
    st.dictionaries(st.from_regex(r"\A[a-z0-9]{1,24}\Z"), attribute_values, max_size=3).map(
        lambda found: {name: value for name, value in found.items() if not name.startswith("pb") and name != "data"}
    ),
)
event_data = st.one_of(
    st.just({}),
    st.builds(lambda value: {"data": value}, some.json_values),
    st.builds(lambda value: {"data": value, "datacontenttype": "application/json"}, some.json_values),
    st.builds(lambda value: {"data": value, "datacontenttype": "application/vnd.x+json; v=1"}, some.json_values),
    st.builds(lambda value: {"data": value, "datacontenttype": "application/xml"}, some.text),
    st.builds(lambda value: {"data": value, "datacontenttype": "application/x-odd"}, some.text),
    st.builds(
        lambda value: {"data_base64": value, "datacontenttype": "text/plain"}, st.sampled_from(["", "aGk=", "/w=="])
    ),
    st.builds(lambda value: {"data_base64": value}, st.sampled_from(["e30=", "IHt9"])),
    st.just({"datacontenttype": "text/plain"}),
    st.just({"datacontenttype": "application/json"}),
)


@FREELY
@given(event_attributes, event_data, st.booleans(), st.booleans())
def test_a_cloud_event_comes_back_from_a_record(
    attributes: dict[str, Any], data: dict[str, Any], carry: bool, qualify: bool
) -> None:
    event = attributes | data
    record = over_the_wire(cloudevents.to_record(event, carry=carry, qualify=qualify))
    back = cloudevents.from_record(record, carry=carry)
    if qualify and carry:
        back.pop("pbfields", None)  # the qualified id
    assert as_json(back) == as_json(event)


@FREELY
@given(event_attributes, event_data)
def test_a_cloud_event_comes_back_through_both_modes(attributes: dict[str, Any], data: dict[str, Any]) -> None:
    record = cloudevents.to_record(attributes | data)
    headers, body = cloudevents.to_http(record)
    through = cloudevents.from_http(headers, body)
    assert wire(through) == wire(record)
    assert as_json(cloudevents.from_record(through)) == as_json(attributes | data)
