"""What becomes of one raw entry of the ingest stream: checked, stamped, routed. Pure logic, no I/O.

    recipient                  -> that application's inbox, at the record's priority
    recipient and reply_to     -> that application's replies; the message answered is settled
    no recipient               -> the topic named by the field ``topic``, else by the first word of the type

A record has one destination: where there is a recipient, ``topic`` is an unknown field like any other, and kept.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

from petalbus.daemon.bus.envelope import claim_of
from petalbus.daemon.bus.keys import Keys, checked_name
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import PAYLOADS, default_priority, validate_payload
from petalbus.schemas.record import JSON_TYPE, Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES, Priority, ReplyKind

MAX_FIELDS: Final = 256
"""Most fields of one raw record."""

MAX_BESIDE_BYTES: Final = 64 * 1024
"""Most bytes of all names and values beside ``data``."""

MAX_DEADLINE_SECONDS: Final = 366 * 86_400

ADDRESSED: Final = frozenset(PAYLOADS) - {"telemetry", "alert"}
"""Types that are meant for somebody: without a recipient they would end in a topic that nobody reads."""

_FINAL_STATES: Final = {ReplyKind.RESULT: "c", ReplyKind.ERROR: "f", ReplyKind.CANCELLED: "x"}
_PROCESSING: Final = "p"
_TIMEOUT: Final = "t"
_EXPIRED: Final = "DEADLINE_EXPIRED"

What = Literal["inbox", "reply", "topic"]


@dataclass(frozen=True, slots=True)
class Admission:
    """A valid raw record and where it goes. ``claim`` and ``state`` are what the adopt script wants to know."""

    record: Record
    what: What
    stream: str
    claim: str
    state: str = ""

    @property
    def telemetry(self) -> bool:
        """True for what a source's rate limit counts: telemetry by its type, and every LOW record that is no reply."""
        record = self.record
        word = record.type.partition(".")[0]
        return self.what != "reply" and (word == "telemetry" or record.priority is Priority.LOW)


def admit(fields: list[bytes], keys: Keys) -> Admission:
    """Check, stamp and route one raw entry. Raises RecordInvalid naming the field and the limit."""
    _check_form(fields)
    record = Record.from_fields(fields)
    value = _check_payload(record)
    if b"priority" not in fields[::2]:
        record.priority = default_priority(record.type, value)
    _stamp(record)
    if record.reply_to is not None or record.kind is not None:
        return _route_reply(record, keys, value)
    if record.recipient is not None:
        claim = claim_of(record.priority, record.recipient, record.source).decode()
        return Admission(record, "inbox", keys.inbox(record.recipient, record.priority), claim)
    return Admission(record, "topic", keys.topic(_topic(record)), "")


def _check_form(fields: list[bytes]) -> None:
    names = fields[::2]
    if len(names) > MAX_FIELDS:
        raise RecordInvalid("record", f"has {len(names)} fields", limit=f"at most {MAX_FIELDS}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordInvalid(_shown(twice), "occurs more than once", limit="each field once")
    if b"id" not in names:
        raise RecordInvalid("id", "is missing", limit="1 to 128 visible ASCII characters")
    beside = 0
    for name, value in zip(names, fields[1::2], strict=True):
        beside += len(name) + (len(value) if name != b"data" else 0)
        try:
            name.decode()
        except UnicodeDecodeError:
            raise RecordInvalid(_shown(name), "is no name of a field", limit="UTF-8 text") from None
    if beside > MAX_BESIDE_BYTES:
        raise RecordInvalid("record", f"has {beside} bytes beside its data", limit=f"at most {MAX_BESIDE_BYTES} bytes")


def _check_payload(record: Record) -> Any:
    """The payload's value, where it is JSON."""
    if record.content_type is None or record.content_type == JSON_TYPE:
        return validate_payload(record.type, record.body)
    if record.type in PAYLOADS:
        problem = f"is {record.content_type!r} but payloads of type {record.type!r} are JSON"
        raise RecordInvalid("content_type", problem, limit=JSON_TYPE)
    if record.encoding is not None and len(record.body) > MAX_PAYLOAD_BYTES:
        raise RecordInvalid("data", f"has {len(record.body)} bytes", limit=f"at most {MAX_PAYLOAD_BYTES} bytes")
    return None


def _stamp(record: Record) -> None:
    """Add what is missing: wall clock, boot, boot clock; and bring the deadline to the boot clock."""
    wall, mono = time.time_ns(), boot_clock_ns()
    if record.time is None:
        record.time = wall
    extra = record.__pydantic_extra__
    timeout = extra.pop("timeout", None) if extra else None
    if record.boot_id is not None:
        # the kernel's own way to write it is welcome; a boot of another machine stays as it is
        record.boot_id = record.boot_id.replace("-", "")[:12] if len(record.boot_id) == 36 else record.boot_id
    elif record.deadline is not None:
        record.deadline = _translated(record.deadline, wall, mono)
    if record.deadline is None and timeout is not None:
        record.deadline = mono + _nanoseconds(timeout)
        record.boot_id = None  # the deadline is counted from here, so the stamps are ours
    if record.boot_id is None:
        record.boot_id, record.mono = BOOT_ID, mono  # a mono of no known boot could not be compared with anything
    elif record.mono is None and record.boot_id == BOOT_ID:
        record.mono = mono


def _translated(deadline: int, wall: int, mono: int) -> int:
    """A wall-clock deadline as boot-clock ns."""
    left = deadline - wall
    if abs(left) > MAX_DEADLINE_SECONDS * 10**9:
        problem = f"{deadline} is more than a year {'ahead' if left > 0 else 'ago'}"
        raise RecordInvalid("deadline", problem, limit="nanoseconds since 1970; or the field timeout, in seconds")
    return max(0, mono + left)


def _nanoseconds(timeout: object) -> int:
    text = timeout.decode("ascii", "replace") if isinstance(timeout, bytes) else str(timeout)
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        seconds = Decimal(0)
    if not (seconds.is_finite() and 0 < seconds < MAX_DEADLINE_SECONDS):
        raise RecordInvalid("timeout", f"{text[:64]!r} is no time in seconds", limit="more than 0, under a year")
    return int(seconds * 10**9)


def _route_reply(record: Record, keys: Keys, value: Any) -> Admission:
    if record.reply_to is None:
        raise RecordInvalid("reply_to", f"is missing in a reply ({record.kind})", limit="the id of what it answers")
    if record.recipient is None:
        raise RecordInvalid("recipient", "is missing in a reply", limit="the source of what it answers")
    kind = record.kind = record.kind or ReplyKind.RESULT
    claim = f"{record.source}|{record.recipient}"
    state = _FINAL_STATES.get(kind, _PROCESSING)
    if kind is ReplyKind.ERROR and isinstance(value, dict) and value.get("error_code") == _EXPIRED:
        state = _TIMEOUT
    return Admission(record, "reply", keys.replies(record.recipient), claim, state)


def _topic(record: Record) -> str:
    named = record.extra.get("topic")
    if named is None and record.type in ADDRESSED:
        raise RecordInvalid("recipient", f"is missing; a {record.type} is for somebody", limit="an app id, or a topic")
    if named is None:
        topic = record.type.partition(".")[0]
    else:
        topic = named.decode("utf-8", "replace") if isinstance(named, bytes) else str(named)
    checked_name(topic, what="topic")
    if topic.partition(".")[0] == "bus":
        raise RecordInvalid("topic", f"{topic!r} is written by the bus itself", limit="a topic outside bus")
    return topic


def _shown(name: bytes) -> str:
    return name[:64].decode("utf-8", "backslashreplace")
