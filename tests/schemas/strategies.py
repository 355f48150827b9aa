"""Records and foreign messages for the property tests: everything that the contract allows, odd things included."""

from __future__ import annotations

import string
from typing import Any

import orjson
from hypothesis import strategies as st

from petalbus.schemas import Priority, Record, ReplyKind

VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F))
NAME_CHARS = string.ascii_letters + string.digits + "_.@/-"

ids = st.text(VISIBLE, min_size=1, max_size=128)
apps = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from(string.ascii_letters + string.digits),
    st.text(NAME_CHARS, max_size=20),
)
types = st.sampled_from(
    ["command", "telemetry", "mavlink.ATTITUDE", "mqtt.command", "mqtt.web", "mqtt.response", "mqtt.ack", "a/b-c.d_1"]
)
text = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
# members that the foreign forms use themselves must survive inside of a payload too
telling_keys = st.sampled_from(
    ["command", "messageId", "timestamp", "phase", "petalbus", "waitResponse", "status", "payload", "data", "deviceId"]
)
json_objects = st.dictionaries(text | telling_keys, json_values, max_size=4)


@st.composite
def json_bytes(draw: st.DrawFn, values: st.SearchStrategy[Any] = json_values) -> bytes:
    value = draw(values)
    compact = orjson.dumps(value)
    return draw(st.sampled_from([compact, orjson.dumps(value, option=orjson.OPT_INDENT_2), b" " + compact + b"\n"]))


unknown_names = (
    st.sampled_from(["subject", "foo", "foo2", "x-y", "Timeout", "timeout", "topic", "body", "extra", "specversion"])
    | st.sampled_from(["dataschema", "petalbus", "pbpriority", "pbform", "ü", "kept.other"])
    | st.sampled_from(["kept.mqtt", "kept.communication", "kept.cloudevents"])
    | st.text(st.characters(codec="utf-8"), min_size=1, max_size=25)
)
KNOWN = {field.alias or name for name, field in Record.model_fields.items()} | {"schema_version", "raw"}
kept_like = st.sampled_from(
    [
        b'{"set":{"timeout":1.5}}',
        b'{"set":{"foo":7},"drop":["time"]}',
        b'{"set":{"timestamp":"x"}}',
        b'{"set":{"messageId":"other"}}',
        b'{"drop":["id"]}',
        b'{"set":{"pbform":"none"}}',
        b'{"set":{"pbform":"text"}}',
        b'{"set":{"datacontenttype":5}}',
        b"{}",
        b"[]",
        b'{"set": {"a": 1}}',
    ]
)
unknown_fields = st.dictionaries(
    unknown_names.filter(lambda name: name not in KNOWN),
    st.binary(max_size=12) | text.map(str.encode) | kept_like,
    max_size=4,
)

STAMP = st.integers(0, 2**63 - 1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    fields: dict[str, Any] = {
        "id": draw(ids),
        "type": draw(types | st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)),
        "source": draw(apps),
        "priority": draw(st.sampled_from(Priority)),
    }
    binary = draw(st.booleans())
    if binary:
        fields["data"] = draw(st.binary(max_size=30) | text.map(str.encode))
        fields["content_type"] = draw(st.sampled_from(["application/octet-stream", "text/plain", "image/svg+xml"]))
    else:
        fields["data"] = draw(json_bytes(json_values | json_objects))
        fields["content_type"] = draw(st.sampled_from([None, None, "application/json"]))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "recipient": apps,
        "reply_to": ids,
        "kind": st.sampled_from(ReplyKind),
        "wants_reply": st.booleans(),
        "deadline": STAMP,
        "time": STAMP,
        "boot_id": st.text("0123456789abcdef", min_size=12, max_size=12),
        "mono": STAMP,
        "key": st.text(st.characters(codec="utf-8"), max_size=20),
        "schema": st.integers(1, 9),
        "traceparent": st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    }
    for name, strategy in optional.items():
        if draw(st.booleans()):
            fields[name] = draw(strategy)
    return Record.checked({name: value for name, value in (fields | draw(unknown_fields)).items() if value is not None})
