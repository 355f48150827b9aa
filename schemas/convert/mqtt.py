"""The MQTT envelopes of the cloud and the web client, and their way to records and back.

Four shapes share one envelope: a command ``{messageId, command, timestamp, waitResponse, payload|data, ...}``, its
acknowledgement ``{messageId, phase: "ack", ...}``, its response ``{messageId, phase: "result", timestamp, ...}`` and
what is pushed to the web client, which looks like a command whose name begins with a slash.

In a record ``messageId`` is ``id`` (``reply_to`` of an answer), ``timestamp`` is ``time`` and ``waitResponse`` is
``wants_reply``; every other member stays in ``data``, under its own name.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from petalbus.schemas.convert.exchange import Exchange, JsonObject, WireFields
from petalbus.schemas.convert.names import bus_id, content_id, ns_from_seconds, time_ns, time_text, wire_ns
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import decode_json, encode_json
from petalbus.schemas.record import JSON_TYPE, Record
from petalbus.schemas.stamps import BOOT_ID
from petalbus.schemas.vocabulary import Priority, ReplyKind

CARRIED: Final = "petalbus"
"""The member of an envelope that carries what only a record has."""

KEPT: Final = "kept.mqtt"
"""The record field that keeps what only an envelope has."""

SOURCE: Final = "mqtt"
"""The app id of whoever is at the far end, where the caller gives no other."""


class Envelope(StrEnum):
    """The four shapes; the values are the record types."""

    COMMAND = "mqtt.command"
    WEB = "mqtt.web"
    RESPONSE = "mqtt.response"
    ACK = "mqtt.ack"


_ASKING: Final = (Envelope.COMMAND, Envelope.WEB)
_KIND_OF_REPLY: Final = {
    ReplyKind.ACCEPTED: Envelope.ACK,
    ReplyKind.PROGRESS: Envelope.WEB,
    ReplyKind.RESULT: Envelope.RESPONSE,
    ReplyKind.ERROR: Envelope.RESPONSE,
    ReplyKind.CANCELLED: Envelope.RESPONSE,
}


def envelope_of(message: JsonObject) -> Envelope:
    """Tell the shapes apart by their members, as far as they differ."""
    phase, command = message.get("phase"), message.get("command")
    if phase == "ack":
        return Envelope.ACK
    if phase == "result" or not isinstance(command, str):
        return Envelope.RESPONSE
    return Envelope.WEB if command.startswith("/") else Envelope.COMMAND


def to_record(
    message: JsonObject,
    *,
    envelope: Envelope | None = None,
    source: str | None = None,
    recipient: str | None = None,
    mono: int | None = None,
    carry: bool = True,
) -> Record:
    """The record that says the same.

    ``envelope`` is known from the topic; without it the members decide. ``mono`` is the boot-clock time of arrival in
    ns. An answer has no id of its own: it gets one made of the command's id and a hash of its content, so the same
    answer delivered twice is one record.

    What comes from outside the vehicle must not name record fields: use ``carry=False`` there; a ``petalbus`` member is
    then one unknown member more. Raises RecordInvalid naming the member and the limit.
    """
    if not isinstance(message, dict):
        raise RecordInvalid("message", f"is {type(message).__name__}", limit="an object")
    given: WireFields = {}
    if envelope is not None:
        given["type"] = envelope.encode()
    if source is not None:
        given["source"] = source.encode()
    if recipient is not None:
        given["recipient"] = recipient.encode()
    if mono is not None:
        given |= {"boot_id": BOOT_ID.encode(), "mono": b"%d" % mono}
    return _EXCHANGE.to_record(message, given, carry=carry)


def from_record(record: Record, *, carry: bool = True) -> JsonObject:
    """The envelope that says the same: by the record's type for ``mqtt.*``, by its kind for replies, else a command.

    With ``carry`` what only the record has travels in the member ``petalbus``, and ``to_record`` gives back an equal
    record. Raises RecordInvalid where the payload is not JSON and cannot be carried either.
    """
    if not carry and record.content_type not in (None, JSON_TYPE):
        problem = f"is {record.content_type}, which an envelope cannot hold"
        raise RecordInvalid("data", problem, limit="JSON, or carry=True")
    return _EXCHANGE.from_record(record, carry=carry)


def _read(message: JsonObject) -> WireFields:
    envelope = envelope_of(message)
    message_id = message.get("messageId")
    if isinstance(message_id, int) and not isinstance(message_id, bool):
        message_id = str(message_id)
    if not isinstance(message_id, str) or not message_id:
        problem = "is missing" if "messageId" not in message else "is not text"
        raise RecordInvalid("messageId", problem, limit="the message's id")
    taken = {"messageId", "timestamp", CARRIED} | ({"waitResponse"} if envelope in _ASKING else set())
    if message.get("phase") == _PHASES.get(envelope):
        taken.add("phase")
    data = encode_json({name: value for name, value in message.items() if name not in taken}, under="message")
    fields: WireFields = {
        "type": envelope.encode(),
        "source": SOURCE.encode(),
        "data": data,
        "priority": b"%d" % Priority.NORMAL,
    }
    if envelope in _ASKING:
        fields["id"] = bus_id(message_id).encode()
        if message.get("waitResponse"):
            fields["wants_reply"] = b"1"
    else:
        whole = encode_json(message, under="message", sort_keys=True)
        fields["id"] = content_id(message_id, envelope.name.lower(), content=whole).encode()
        fields["reply_to"] = bus_id(message_id).encode()
        fields["kind"] = _reply_kind(envelope, message).encode()
    sent = _time(message.get("timestamp"))
    if sent is not None:
        fields["time"] = b"%d" % sent
    return fields


_PHASES: Final = {Envelope.ACK: "ack", Envelope.RESPONSE: "result"}


def _reply_kind(envelope: Envelope, message: JsonObject) -> ReplyKind:
    if envelope is Envelope.ACK:
        return ReplyKind.ACCEPTED
    failed = message.get("success") is False or message.get("status") in ("error", "failed")
    return ReplyKind.ERROR if failed else ReplyKind.RESULT


def _time(value: Any) -> int | None:
    """Wall-clock ns of an ISO text, or of seconds or milliseconds since 1970; None where it is none of these."""
    if isinstance(value, str):
        return time_ns(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e14:
        # seconds reach 1e11 in the year 5138, milliseconds reached it in 1973
        return wire_ns(ns_from_seconds(value) if value < 1e11 else ns_from_seconds(value) // 1000)
    return None


def _write(record: Record) -> JsonObject:
    payload: Any = {}
    if record.content_type in (None, JSON_TYPE):
        # decoded anew, not taken from record.data: the envelope's owner may change it
        payload = decode_json(record.body)
    envelope = _envelope_for(record, payload)
    sent = time_text(record.time) if record.time is not None else None
    timestamp = {} if sent is None else {"timestamp": sent}
    members = payload if isinstance(payload, dict) else {"payload": payload}
    if envelope in _ASKING:
        if record.type != envelope or not isinstance(members.get("command"), str):
            members = {"command": _command_name(record, envelope, payload), "payload": payload}
        asking = {"messageId": record.id, **timestamp, "waitResponse": record.wants_reply}
        return _joined(asking, members, "messageId", "waitResponse")
    answer = {"messageId": record.reply_to or record.id, "phase": _PHASES[envelope], **timestamp}
    return _joined(answer, members, "messageId")


def _envelope_for(record: Record, payload: Any) -> Envelope:
    if record.type in set(Envelope):
        envelope = Envelope(record.type)
        if envelope not in _ASKING or (isinstance(payload, dict) and isinstance(payload.get("command"), str)):
            return envelope
        return Envelope.COMMAND
    if record.kind is not None:
        return _KIND_OF_REPLY[record.kind]
    return Envelope.COMMAND if record.reply_to is None else Envelope.RESPONSE


def _command_name(record: Record, envelope: Envelope, payload: Any) -> str:
    if envelope is Envelope.WEB:
        return f"/{record.source}/{record.type}"
    named = payload.get("command") if isinstance(payload, dict) else None
    return named if isinstance(named, str) else record.type


def _joined(head: JsonObject, members: JsonObject, *fixed: str) -> JsonObject:
    """The head, then the members in their own order; the members win, but for the ``fixed`` ones."""
    own = {name: value for name, value in members.items() if name not in (*fixed, CARRIED)}
    return {name: value for name, value in head.items() if name not in own} | own


_EXCHANGE: Final = Exchange(
    keeps=KEPT,
    carries=CARRIED,
    read=_read,
    write=_write,
    blamed={"id": "messageId", "data": "message", "time": "timestamp"},
)
