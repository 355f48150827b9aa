"""The MQTT envelopes: the documents' and the predecessor's shapes, and what becomes of them in a record."""

from __future__ import annotations

from typing import Any

import pytest

from petalbus.schemas import Priority, Record, RecordInvalid, ReplyKind
from petalbus.schemas.convert import mqtt
from petalbus.schemas.convert.mqtt import Envelope
from petalbus.schemas.stamps import BOOT_ID

COMMAND = {
    "command": "example-petal/hello",
    "messageId": "test-123",
    "waitResponse": True,
    "data": {"name": "Developer"},
    "timestamp": "2025-11-05T12:00:00Z",
}
RESPONSE = {
    "messageId": "test-123",
    "timestamp": "2025-11-05T12:00:01Z",
    "success": True,
    "message": "Hello, Developer!",
}
ACK = {
    "messageId": "test-123",
    "phase": "ack",
    "ackType": "service-received",
    "service": "petal-warehouse",
    "timestamp": "2025-11-05T12:00:00.250Z",
    "deviceId": "Instance-7",
}
WEB = {
    "waitResponse": False,
    "waitAck": False,
    "messageId": "w-1",
    "deviceId": "Instance-7",
    "command": "/petal-warehouse/stream",
    "timestamp": "2025-11-05T12:00:02",
    "payload": {"positions": [[1, 2]]},
}
NOON = 1762344000 * 10**9


def record(**fields: Any) -> Record:
    return Record.checked({"id": "1", "type": "command", "source": "gcs", "data": b"{}"} | fields)


@pytest.mark.parametrize("envelope", [COMMAND, RESPONSE, ACK, WEB], ids=["command", "response", "ack", "web"])
@pytest.mark.parametrize("carry", [True, False])
def test_the_documented_envelopes_come_back_as_they_were(envelope: dict[str, Any], carry: bool) -> None:
    assert mqtt.from_record(mqtt.to_record(envelope, carry=carry), carry=carry) == envelope


def test_a_command() -> None:
    made = mqtt.to_record(COMMAND)
    assert (made.id, made.type, made.source, made.priority) == ("test-123", "mqtt.command", "mqtt", Priority.NORMAL)
    assert made.wants_reply is True
    assert made.time == NOON
    assert made.data == {"command": "example-petal/hello", "data": {"name": "Developer"}}
    assert made.reply_to is made.kind is None


def test_a_response_answers_its_command_and_says_whether_it_failed() -> None:
    made = mqtt.to_record(RESPONSE)
    assert (made.type, made.reply_to, made.kind) == ("mqtt.response", "test-123", ReplyKind.RESULT)
    assert made.data == {"success": True, "message": "Hello, Developer!"}
    assert mqtt.to_record(RESPONSE | {"success": False}).kind is ReplyKind.ERROR
    assert mqtt.to_record(RESPONSE | {"status": "error"}).kind is ReplyKind.ERROR


def test_an_answer_delivered_twice_is_one_record_and_two_answers_are_two() -> None:
    first = mqtt.to_record(RESPONSE)
    assert mqtt.to_record(dict(reversed(RESPONSE.items()))).id == first.id
    assert mqtt.to_record(RESPONSE | {"message": "Bye"}).id != first.id
    assert first.id.startswith("test-123/response/")


def test_an_acknowledgement_is_an_accepted_reply() -> None:
    made = mqtt.to_record(ACK)
    assert (made.type, made.reply_to, made.kind) == ("mqtt.ack", "test-123", ReplyKind.ACCEPTED)
    assert made.time == NOON + 250_000_000
    assert made.data == {"ackType": "service-received", "service": "petal-warehouse", "deviceId": "Instance-7"}


def test_what_is_pushed_to_the_web_is_known_by_its_slash_or_by_its_topic() -> None:
    assert mqtt.to_record(WEB).type == "mqtt.web"
    assert mqtt.to_record(COMMAND, envelope=Envelope.WEB).type == "mqtt.web"


def test_the_caller_says_where_it_came_from_and_when() -> None:
    made = mqtt.to_record(COMMAND, source="cloud", recipient="petals", mono=5)
    assert (made.source, made.recipient, made.mono, made.boot_id) == ("cloud", "petals", 5, BOOT_ID)
    assert mqtt.from_record(made, carry=False) == COMMAND


def test_what_the_cloud_says_about_record_fields_is_only_kept() -> None:
    forged = COMMAND | {"petalbus": {"set": {"source": "HEAR_FC", "priority": "4"}}}
    made = mqtt.to_record(forged, carry=False)
    assert (made.source, made.priority) == ("mqtt", Priority.NORMAL)
    assert "petalbus" not in made.data
    assert mqtt.from_record(made, carry=False) == forged


