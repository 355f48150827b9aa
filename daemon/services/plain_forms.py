"""What lies in a plain queue, as a raw record; and what cannot be one, as a dead letter. Pure logic, no I/O."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.envelope import bulk
from petalbus.daemon.services.adoption import letter_fields
from petalbus.schemas.convert.communication import CommunicationMessage, to_record
from petalbus.schemas.convert.names import content_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import decode_json, encode_json
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

VIA: Final = b"via"
PLAIN: Final = b"plain"
"""``via plain``: the field of a record that came from the plain keys, so that it is not sent back there."""

LETTER_TYPE: Final = "plain.message"
_ANSWER: Final = re.compile(r"^(?:response|error)_(.+)$", re.DOTALL)
_MAX_BYTES: Final = 2 * MAX_PAYLOAD_BYTES


class Taken(NamedTuple):
    """A message from a plain queue: as it lay there, and read."""

    member: bytes
    message: CommunicationMessage

    @property
    def order(self) -> tuple[int, float]:
        """Urgent ones first, then the oldest: by what the message says, not by its score."""
        return -int(self.message.priority), self.message.timestamp

    @property
    def answers(self) -> str | None:
        """The id that it claims to answer, by its own id; a message with ``reply_to`` need not."""
        match = _ANSWER.match(self.message.id)
        return match[1] if match else None


def read(member: bytes, app: str) -> CommunicationMessage:
    """Read an entry of an application's queue. Raises RecordInvalid naming the member and the limit."""
    if len(member) > _MAX_BYTES:
        raise RecordInvalid("message", f"has {len(member)} bytes", limit=f"at most {_MAX_BYTES} bytes")
    members = decode_json(member, under="message")
    if not isinstance(members, dict):
        raise RecordInvalid("message", "is not an object", limit="a JSON object")
    if not members.get("recipient"):
        members["recipient"] = app  # it lies in that application's queue: that says it
    message = CommunicationMessage.from_dict(members)
    if message.recipient != app:
        raise RecordInvalid("recipient", f"is {message.recipient!r}", limit=f"{app!r}, in whose queue it lies")
    return message


def raw_record(taken: Taken, *, reply_to: str | None) -> list[bytes]:
    """The fields of the raw record that says the same. ``reply_to``: the message that it answers, or None.

    Raises RecordInvalid.
    """
    message = taken.message
    message.reply_to = reply_to
    fields = to_record(message, carry=False).to_fields()
    if reply_to is not None and taken.answers != reply_to:
        # Programs give all their replies one and the same id: the same reply again is told by what it says.
        at = fields.index(b"id") + 1
        fields += [b"plain_id", fields[at]]
        fields[at] = content_id("plain", content=reply_to.encode() + b"\0" + taken.member).encode()
    return [*fields, VIA, PLAIN]


def broadcast_record(said: bytes) -> list[bytes]:
    """The raw record of what a program told everybody: a message, any JSON value, or text. Raises RecordInvalid."""
    kind, source, data = "broadcast", "plain", b""
    try:
        value: Any = decode_json(said, under="broadcast")
    except RecordInvalid:
        value = said.decode("utf-8", "replace")
    if isinstance(value, dict) and {"sender", "message_type"} <= value.keys():
        message = CommunicationMessage.from_dict({"id": new_id(), "recipient": "", **value})
        message.reply_to = None
        record = to_record(message, carry=False)
        kind, source, data = record.type, record.source, record.raw
    else:
        data = encode_json(value, under="broadcast")
    fields = {b"id": new_id(), b"type": kind, b"source": source, b"topic": "broadcast"}
    flat = [part for name, text in fields.items() for part in (name, text.encode())]
    return [*flat, b"data", data, VIA, PLAIN]


def letter(member: bytes, app: str, reason: str) -> tuple[int, bytes]:
    """A dead letter of what lies in an application's queue, as arguments of the append script.

    Its id is made from its content, so that it is kept once, however often it is found.
    """
    letter_id = content_id("plain", content=app.encode() + b"\0" + member).encode()
    given = [b"id", letter_id, b"type", LETTER_TYPE.encode(), b"recipient", app.encode(), b"data", member]
    fields = letter_fields(given, reason=f"invalid: {reason}", entry=b"0-0", stream=plain.inbox(app))
    head = bulk(letter_id) + bulk(b"||" + app.encode() + b"|plain") + bulk(b"%d" % len(fields))
    return len(fields) + 3, head + b"".join(map(bulk, fields))
