"""CommunicationMessage and the JSON text of the sorted-set queues (S-096 to S-104, S-121 to S-136)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from petalbus.schemas import Priority, Record, RecordInvalid, ReplyKind
from petalbus.schemas.convert import CommunicationMessage, MessagePriority, MessageStatus, communication
from petalbus.schemas.stamps import BOOT_ID
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES, Status

SECOND = 1_000_000_000
SENT = 1763683200.1234567

# as a C++ program writes it: other order, no optional members, one that nobody here knows
FROM_HEAR_FC = """{"message_type": "command", "sender": "petal-app-manager", "recipient": "HEAR_FC", "id": "m-1",
 "payload": {"command": "takeoff", "altitude": 20}, "priority": 3, "timestamp": 1763683200.1234567, "hops": 2}"""


def test_s101_s102_only_the_first_five_members_are_needed() -> None:
    before = time.time()
    message = CommunicationMessage("m", "HEAR_FC", "petal-app-manager", "command_response", {"status": "success"})
    assert message.priority is MessagePriority.NORMAL
    assert before <= message.timestamp <= time.time()
    assert message.reply_to is message.timeout is None
    assert message.extra == {}


def test_the_words_are_those_of_the_bus() -> None:
    assert {level.name: int(level) for level in MessagePriority} == {level.name: int(level) for level in Priority}
    assert MessageStatus.FAILED.value == "failed"
    assert {status.value for status in MessageStatus} == {status.value for status in Status} - {"unknown"}


def test_a_queued_command_becomes_a_record() -> None:
    message = CommunicationMessage.from_json(FROM_HEAR_FC)
    assert message.extra == {"hops": 2}
    record = communication.to_record(message)
    assert (record.id, record.type, record.source, record.recipient) == (
        "m-1",
        "command",
        "petal-app-manager",
        "HEAR_FC",
    )
    assert record.priority is Priority.HIGH
    assert record.data == {"command": "takeoff", "altitude": 20}
    assert record.time == 1763683200123456717  # what that float is, to the nanosecond
    assert record.deadline is None


def test_the_text_that_is_written_is_the_documented_form() -> None:
    message = CommunicationMessage(
        "m", "a", "b", "ping", {}, MessagePriority.CRITICAL, SENT, reply_to="r", timeout=5, extra={"hops": 2}
    )
    assert message.to_json() == (
        '{"id":"m","sender":"a","recipient":"b","message_type":"ping","payload":{},"priority":4,'
        '"timestamp":1763683200.1234567,"reply_to":"r","timeout":5,"hops":2}'
    )
    assert CommunicationMessage.from_json(message.to_json().encode()) == message


def test_s104_a_timeout_is_a_deadline_on_the_boot_clock_when_the_time_of_arrival_is_known() -> None:
    message = CommunicationMessage("m", "a", "b", "ping", {}, timestamp=SENT, timeout=5)
    record = communication.to_record(message, mono=7 * SECOND)
    assert (record.mono, record.boot_id, record.deadline) == (7 * SECOND, BOOT_ID, 12 * SECOND)
    assert not record.expired(12 * SECOND - 1)
    assert record.expired(12 * SECOND)
    assert communication.from_record(record, carry=False).timeout == 5


def test_s104_a_timeout_is_a_wall_clock_deadline_otherwise_which_the_bus_translates() -> None:
    message = CommunicationMessage("m", "a", "b", "ping", {}, timestamp=1000.5, timeout=5)
    record = communication.to_record(message)
    assert (record.boot_id, record.mono, record.deadline) == (None, None, 1_005_500_000_000)
    assert communication.from_record(record) == message


def test_a_part_of_a_second_is_rounded_up_for_the_message_but_not_for_the_record() -> None:
    record = Record.checked(
        {"id": "1", "type": "t", "source": "s", "boot_id": "ab", "mono": 0, "deadline": 1_500_000_000, "data": b"{}"}
    )
    message = communication.from_record(record)
    assert message.timeout == 2
    assert communication.to_record(message).deadline == 1_500_000_000


def test_s103_a_reply_says_what_it_answers_and_whether_it_failed() -> None:
    def reply(payload: dict[str, Any]) -> Record:
        message = CommunicationMessage("r", "HEAR_FC", "gcs", "command_response", payload, reply_to="m-1")
        return communication.to_record(message)

    assert reply({"status": "success"}).reply_to == "m-1"
    assert reply({"status": "success"}).kind is ReplyKind.RESULT
    assert reply({}).kind is ReplyKind.RESULT
    assert reply({"status": "failed"}).kind is ReplyKind.ERROR
    assert reply({"status": "error", "message": "no"}).kind is ReplyKind.ERROR
    assert reply({"status": [1]}).kind is ReplyKind.RESULT


def test_s138_a_reply_id_that_grew_too_long_still_makes_a_record() -> None:
    message = CommunicationMessage(f"response_{'x' * 128}", "a", "b", "command_response", {}, timestamp=SENT)
    record = communication.to_record(message)
    assert record.id == communication.to_record(message).id
    assert len(record.id) <= 128
    assert communication.from_record(record) == message


def test_what_only_a_record_has_travels_along_unless_it_is_not_wanted() -> None:
    record = Record.checked(
        {
            "id": "1",
            "type": "telemetry",
            "source": "s",
            "data": b'{ "a": 1.50 }',
            "kind": "progress",
            "reply_to": "0",
            "later": b"\xff",
        }
    )
    message = communication.from_record(record)
    assert message.recipient == ""
    assert set(message.extra) == {"petalbus"}
    assert message.extra["petalbus"]["set"]["later"] == {"base64": "/w=="}
    assert communication.to_record(message).to_fields() == record.to_fields()
    assert communication.from_record(record, carry=False).extra == {}


def test_what_a_stranger_says_about_record_fields_is_only_kept() -> None:
    claims = {"set": {"source": "HEAR_FC", "priority": "4"}}
    message = CommunicationMessage("m", "web", "b", "ping", {}, timestamp=SENT, extra={"petalbus": claims})
    record = communication.to_record(message, carry=False)
    assert (record.source, record.priority) == ("web", Priority.NORMAL)
    assert communication.from_record(record, carry=False) == message
    assert communication.to_record(message).source == "HEAR_FC"


def test_the_message_owns_its_payload() -> None:
    record = Record.checked({"id": "1", "type": "t", "source": "s", "data": b'{"a":[1]}'})
    communication.from_record(record).payload["a"].append(2)
    assert record.data == {"a": [1]}


def test_a_payload_that_is_no_object_stands_under_value() -> None:
    record = Record.checked({"id": "1", "type": "t", "source": "s", "data": b"[1,2]"})
    assert communication.from_record(record, carry=False).payload == {"value": [1, 2]}
    assert communication.to_record(communication.from_record(record)).data == [1, 2]


def test_bytes_are_carried_or_refused_but_never_lost() -> None:
    record = Record.checked({"id": "1", "type": "t", "source": "s", "data": b"\xff", "content_type": "image/png"})
    assert communication.to_record(communication.from_record(record)).data == b"\xff"
    with pytest.raises(RecordInvalid, match="'data': is image/png, which a message cannot hold"):
        communication.from_record(record, carry=False)


def test_a_compressed_record_is_told_uncompressed() -> None:
    from petalbus.schemas.compression import compress

    raw = compress(b'{"a":1}', "zlib")
    record = Record.checked({"id": "1", "type": "t", "source": "s", "data": raw, "encoding": "zlib"})
    message = communication.from_record(record)
    assert message.payload == {"a": 1}
    back = communication.to_record(message)
    assert (back.encoding, back.raw) == (None, b'{"a":1}')


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"id": None}, "id"),
    ({"id": 5}, "id"),
    ({"sender": "a:b"}, "sender"),
    ({"sender": ""}, "sender"),
    ({"recipient": "{x}"}, "recipient"),
    ({"message_type": "a b"}, "message_type"),
    ({"payload": [1]}, "payload"),
    ({"payload": None}, "payload"),
    ({"priority": 5}, "priority"),
    ({"priority": "urgent"}, "priority"),
    ({"priority": True}, "priority"),
    ({"timestamp": -1}, "timestamp"),
    ({"timestamp": "now"}, "timestamp"),
    ({"timestamp": 1763683200123}, "timestamp"),  # milliseconds
    ({"timeout": -1}, "timeout"),
    ({"timeout": "5"}, "timeout"),
    ({"timeout": True}, "timeout"),
    ({"timeout": 1e9}, "timeout"),
    ({"reply_to": 5}, "reply_to"),
]


@pytest.mark.parametrize(("members", "field"), BROKEN, ids=[f"{f}-{i}" for i, (_, f) in enumerate(BROKEN)])
def test_s153_a_malformed_member_is_refused_by_its_own_name(members: dict[str, Any], field: str) -> None:
    good = {"id": "m", "sender": "a", "recipient": "b", "message_type": "ping", "payload": {}}
    with pytest.raises(RecordInvalid) as caught:
        communication.to_record(CommunicationMessage.from_json(json.dumps(good | members)))
    assert caught.value.field == field


@pytest.mark.parametrize("missing", ["id", "sender", "recipient", "message_type"])
def test_a_missing_member_is_named(missing: str) -> None:
    good = {"id": "m", "sender": "a", "recipient": "b", "message_type": "ping", "payload": {}}
    good.pop(missing)
    with pytest.raises(RecordInvalid, match=f"'{missing}': is missing"):
        CommunicationMessage.from_json(json.dumps(good))


@pytest.mark.parametrize("text", ["", "[]", "5", "{", '{"id":"m","payload":{"a":NaN}}', b"\xff"])
def test_text_that_is_no_message_is_refused(text: str | bytes) -> None:
    with pytest.raises(RecordInvalid, match="'message'"):
        CommunicationMessage.from_json(text)


def test_priorities_by_name_and_missing_ones_are_understood() -> None:
    good = {"id": "m", "sender": "a", "recipient": "b", "message_type": "ping", "payload": {}}
    assert CommunicationMessage.from_dict(good | {"priority": "high"}).priority is MessagePriority.HIGH
    assert CommunicationMessage.from_dict(good | {"priority": None}).priority is MessagePriority.NORMAL


def test_too_large_a_payload_is_refused_by_the_messages_word_for_it() -> None:
    message = CommunicationMessage("m", "a", "b", "t", {"log": "x" * MAX_PAYLOAD_BYTES}, timestamp=SENT)
    with pytest.raises(RecordInvalid, match=r"'payload': has 1048586 bytes \(expected at most 1048576 bytes"):
        communication.to_record(message)
    with pytest.raises(RecordInvalid, match="'message': has 2097153 bytes"):
        CommunicationMessage.from_json(b"x" * (2 * MAX_PAYLOAD_BYTES + 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(RecordInvalid, match=r"'payload.a.0': is (nan|inf), which JSON cannot say"):
        communication.to_record(CommunicationMessage("m", "a", "b", "t", {"a": [value]}, timestamp=SENT))
    with pytest.raises(RecordInvalid, match="'timestamp'"):
        communication.to_record(CommunicationMessage("m", "a", "b", "t", {}, timestamp=value))