# Replies of the bus, on their way out.


def test_a_result_passes_its_data_through_unchanged() -> None:
    reply = record(
        type="command_response", reply_to="test-123", kind="result", data=b'{"success":true,"records":[1]}', time=NOON
    )
    assert mqtt.from_record(reply, carry=False) == {
        "messageId": "test-123",
        "phase": "result",
        "timestamp": "2025-11-05T12:00:00Z",
        "success": True,
        "records": [1],
    }


def test_the_answers_own_timestamp_and_phase_win_but_not_its_message_id() -> None:
    reply = record(reply_to="m", kind="result", data=b'{"messageId":"x","phase":"landing","timestamp":5}', time=NOON)
    assert mqtt.from_record(reply, carry=False) == {"messageId": "m", "phase": "landing", "timestamp": 5}
    assert mqtt.to_record(mqtt.from_record(reply)).to_fields() == reply.to_fields()


def test_accepted_is_an_acknowledgement_and_progress_is_pushed_to_the_web() -> None:
    accepted = record(reply_to="m", kind="accepted", data=b'{"service":"petal-x"}')
    assert mqtt.from_record(accepted, carry=False) == {"messageId": "m", "phase": "ack", "service": "petal-x"}
    progress = record(type="scan", source="petal-x", reply_to="m", kind="progress", data=b'{"done":0.5}')
    assert mqtt.from_record(progress, carry=False) == {
        "messageId": "1",
        "waitResponse": False,
        "command": "/petal-x/scan",
        "payload": {"done": 0.5},
    }


def test_any_other_record_becomes_a_command_with_a_payload() -> None:
    made = record(type="command", data=b'{"command":"takeoff","parameters":{"altitude":10}}', wants_reply=True)
    assert mqtt.from_record(made, carry=False) == {
        "messageId": "1",
        "waitResponse": True,
        "command": "takeoff",
        "payload": {"command": "takeoff", "parameters": {"altitude": 10}},
    }
    assert mqtt.from_record(record(type="telemetry", data=b"[1]"), carry=False)["command"] == "telemetry"


def test_bytes_are_carried_or_refused_but_never_lost() -> None:
    frame = record(type="mavlink.HEARTBEAT", data=b"\xfd\x00", content_type="application/octet-stream")
    assert mqtt.to_record(mqtt.from_record(frame)).data == b"\xfd\x00"
    with pytest.raises(RecordInvalid, match="'data': is application/octet-stream, which an envelope cannot hold"):
        mqtt.from_record(frame, carry=False)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2025-11-05T12:00:00Z", NOON),
        ("2025-11-05T12:00:00", NOON),  # no zone: UTC
        ("2025-11-05 14:00:00+02:00", NOON),
        ("2025-11-05T12:00:00.000000001Z", NOON + 1),
        ("2025-11-05T12:00:00,5Z", NOON + 500_000_000),
        (NOON // 10**9, NOON),
        (NOON // 10**9 + 0.5, NOON + 500_000_000),
        (NOON // 10**6, NOON),  # milliseconds
        ("1969-12-31T23:59:59Z", None),
        ("2025-02-30T00:00:00Z", None),
        ("9999-01-01T00:00:00Z", None),
        ("noon", None),
        (-1, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_timestamps_of_all_kinds_are_read_and_come_back(timestamp: Any, expected: int | None) -> None:
    envelope = COMMAND | {"timestamp": timestamp}
    made = mqtt.to_record(envelope)
    assert made.time == expected
    assert mqtt.from_record(made) == envelope


@pytest.mark.parametrize(
    ("envelope", "field"),
    [
        ({}, "messageId"),
        ({"messageId": None}, "messageId"),
        ({"messageId": ""}, "messageId"),
        ({"messageId": True}, "messageId"),
        ({"messageId": ["m"]}, "messageId"),
        ({"messageId": "m", "payload": {"a": float("nan")}}, "message.payload.a"),
        ({"messageId": "m", "payload": "x" * 1_048_576}, "message"),
        ([], "message"),
    ],
)
def test_s153_a_malformed_envelope_is_refused_by_name(envelope: Any, field: str) -> None:
    with pytest.raises(RecordInvalid) as caught:
        mqtt.to_record(envelope)
    assert caught.value.field == field


def test_a_message_id_that_is_no_id_is_hashed_and_comes_back() -> None:
    envelope = COMMAND | {"messageId": "mit Leerzeichen und ü"}
    made = mqtt.to_record(envelope)
    assert made.id == mqtt.to_record(envelope).id
    assert made.id.startswith("h-")
    assert mqtt.from_record(made) == envelope
