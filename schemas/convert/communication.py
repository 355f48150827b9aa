"""``CommunicationMessage``, the message of the two-way communication document, and its way to a record and back.

Programs that still use the sorted-set queues exchange it as JSON text (``to_json``, ``from_json``).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final

from petalbus.schemas.convert.exchange import Exchange, JsonObject, WireFields
from petalbus.schemas.convert.names import bus_id, ns_from_seconds, seconds_from_ns, utf8
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import decode_json, encode_json
from petalbus.schemas.record import JSON_TYPE, Record
from petalbus.schemas.stamps import BOOT_ID
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES, ReplyKind

CARRIED: Final = "petalbus"
"""The member of a message that carries what only a record has."""

KEPT: Final = "kept.communication"
"""The record field that keeps what only a message has."""

_NS: Final = 1_000_000_000
_LATEST: Final = 9_000_000_000
"""Latest timestamp in seconds since 1970, in the year 2255; one in milliseconds, the usual mistake, is beyond it."""
_LONGEST: Final = 100_000_000
"""Longest timeout in seconds: three years."""
_FAILED: Final = frozenset({"failed", "error"})


class MessagePriority(IntEnum):
    """Message priorities; the same levels as ``petalbus.Priority``."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


class MessageStatus(StrEnum):
    """How far the processing of a message has come; the values are those that ``get_message_status`` returns."""

    PENDING = "pending"
    DELIVERED = "delivered"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass
