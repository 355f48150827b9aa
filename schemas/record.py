"""One record: the typed, flat entry of a stream, shared by all languages.

On the wire a record is a flat list of field names and values. The required ones are ``id``, ``type``, ``source`` and
``data``; a reader keeps every field it does not know. ``Record`` is that contract as a pydantic model: it validates
once, and decodes the payload only when somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from petalbus.schemas.compression import decompress
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import BOOT_ID, short_boot_id
from petalbus.schemas.vocabulary import (
    APP_PATTERN,
    ID_PATTERN,
    MAX_FIELD_NAME_BYTES,
    MAX_FIELDS,
    MAX_PAYLOAD_BYTES,
    MAX_STAMP,
    MAX_UNKNOWN_BYTES,
    TYPE_PATTERN,
    Priority,
    ReplyKind,
)

JSON_TYPE: Final = "application/json"
_PAYLOAD_LIMIT: Final = f"at most {MAX_PAYLOAD_BYTES} bytes"
_PRIORITIES: Final = {b"%d" % level: level for level in Priority}
_KINDS: Final = {kind.value.encode(): kind for kind in ReplyKind}
_FIELD_NAMES: dict[tuple[bytes, ...], tuple[str, ...]] = {}
_MAX_CACHED_SHAPES: Final = 1024


def _word(value: bytes) -> str:
    return value.decode("ascii", "replace")


class Record(BaseModel):
    """A record of the bus. Times: ``time`` is wall-clock ns, ``mono`` and ``deadline`` are boot-clock ns.

    ``deadline`` means something only beside the ``boot_id`` it was stamped with; without a ``boot_id`` (a program that
    cannot read its boot clock) it is wall-clock ns and the bus translates it when it adopts the record.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True, ignored_types=(cached_property,))

    id: Annotated[str, Field(pattern=ID_PATTERN)]
    type: Annotated[str, Field(pattern=TYPE_PATTERN)]
    source: Annotated[str, Field(pattern=APP_PATTERN)]
    raw: Annotated[bytes, Field(alias="data")] = b"{}"
    recipient: Annotated[str, Field(pattern=APP_PATTERN)] | None = None
    priority: Priority = Priority.NORMAL
    reply_to: Annotated[str, Field(pattern=ID_PATTERN)] | None = None
    kind: ReplyKind | None = None
    wants_reply: bool = False
    deadline: Annotated[int, Field(ge=0, le=MAX_STAMP)] | None = None
    time: Annotated[int, Field(ge=0, le=MAX_STAMP)] | None = None
    boot_id: Annotated[str, Field(max_length=36)] | None = None
    mono: Annotated[int, Field(ge=0, le=MAX_STAMP)] | None = None
    key: Annotated[str, Field(max_length=128)] | None = None
    content_type: Annotated[str, Field(max_length=128)] | None = None
    encoding: Annotated[str, Field(max_length=16)] | None = None
    schema_version: Annotated[int, Field(alias="schema", ge=1)] = 1
    traceparent: Annotated[str, Field(max_length=128)] | None = None

    stream_id: Annotated[str | None, Field(exclude=True)] = None
    """Where the record lies in its stream; set when it was read, never written."""

    @cached_property
    def data(self) -> Any:
        """The payload: the decoded JSON value, or bytes where ``content_type`` names something else.

        Raises RecordInvalid when the bytes are not what ``content_type`` and ``encoding`` say.
        """
        body = self.body
        if self.content_type is not None and self.content_type != JSON_TYPE:
            return body
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RecordInvalid(
                "data", f"is not JSON: {error}", limit="a JSON value, or another content_type"
            ) from None

    @cached_property
    def body(self) -> bytes:
        """The payload's bytes with any compression undone; raises RecordInvalid."""
        return self.raw if self.encoding is None else decompress(self.raw, self.encoding)

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that this version of the contract does not know, as they came."""
        return self.__pydantic_extra__ or {}

    def expired(self, now_ns: int, boot_id: str = BOOT_ID) -> bool:
        """True when the deadline has passed at boot-clock ``now_ns`` of boot ``boot_id``, or is of an earlier boot.

        A command from before a power cycle must not run after it, and its age cannot be known: it counts as expired.
        """
        if self.deadline is None:
            return False
        if self.boot_id != boot_id and (self.boot_id is None or short_boot_id(self.boot_id) != boot_id):
            return True  # a program in another language may write the kernel's full boot id: the same boot
        return now_ns >= self.deadline

    def to_fields(self) -> list[bytes]:
        """The flat list ``name, value, name, value`` for XADD; None and defaults are left out."""
        fields: list[bytes] = []
        stored = self.__dict__
        for name, wire_name in _WIRE_NAMES.items():
            value = stored[name]
            if value is not None and value != _DEFAULTS.get(name, _REQUIRED):
                fields += (wire_name, _wire(value))
        for name, value in self.extra.items():
            fields += (name.encode(), _wire(value))
        return fields

    @classmethod
    def from_fields(cls, fields: Sequence[bytes], *, stream_id: str | None = None) -> Record:
        """Validate one stream entry. Raises RecordInvalid naming the field and the limit."""
        names = tuple(fields[::2])
        if len(names) > MAX_FIELDS:
            raise RecordInvalid("record", f"has {len(names)} fields", limit=f"at most {MAX_FIELDS} fields")
        shape = _FIELD_NAMES.get(names)
        if shape is None:
            shape = _remember_shape(names)
        if len(fields) % 2:
            raise RecordInvalid("record", f"has {len(fields)} names and values", limit="a value for each name")
        values: dict[str, Any] = dict(zip(shape, fields[1::2], strict=True))
        values["stream_id"] = stream_id
        # pydantic takes bytes for text and numbers, but not for an enumeration
        priority = values.get("priority")
        if priority is not None:
            values["priority"] = _PRIORITIES.get(priority) or _word(priority)
        kind = values.get("kind")
        if kind is not None:
            values["kind"] = _KINDS.get(kind) or _word(kind)
        return cls.checked(values)

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Record:
        """Validate a mapping of wire names; raises RecordInvalid instead of pydantic's error."""
        try:
            record: Record = cls.__pydantic_validator__.validate_python(values)
        except ValidationError as error:
            raise invalid(error) from None
        if len(record.raw) > MAX_PAYLOAD_BYTES:
            raise RecordInvalid("data", f"has {len(record.raw)} bytes", limit=_PAYLOAD_LIMIT)
        if record.__pydantic_extra__:
            _check_unknown(record.__pydantic_extra__)
        return record


