"""JSON Schema of the record and of each typed payload, for programs in other languages."""

from __future__ import annotations

from typing import Any, Final

from petalbus.schemas.payloads import PAYLOADS
from petalbus.schemas.record import Record

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
RECORD: Final = "record"

_ON_THE_WIRE: Final = (
    "One entry of a stream. On the wire every value is a byte string: numbers as decimal text, booleans as 1 or 0, "
    "text as UTF-8, data as it is. A field without a value is left out. Fields that are not named here are kept."
)

MEANINGS: Final = {
    "id": "Message id, chosen by the producer: the key of deduplication.",
    "type": "What kind of record it is: dotted words.",
    "source": "The app that made it.",
    "data": "The payload: JSON, or bytes of the kind that content_type names; at most 1 MiB unpacked.",
    "recipient": "The app whose inbox it goes to; absent on topics.",
    "priority": "1 low, 2 normal, 3 high, 4 critical.",
    "reply_to": "Id of the record that this one answers.",
    "kind": "What a reply says of it.",
    "wants_reply": "The sender waits for a reply.",
    "deadline": "Not to be run after this time: boot-clock ns beside boot_id, wall-clock ns without it.",
    "time": "Wall-clock ns since 1970 at the source; for people, never for order.",
    "boot_id": "First 12 hex digits of the boot id that mono and deadline belong to.",
    "mono": "Boot-clock ns (CLOCK_BOOTTIME) at the source.",
    "key": "Ordering key: records with the same key are handled one after the other.",
    "content_type": "Media type of data; absent: application/json.",
    "encoding": "How data is compressed: zlib or zstd; absent: not at all.",
    "schema": "Version of this contract.",
    "traceparent": "W3C trace context.",
}
"""What each field of a record says, with its unit."""


def json_schemas() -> dict[str, dict[str, Any]]:
    """All schemas by name: ``record``, and ``payload.<type>`` for each typed payload. The caller may change them."""
    schemas = {RECORD: _record_schema()}
    for record_type, model in PAYLOADS.items():
        schemas[f"payload.{record_type}"] = _headed(model.model_json_schema(), f"payload.{record_type}")
    return schemas


def _record_schema() -> dict[str, Any]:
    schema = Record.model_json_schema(by_alias=True)
    properties: dict[str, Any] = schema["properties"]
    del properties["stream_id"]  # where a record lies is not a part of it
    for name, described in properties.items():
        properties[name] = {"description": MEANINGS[name]} | _never_null(described)
    schema["description"] = _ON_THE_WIRE
    schema["required"] = ["id", "type", "source", "data"]
    del properties["data"]["default"]
    return _headed(schema, RECORD)


def _never_null(described: dict[str, Any]) -> dict[str, Any]:
    """What the model holds as None is absent on the wire."""
    choices = [choice for choice in described.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) != 1:
        return described
    rest = {name: value for name, value in described.items() if name not in ("anyOf", "default")}
    return {**choices[0], **rest}


def _headed(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": f"urn:petalbus:schema:{name}:1"} | schema
