"""Records for people and for programs: one line, or one JSON object."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from petalbus.schemas.compact import CompactForm, is_compact
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

if TYPE_CHECKING:
    from collections.abc import Callable

    from petalbus.daemon.cli.streams import Stream

_MAVLINK: Final = "application/x-mavlink"
_FIELDS: Final = (
    "id", "type", "source", "recipient", "priority", "reply_to", "kind", "wants_reply", "deadline", "time", "boot_id",
    "mono", "key", "content_type", "encoding", "schema_version", "traceparent",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """One stream entry: its record, or why it is none. ``mono``: boot-clock ns, estimated where the record has none."""

    stream: Stream
    entry: str
    record: Record | None
    problem: str | None
    mono: int
    boot_id: str


def read_entry(stream: Stream, entry: bytes, fields: Sequence[bytes], form: CompactForm | None) -> Shown:
    """Expand one entry of a stream; never raises: what is no record is shown as that."""
    name = entry.decode()
    record, problem = None, None
    try:
        if stream.kind == "control":
            problem = b" ".join(fields).decode(errors="replace")
        elif is_compact(fields) and form is not None:
            record = form.decode(name, fields)
        else:
            record = Record.from_fields(fields, stream_id=name)
    except RecordInvalid as error:
        problem = f"not a record: {error}"
    if record is not None and record.mono is not None:
        return Shown(stream, name, record, problem, record.mono, record.boot_id or BOOT_ID)
    # The entry's id is the wall clock's millisecond in which the server stored it: good enough to show it among the
    # others, at the end of that millisecond, because those were stamped before they were stored.
    age = time.time_ns() - (int(name.partition("-")[0]) + 1) * 1_000_000
    return Shown(stream, name, record, problem, boot_clock_ns() - age, BOOT_ID)


def in_order(entries: Sequence[Shown]) -> list[Shown]:
    """By the boot clock; boots follow one another as the server stored their first entries here."""
    boots: dict[str, int] = {}
    for one in entries:
        stored = int(one.entry.partition("-")[0])
        boots[one.boot_id] = min(stored, boots.get(one.boot_id, stored))
    return sorted(entries, key=lambda one: (boots[one.boot_id], one.mono, _numbers(one.entry)))


def _numbers(entry: str) -> tuple[int, int]:
    ms, _, number = entry.partition("-")
    return int(ms), int(number or 0)


def as_object(record: Record) -> dict[str, Any]:
    """A record as a JSON object: its fields, the payload decoded (base64 where it is no JSON), unknown fields."""
    told: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(record, name)
        if value not in (None, False):
            told["schema" if name == "schema_version" else name] = value
    told["priority"] = int(record.priority)
    if record.stream_id is not None:
        told["stream_id"] = record.stream_id
    told["data"], extra = payload_of(record)
    if isinstance(extra, bytes):
        told["data_base64"] = base64.b64encode(extra).decode()
    if record.extra:
        told["extra"] = {name: _text(value) for name, value in record.extra.items()}
    return told


def entry_object(shown: Shown) -> dict[str, Any]:
    """A stream entry as a JSON object: where it is, and its record."""
    where = {"stream": shown.stream.label, "direction": shown.stream.kind, "stream_id": shown.entry}
    if shown.record is None:
        return {**where, "mono": shown.mono, "problem": shown.problem}
    return {**where, **as_object(shown.record)}


def payload_of(record: Record) -> tuple[Any, bytes | None]:
    """The payload as JSON has it, and its bytes where they say more; a MAVLink frame is decoded."""
    try:
        value = record.data
    except RecordInvalid:
        return None, record.raw
    if not isinstance(value, bytes):
        return value, None
    decode = _mavlink_decode() if record.content_type == _MAVLINK else None
    if decode is None:
        return None, value
    try:
        return decode(record), value
    except (TypeError, ValueError):
        return None, value


def line(shown: Shown, *, now: int, width: int, paint: Callable[[str, str], str]) -> str:
    """One line: age, direction, type, ids, payload; about ``width`` characters. ``paint(colour, text)`` may colour."""
    age = f"{(now - shown.mono) / 1e9:9.3f}s" if shown.boot_id == BOOT_ID else "  old boot"
    stream, record = shown.stream, shown.record
    if record is None:
        return f"{age} {paint('red', _arrow(stream, None))} {shown.problem}"
    head = [_arrow(stream, record), record.type]
    if record.kind is not None:
        head.append(f"[{record.kind}]")
    if stream.kind != "topic" or record.stream_id is None or not record.id.endswith(record.stream_id):
        head.append(f"id={record.id}")
    if record.reply_to is not None:
        head.append(f"re={record.reply_to}")
    if stream.kind == "dead":
        head.append(f"reason={_text(record.extra.get('dead_reason', b''))!r}")
    text = " ".join(head)
    room = max(20, width - len(age) - len(text) - 2)
    return f"{age} {paint(_COLOURS.get(stream.kind, 'plain'), text)} {_short(record, room)}"


_COLOURS: Final = {"inbox": "cyan", "replies": "green", "dead": "red", "control": "yellow", "ingest": "yellow"}


def _arrow(stream: Stream, record: Record | None) -> str:
    source = record.source if record is not None else "?"
    if stream.kind == "inbox":
        return f"inbox   {source} -> {stream.of} {stream.priority}"
    if stream.kind == "replies":
        return f"reply   {source} -> {stream.of}"
    if stream.kind == "topic":
        return f"topic   {source} => {stream.of}"
    return f"{stream.kind:<7} {source} -> {stream.of}"


def _short(record: Record, room: int) -> str:
    value, raw = payload_of(record)
    if value is None and raw is not None:
        text = f"{len(raw)} bytes {raw[: room // 2].hex()}"
    else:
        if record.content_type == _MAVLINK and isinstance(value, dict):
            value = {name: part for name, part in value.items() if name not in ("mavpackettype", "header")}
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text if len(text) <= room else text[: room - 3] + "..."


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


@cache
def _mavlink_decode() -> Callable[[Record], dict[str, Any]] | None:
    try:
        from petalbus.handlers.mavlink.decode import decode  # only when there is a frame to show
    except ImportError:  # a machine without pymavlink still shows the frames, as bytes
        return None
    return decode
