"""The golden vectors, which every language's client reads and writes byte for byte.

The files in ``golden/`` are data, made once and never by these tests: when one of them fails, the wire has changed.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from petalbus.schemas import CompactEntry, CompactForm, Record, RecordInvalid
from petalbus.schemas.convert import CommunicationMessage, cloudevents, communication, mqtt
from petalbus.schemas.export import MEANINGS

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def vectors(name: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"].replace(" ", "-")) for vector in load(name)["vectors"]]


def wire(vector: dict[str, Any], member: str = "wire") -> list[bytes]:
    return [bytes.fromhex(text) for text in vector[member]]


def unhex(flat: list[str]) -> dict[bytes, bytes]:
    raw = [bytes.fromhex(text) for text in flat]
    return dict(zip(raw[::2], raw[1::2], strict=True))


def shown(value: bytes | str) -> Any:
    """A value as the vectors write it."""
    raw = value.encode() if isinstance(value, str) else value
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else {"base64": base64.b64encode(raw).decode()}


def seen(record: Record) -> dict[str, Any]:
    """What a reader sees of a record, in the vectors' terms: numbers, booleans, texts."""
    fields = {
        "id": record.id,
        "type": record.type,
        "source": record.source,
        "data": shown(record.raw),
        "recipient": record.recipient,
        "priority": int(record.priority),
        "reply_to": record.reply_to,
        "kind": record.kind and record.kind.value,
        "wants_reply": record.wants_reply or None,
        "deadline": record.deadline,
        "time": record.time,
        "boot_id": record.boot_id,
        "mono": record.mono,
        "key": record.key,
        "content_type": record.content_type,
        "encoding": record.encoding,
        "schema": record.schema_version if record.schema_version != 1 else None,
        "traceparent": record.traceparent,
    }
    assert set(fields) == set(MEANINGS)
    return {name: value for name, value in fields.items() if value is not None} | {
        name: shown(value) for name, value in record.extra.items()
    }


def built(expect: dict[str, Any]) -> Record:
    """The record that the vector describes, made from values, not from the wire."""
    return Record.checked({n: base64.b64decode(v["base64"]) if isinstance(v, dict) else v for n, v in expect.items()})


@pytest.mark.parametrize("vector", vectors("records"))
def test_a_record_is_read_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    record = Record.from_fields(wire(vector), stream_id="9-9")
    assert seen(record) == vector["expect"]
    assert record.to_fields() == wire(vector)
    assert built(vector["expect"]).to_fields() == wire(vector)


def test_the_vectors_use_every_field_of_the_contract() -> None:
    used = {name for vector in load("records")["vectors"] for name in vector["expect"]}
    assert set(MEANINGS) <= used


@pytest.mark.parametrize("vector", vectors("refused"))
def test_what_must_be_refused_is_refused_by_name(vector: dict[str, Any]) -> None:
    with pytest.raises(RecordInvalid) as caught:
        Record.from_fields(wire(vector))
    assert caught.value.field == vector["field"]


@pytest.mark.parametrize("vector", vectors("compact"))
def test_a_compact_entry_is_read_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    declared = unhex(load("compact")["form"])
    form = CompactForm.from_hash(declared)
    assert {name.encode(): value for name, value in form.to_hash().items()} == declared
    record = form.decode(vector["stream_id"], wire(vector, "entry"))
    assert record.to_fields() == wire(vector)
    assert seen(record) == vector["expect"]
    kind = unhex(vector["entry"])[b"k"].decode()
    assert list(CompactEntry(kind, record.mono or 0, record.raw).to_fields()) == wire(vector, "entry")


@pytest.mark.parametrize(("stream_id", "boot_id"), load("compact")["boots"]["expect"].items())
def test_a_compact_entry_is_of_the_boot_that_the_list_says(stream_id: str, boot_id: str | None) -> None:
    golden = load("compact")
    field, value = (bytes.fromhex(golden["boots"][name]) for name in ("field", "value"))
    form = CompactForm.from_hash({**unhex(golden["form"]), field: value})
    assert form.boot_at(stream_id) == boot_id


@pytest.mark.parametrize("vector", vectors("conversions"))
def test_a_record_becomes_each_message_byte_for_byte_and_comes_back(vector: dict[str, Any]) -> None:
    record = Record.from_fields(wire(vector))
    expected = dict(zip(wire(vector)[::2], wire(vector)[1::2], strict=True))
    headers, body = cloudevents.to_http(record)

    assert communication.from_record(record).to_json() == vector["communication"]
    assert mqtt.from_record(record) == vector["mqtt"]
    assert cloudevents.from_record(record) == vector["cloudevent"]
    assert (headers, body.hex()) == (vector["http"]["headers"], vector["http"]["body"])

    for back in (
        communication.to_record(CommunicationMessage.from_json(vector["communication"])),
        mqtt.to_record(vector["mqtt"]),
        cloudevents.to_record(vector["cloudevent"]),
        cloudevents.from_http(headers, body),
    ):
        flat = back.to_fields()
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == expected


@pytest.mark.parametrize("vector", vectors("foreign"))
def test_a_foreign_message_becomes_the_record_byte_for_byte_and_comes_back(vector: dict[str, Any]) -> None:
    message = vector["message"]
    if vector["form"] == "communication":
        record = communication.to_record(CommunicationMessage.from_dict(message))
        back = communication.from_record(record).to_dict()
    elif vector["form"] == "mqtt":
        record = mqtt.to_record(message)
        back = mqtt.from_record(record)
    else:
        assert vector["form"] == "cloudevent"
        record = cloudevents.to_record(message)
        back = cloudevents.from_record(record)
    assert record.to_fields() == wire(vector)
    assert seen(record) == vector["expect"]
    assert json.dumps(back, sort_keys=True) == json.dumps(message, sort_keys=True)