class CommunicationMessage:
    """One message between two applications.

    ``timestamp`` is seconds since 1970, ``timeout`` seconds from then. ``extra`` holds the members of its JSON form
    that this class does not name; they are written back as they came.
    """

    id: str
    sender: str
    recipient: str
    message_type: str
    payload: dict[str, Any]
    priority: MessagePriority = MessagePriority.NORMAL
    timestamp: float = field(default_factory=time.time)
    reply_to: str | None = None
    timeout: int | None = None
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The members of the JSON form, in the documented order, unknown ones last."""
        documented = {name: getattr(self, name) for name in _DOCUMENTED}
        documented["priority"] = int(_priority(self.priority))
        return documented | {name: value for name, value in self.extra.items() if name not in documented}

    def to_json(self) -> str:
        """The text that stands in a sorted-set queue. Raises RecordInvalid when a value is not JSON."""
        return encode_json(self.to_dict(), under="message").decode()

    @classmethod
    def from_dict(cls, members: JsonObject) -> CommunicationMessage:
        """Read the JSON form; what is missing gets its default. Raises RecordInvalid naming the member."""
        known = {name: members[name] for name in _DOCUMENTED if name in members}
        for name in ("id", "sender", "recipient", "message_type"):
            if not isinstance(known.get(name), str):
                problem = "is not text" if name in known else "is missing"
                raise RecordInvalid(name, problem, limit="text")
        known["payload"] = known.get("payload", {})
        known["priority"] = _priority(known.get("priority", MessagePriority.NORMAL))
        if known.get("timestamp") is None:
            known.pop("timestamp", None)
        message = cls(**known, extra={name: value for name, value in members.items() if name not in _DOCUMENTED})
        _check(message)
        return message

    @classmethod
    def from_json(cls, text: str | bytes) -> CommunicationMessage:
        """Read the text of a sorted-set queue. Raises RecordInvalid naming the member."""
        if len(text) > 2 * MAX_PAYLOAD_BYTES:
            raise RecordInvalid("message", f"has {len(text)} bytes", limit=f"at most {2 * MAX_PAYLOAD_BYTES} bytes")
        members = decode_json(text, under="message")
        if not isinstance(members, dict):
            raise RecordInvalid("message", "is not an object", limit="a JSON object")
        return cls.from_dict(members)


_DOCUMENTED: Final = (
    "id", "sender", "recipient", "message_type", "payload", "priority", "timestamp", "reply_to", "timeout",
)  # fmt: skip  # one line is enough for a list of words


def to_record(message: CommunicationMessage, *, mono: int | None = None, carry: bool = True) -> Record:
    """The record that says the same.

    ``mono`` is the boot-clock time in ns at which the message was sent or came in on this machine; with it the timeout
    becomes a deadline on the boot clock. Without it the deadline is wall-clock time, as the record's contract has it
    for programs that cannot read their boot clock, and the bus translates it when it adopts the record.

    ``carry=False`` is for senders that are not trusted to name record fields: a ``petalbus`` member is then one unknown
    member more. Raises RecordInvalid naming the member and the limit.
    """
    _check(message)
    given: WireFields = {}
    carried = message.extra.get(CARRIED) if carry else None
    stamped = isinstance(carried, dict) and isinstance(carried.get("set"), dict) and "boot_id" in carried["set"]
    if mono is not None and not stamped:
        given = {"boot_id": BOOT_ID.encode(), "mono": b"%d" % mono}
        if message.timeout is not None:
            given["deadline"] = b"%d" % (mono + ns_from_seconds(message.timeout))
    return _EXCHANGE.to_record(message.to_dict(), given, carry=carry)


def from_record(record: Record, *, carry: bool = True) -> CommunicationMessage:
    """The message that says the same; a JSON payload that is no object stands under ``value``.

    With ``carry`` what only the record has travels in the member ``petalbus``, and ``to_record`` gives back an equal
    record. Raises RecordInvalid where the payload is not JSON and cannot be carried either.
    """
    if not carry and record.content_type not in (None, JSON_TYPE):
        problem = f"is {record.content_type}, which a message cannot hold"
        raise RecordInvalid("data", problem, limit="JSON, or carry=True")
    return CommunicationMessage.from_dict(_EXCHANGE.from_record(record, carry=carry))


def _read(members: JsonObject) -> WireFields:
    message = CommunicationMessage.from_dict(members)
    sent = ns_from_seconds(message.timestamp)
    fields: WireFields = {
        "id": bus_id(message.id).encode(),
        "type": utf8(message.message_type, under="message_type"),
        "source": utf8(message.sender, under="sender"),
        "data": encode_json(message.payload, under="payload"),
        "priority": b"%d" % message.priority,
        "time": b"%d" % sent,
    }
    if message.recipient:
        fields["recipient"] = utf8(message.recipient, under="recipient")
    if message.reply_to is not None:
        fields["reply_to"] = bus_id(message.reply_to).encode()
        failed = message.payload.get("status") in _FAILED if isinstance(message.payload.get("status"), str) else False
        fields["kind"] = (ReplyKind.ERROR if failed else ReplyKind.RESULT).encode()
    if message.timeout is not None:
        fields["deadline"] = b"%d" % (sent + ns_from_seconds(message.timeout))
    return fields


def _write(record: Record) -> JsonObject:
    payload: Any = {}
    if record.content_type in (None, JSON_TYPE):
        # decoded anew, not taken from record.data: the message's owner may change its payload
        payload = decode_json(record.body)
    sent_on = record.time if record.boot_id is None else record.mono
    timeout = None
    if record.deadline is not None and sent_on is not None:
        timeout = max(0, -(-(record.deadline - sent_on) // _NS))
    timestamp = seconds_from_ns(record.time) if record.time is not None and record.time <= _LATEST * _NS else 0.0
    return {
        "id": record.id,
        "sender": record.source,
        "recipient": record.recipient or "",
        "message_type": record.type,
        "payload": payload if isinstance(payload, dict) else {"value": payload},
        "priority": int(record.priority),
        "timestamp": timestamp,
        "reply_to": record.reply_to,
        "timeout": timeout if timeout is not None and timeout <= _LONGEST else None,
    }


def _priority(value: object) -> MessagePriority:
    if value is None:
        return MessagePriority.NORMAL
    if isinstance(value, str) and value.upper() in MessagePriority.__members__:
        return MessagePriority[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value in set(MessagePriority):
        return MessagePriority(value)
    raise RecordInvalid("priority", f"is {value!r}", limit="1 to 4, or low, normal, high, critical")


def _check(message: CommunicationMessage) -> None:
    """Refuse what the dataclass lets through; names and ids are checked by the record."""
    if not isinstance(message.payload, dict):
        raise RecordInvalid("payload", f"is {type(message.payload).__name__}", limit="an object")
    if not _seconds(message.timestamp, _LATEST):
        raise RecordInvalid("timestamp", f"is {message.timestamp!r}", limit=f"seconds since 1970, at most {_LATEST}")
    if message.timeout is not None and not _seconds(message.timeout, _LONGEST):
        raise RecordInvalid("timeout", f"is {message.timeout!r}", limit=f"0 to {_LONGEST} seconds, or null")
    if message.reply_to is not None and not isinstance(message.reply_to, str):
        raise RecordInvalid("reply_to", f"is {message.reply_to!r}", limit="the id of a message, or null")


def _seconds(value: object, most: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= most


_EXCHANGE: Final = Exchange(
    keeps=KEPT,
    carries=CARRIED,
    read=_read,
    write=_write,
    blamed={"source": "sender", "type": "message_type", "data": "payload", "time": "timestamp", "deadline": "timeout"},
)
