"""From arguments to the bytes of a request: the hot half of publishing.

A route holds what is the same for every record to one place (stream, type, source, ...), checked and packed once.
Encoding one record then only adds what varies: id, payload, times and the rarely used fields.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from petalbus.daemon.bus.keys import checked_name
from petalbus.schemas.compression import compress
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import prepare
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import Clock
from petalbus.schemas.vocabulary import (
    ID_RULE,
    MAX_FIELDS,
    MAX_ID_CHARS,
    MAX_PAYLOAD_BYTES,
    MAX_TYPE_CHARS,
    TYPE_RULE,
    Priority,
)

Fields = Mapping[bytes, bytes]
"""Rarely used fields of a record: wire name -> value."""

MAX_TEMPLATES: Final = 64
NO_FIELDS: Final[Fields] = {}


def bulk(value: bytes) -> bytes:
    """One argument as the Redis protocol writes it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def checked_type(value: str) -> str:
    """Return ``value`` when it is a record type; raises RecordInvalid."""
    if not TYPE_RULE.fullmatch(value):
        rule = f"1 to {MAX_TYPE_CHARS} letters, digits or _ . - /"
        raise RecordInvalid("type", f"{value!r} is not a record type", limit=rule)
    return value


def checked_id(value: str) -> str:
    """Return ``value`` when it is a message id; raises RecordInvalid."""
    if not ID_RULE.fullmatch(value):
        raise RecordInvalid(
            "id", f"{value!r} is not a message id", limit=f"1 to {MAX_ID_CHARS} visible ASCII characters"
        )
    return value


def packed_fields(fields: Fields) -> bytes:
    """Names and values, each as a protocol argument."""
    return b"".join([bulk(name) + bulk(value) for name, value in fields.items()])


class Route:
    """Where records of one type go, and the packed fields that are the same for all of them.

    ``claim`` is what the id window remembers beside the id: who may use the same id again (the same source for the same
    recipient at the same priority: a repetition), and who may not.
    """

    __slots__ = ("_constant", "_count", "_now", "_templates", "claim", "priority", "recipient", "stream", "type")

    def __init__(
        self,
        stream: str,
        record_type: str,
        source: str,
        *,
        clock: Clock,
        recipient: str | None = None,
        priority: int | None = None,
    ) -> None:
        self.stream = stream
        self._now = clock.now_ns
        self.type = checked_type(record_type)
        self.recipient = recipient
        self.priority = priority
        fields = {b"type": record_type.encode(), b"source": source.encode(), b"boot_id": clock.boot_id.encode()}
        if recipient is not None:
            fields[b"recipient"] = checked_name(recipient, what="recipient").encode()
        if priority is not None:
            fields[b"priority"] = b"%d" % Priority(priority)
        self.claim = claim_of(priority, recipient, source)
        self._constant = packed_fields(fields)
        self._count = 2 * len(fields) + 8
        self._templates: dict[tuple[bytes, ...], tuple[int, bytes]] = {}

    def fields(self, message_id: bytes, data: bytes, extra: Fields = NO_FIELDS) -> tuple[int, bytes]:
        """The number of field items and the packed items of one record, stamped now."""
        names = tuple(extra)
        known = self._templates.get(names)
        if known is None:
            known = self._template(names)
        count, template = known
        mono = b"%d" % self._now()
        head = (len(message_id), message_id, len(data), data, time.time_ns(), len(mono), mono)
        if extra:
            return count, template % (*head, *[part for value in extra.values() for part in (len(value), value)])
        return count, template % head

    def item(self, message_id: bytes, data: bytes, extra: Fields = NO_FIELDS) -> tuple[int, bytes]:
        """One record as arguments of the append script: their number, and the packed arguments."""
        count, fields = self.fields(message_id, data, extra)
        claim = self.claim
        return count + 3, b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%d\r\n%b" % (
            len(message_id),
            message_id,
            len(claim),
            claim,
            2 if count < 100 else 3,
            count,
            fields,
        )

    def request(self, message_id: bytes, data: bytes, extra: Fields = NO_FIELDS) -> bytes:
        """One record as a whole XADD request, without deduplication."""
        count, fields = self.fields(message_id, data, extra)
        stream = self.stream.encode()
        return b"*%d\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n%b" % (count + 3, len(stream), stream, fields)

    def _template(self, names: tuple[bytes, ...]) -> tuple[int, bytes]:
        """What is constant for a set of extra fields, with a place for each value that varies."""
        value = b"$%d\r\n%b\r\n"
        template = self._constant.replace(b"%", b"%%")
        # 19 digits: nanoseconds of the wall clock from 2001 to 2286
        template += b"$2\r\nid\r\n" + value + b"$4\r\ndata\r\n" + value
        template += b"$4\r\ntime\r\n$19\r\n%019d\r\n$4\r\nmono\r\n" + value
        template += b"".join(bulk(name) + value for name in names)
        known = (self._count + 2 * len(names), template)
        if len(self._templates) < MAX_TEMPLATES:
            self._templates[names] = known
        return known


def claim_of(priority: int | None, recipient: str | None, source: str) -> bytes:
    """What the id window remembers beside an id; see Route."""
    return f"|{priority or ''}|{recipient or ''}|{source}".encode()


def record_item(record: Record) -> tuple[int, bytes]:
    """A complete record as arguments of the append script, nothing stamped or changed."""
    fields = record.to_fields()
    if len(record.raw) > MAX_PAYLOAD_BYTES:
        raise RecordInvalid("data", f"has {len(record.raw)} bytes", limit=f"at most {MAX_PAYLOAD_BYTES} bytes")
    if len(fields) > 2 * MAX_FIELDS:
        raise RecordInvalid("record", f"has {len(fields) // 2} fields", limit=f"at most {MAX_FIELDS} fields")
    claim = claim_of(record.priority if record.recipient else None, record.recipient, record.source)
    head = bulk(record.id.encode()) + bulk(claim) + bulk(b"%d" % len(fields))
    return len(fields) + 3, head + b"".join(map(bulk, fields))


def payload(record_type: str, data: Any, content_type: str | None, extra: dict[bytes, bytes], compress_over: int | None,
            encoding: str) -> bytes:  # fmt: skip
    """Validate and encode a payload; adds ``content_type`` and ``encoding`` to ``extra`` where they apply.

    Raises RecordInvalid naming the field and the limit.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        body = bytes(data)
        extra[b"content_type"] = (content_type or "application/octet-stream").encode()
    else:
        body = prepare(record_type, data)
        if content_type is not None:
            extra[b"content_type"] = content_type.encode()
    if len(body) > MAX_PAYLOAD_BYTES:
        raise RecordInvalid("data", f"has {len(body)} bytes", limit=f"at most {MAX_PAYLOAD_BYTES} bytes")
    if compress_over is not None and len(body) > compress_over:
        extra[b"encoding"] = encoding.encode()
        return compress(body, encoding)
    return body
