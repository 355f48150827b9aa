"""The JSON Schemas say what the models check."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from petalbus.schemas import Record
from petalbus.schemas.export import DIALECT, MEANINGS, json_schemas
from petalbus.schemas.payloads import PAYLOADS

SCHEMAS = json_schemas()
FIELDS = {(field.alias or name) for name, field in Record.model_fields.items()} - {"stream_id"}
PAGE = Path(__file__).parents[2] / "docs" / "records.md"


def test_there_is_a_schema_for_the_record_and_for_each_typed_payload() -> None:
    assert set(SCHEMAS) == {"record"} | {f"payload.{record_type}" for record_type in PAYLOADS}
    assert len({schema["$id"] for schema in SCHEMAS.values()}) == len(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_json_stands_alone_and_allows_unknown_members(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema["$schema"] == DIALECT
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is True
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(schema)):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    for pattern in patterns(schema):
        re.compile(pattern)


def patterns(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        return own + [found for value in part.values() for found in patterns(value)]
    return [found for value in part for found in patterns(value)] if isinstance(part, list) else []


def test_the_record_schema_names_every_field_of_the_wire_with_its_meaning() -> None:
    properties = SCHEMAS["record"]["properties"]
    assert set(properties) == FIELDS == set(MEANINGS)
    assert SCHEMAS["record"]["required"] == ["id", "type", "source", "data"]
    assert all(described["description"] == MEANINGS[name] for name, described in properties.items())
    assert '"null"' not in json.dumps(properties)
    assert properties["deadline"]["minimum"] == 0
    assert properties["deadline"]["maximum"] == 2**63 - 1


def test_the_payload_schemas_have_the_limits_that_the_checks_have() -> None:
    assert SCHEMAS["payload.command"]["required"] == ["command"]
    assert SCHEMAS["payload.telemetry"]["$defs"]["Coordinates"]["properties"]["lat"]["maximum"] == 90
    assert SCHEMAS["payload.alert"]["required"] == ["severity", "message"]


def test_a_caller_may_change_what_it_got() -> None:
    json_schemas()["record"]["properties"].clear()
    assert json_schemas()["record"]["properties"]


def test_the_page_about_records_has_a_row_for_every_field_and_every_typed_payload() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) >= FIELDS | set(PAYLOADS)