_REQUIRED: Final = object()
_WIRE_NAMES: Final = {
    name: (field.alias or name).encode() for name, field in Record.model_fields.items() if name != "stream_id"
}
_RESERVED: Final = {
    "stream_id": "is set by the bus and cannot be written",
    "raw": "is not a field of a record; the payload is data",
    "schema_version": "is not a field of a record; the version is schema",
}
"""Names that the model would take for its own attributes."""

_DEFAULTS: Final = {
    name: field.default
    for name, field in Record.model_fields.items()
    if not field.is_required() and name not in ("raw", "priority")
}


def _wire(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"1" if value else b"0"
    return str(int(value) if isinstance(value, Priority) else value).encode()


def _check_unknown(extra: dict[str, Any]) -> None:
    total = 0
    for name, value in extra.items():
        total += len(name) + (len(value) if isinstance(value, bytes | str) else 0)
        if total > MAX_UNKNOWN_BYTES:
            limit = f"at most {MAX_UNKNOWN_BYTES} bytes of unknown fields"
            raise RecordInvalid(name[:MAX_FIELD_NAME_BYTES], "makes the record too large", limit=limit)


def _remember_shape(names: tuple[bytes, ...]) -> tuple[str, ...]:
    try:
        shape = tuple(name.decode() for name in names)
    except UnicodeDecodeError as error:
        raise RecordInvalid(repr(error.object)[:99], "is no field name", limit="UTF-8") from None
    for name in shape:
        if len(name) > MAX_FIELD_NAME_BYTES:
            raise RecordInvalid(name[:40] + "...", "is too long a name", limit=f"at most {MAX_FIELD_NAME_BYTES} bytes")
        if name in _RESERVED:
            raise RecordInvalid(name, _RESERVED[name])
        if shape.count(name) > 1:
            raise RecordInvalid(name, "is there more than once", limit="each field once")
    if len(_FIELD_NAMES) < _MAX_CACHED_SHAPES:
        _FIELD_NAMES[names] = shape
    return shape


def invalid(error: ValidationError, *, under: str = "") -> RecordInvalid:
    """Turn pydantic's first complaint into the contract's error; ``under`` prefixes the field's path."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    field = f"{under}.{path}" if under and path else (under or path or "record")
    context = first.get("ctx") or {}
    named = (value if name == "expected" else f"{name} {value}" for name, value in context.items() if name != "error")
    limit = ", ".join(named) or None
    problem = "is missing" if first["type"] == "missing" else first["msg"][0].lower() + first["msg"][1:]
    return RecordInvalid(field, problem, limit=limit)
