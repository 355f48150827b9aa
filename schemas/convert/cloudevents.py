"""CloudEvents 1.0: structured JSON mode, HTTP binary mode, and the way to records and back.

``id``, ``source``, ``type``, ``time``, ``datacontenttype`` and the data are the record's own; ``traceparent`` and
``partitionkey`` (the record's ``key``) are extensions that CloudEvents documents; the record's other fields are
extension attributes that begin with ``pb``, their values always text, so that both modes say the same. A foreign
extension attribute whose value is text becomes a record field of the same name.

Ids: a CloudEvent's id is unique within its source, a record's id on the whole bus. The id is taken over as it is, so a
gateway for several foreign sources passes ``qualify=True``, which puts the source before the id.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote

from petalbus.schemas.convert.exchange import Exchange, JsonObject, WireFields
from petalbus.schemas.convert.names import bus_app, bus_id, bus_type, time_ns, time_text, utf8
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import decode_json, encode_json
from petalbus.schemas.record import JSON_TYPE, Record
from petalbus.schemas.vocabulary import Priority

MEDIA_TYPE: Final = "application/cloudevents+json"
"""Media type of the structured JSON mode."""

CARRIED: Final = "pbfields"
"""The extension attribute that carries, as JSON text, record fields that no attribute can hold."""

KEPT: Final = "kept.cloudevents"
"""The record field that keeps what only the event has."""

_EXACT_DATA: Final = "pbdata"  # base64 of JSON data whose bytes are not those that writing it again would give
_FORM: Final = "pbform"  # how the data of a structured event stood there, where it is not the usual way

_OURS: Final = {
    "recipient": "pbrecipient",
    "priority": "pbpriority",
    "reply_to": "pbreplyto",
    "kind": "pbkind",
    "wants_reply": "pbwantsreply",
    "deadline": "pbdeadline",
    "boot_id": "pbbootid",
    "mono": "pbmono",
    "schema": "pbschema",
    "key": "partitionkey",
    "traceparent": "traceparent",
}
_FOREIGN: Final = frozenset({"partitionkey", "traceparent"})
_CORE: Final = frozenset({"specversion", "id", "source", "type", "time", "datacontenttype", "data", "data_base64"})
_DATA_MEMBERS: Final = ("data", "data_base64")
_RECORD_NAMES: Final = frozenset((field.alias or name) for name, field in Record.model_fields.items()) | {
    "raw",
    "timeout",  # this one and the next direct a raw record on its way in: not for strangers to say
    "topic",
}
# What stands in a header value as it is: printable ASCII but space, double quote and percent.
_PLAIN_IN_HEADERS: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')

_ATTRIBUTE_NAME: Final = re.compile(r"[a-z0-9]+")
_EXTENSION_NAME: Final = re.compile(r"[a-z0-9]{1,20}")
_PLAIN_JSON: Final = re.compile(r"application/json\s*(?:;\s*charset=\"?utf-8\"?\s*)?", re.IGNORECASE)
_JSON_MEDIA: Final = re.compile(r"[^/;]+/(?:[^/;]+\+)?json\s*(?:;.*)?", re.IGNORECASE)
_TEXT_MEDIA: Final = re.compile(r"(?:text/[^/;]+|[^/;]+/(?:[^/;]+\+)?xml)\s*(?:;.*)?", re.IGNORECASE)


def to_record(
    event: JsonObject,
    *,
    recipient: str | None = None,
    qualify: bool = False,
    carry: bool = True,
) -> Record:
    """The record of a structured event (the decoded JSON object).

    ``recipient`` addresses it on the bus. ``carry=False`` is for senders that are not trusted to name record fields
    beyond the ``pb`` attributes. Raises RecordInvalid naming the attribute.
    """
    if not isinstance(event, dict):
        raise RecordInvalid("event", f"is {type(event).__name__}", limit="an object")
    attributes = {name: v for name, v in event.items() if v is not None and name not in (*_DATA_MEMBERS, _FORM)}
    body, form = _structured_body(event, attributes.get("datacontenttype"))
    exact = attributes.pop(_EXACT_DATA, None)
    if exact is not None:
        body = _exact_body(_decode_base64(exact, _EXACT_DATA), body)
    if form != _usual_form(attributes.get("datacontenttype"), body):
        attributes[_FORM] = form
    return _record(attributes, body, recipient=recipient, qualify=qualify, carry=carry)


def from_record(record: Record, *, carry: bool = True) -> JsonObject:
    """The structured event of a record; with ``carry``, ``to_record`` gives back an equal record.

    Raises RecordInvalid when the payload is not what its content type says.
    """
    body = record.body
    attributes = _EXCHANGE.from_record(record, carry=carry, render=lambda event: _with_form(event, body))
    form = attributes.pop(_FORM, None) or _usual_form(attributes.get("datacontenttype"), body)
    if form == "none":
        return attributes
    if form == "base64":
        return attributes | {"data_base64": base64.b64encode(body).decode()}
    if form == "text":
        return attributes | {"data": body.decode()}
    data = decode_json(body)
    if carry and encode_json(data) != body:
        attributes[_EXACT_DATA] = base64.b64encode(body).decode()
    return attributes | {"data": data}


def to_http(record: Record, *, carry: bool = True) -> tuple[dict[str, str], bytes]:
    """Binary mode: the headers (lower-case names) and the body. The body is the payload, byte for byte."""
    body = record.body
    attributes = _EXCHANGE.from_record(record, carry=carry, render=lambda event: _as_text(event, body))
    headers = {"content-type": attributes.pop("datacontenttype")}
    empty = attributes.pop(_FORM, None) is not None
    headers |= {f"ce-{name}": quote(value, safe=_PLAIN_IN_HEADERS) for name, value in attributes.items()}
    return headers, b"" if empty else body


def from_http(
    headers: Mapping[str, str],
    body: bytes,
    *,
    recipient: str | None = None,
    qualify: bool = False,
    carry: bool = True,
) -> Record:
    """The record of an HTTP request in binary mode; ``to_record`` says what the options mean.

    Raises RecordInvalid naming the attribute.
    """
    attributes: JsonObject = {}
    for header, value in headers.items():
        name = header.lower()
        if name == "content-type":
            attributes["datacontenttype"] = value
        elif name.startswith("ce-") and name[3:] != _FORM:
            attributes[name[3:]] = _unquoted(name, value)
    if not body and _empty_body(attributes.get("datacontenttype")):
        attributes[_FORM] = "none"
        body = b"{}"
    return _record(attributes, body, recipient=recipient, qualify=qualify, carry=carry)


def _with_form(attributes: JsonObject, body: bytes) -> JsonObject:
    """The attributes, without a note about the data's form that these data cannot have, or have anyway."""
    form, content_type = attributes.get(_FORM), attributes.get("datacontenttype")
    usual = _usual_form(content_type, body)
    fits = {"none": body == _empty_body(content_type), "base64": True, "text": usual != "json" and _is_text(body)}
    if form == usual or not (isinstance(form, str) and fits.get(form, False)):
        attributes.pop(_FORM, None)
    return attributes


def _as_text(attributes: JsonObject, body: bytes) -> JsonObject:
    """Attributes as headers can hold them: all text, the content type always there, no way of standing for the data."""
    form = attributes.pop(_FORM, None)
    texts = {name: _canonical(value) for name, value in attributes.items()}
    texts.setdefault("datacontenttype", JSON_TYPE)
    if form == "none" and body == _empty_body(texts["datacontenttype"]) != b"":
        texts[_FORM] = form  # stands for the empty body
    return texts


def _canonical(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _unquoted(header: str, value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise RecordInvalid(header, "is not UTF-8 behind its percent signs") from None


def _record(attributes: JsonObject, body: bytes, *, recipient: str | None, qualify: bool, carry: bool) -> Record:
    given: WireFields = {"data": body}
    if recipient is not None:
        given["recipient"] = recipient.encode()
    if qualify:
        _check(attributes)
        given["id"] = bus_id(f"{attributes['source']}#{attributes['id']}").encode()
    return _EXCHANGE.to_record(attributes, given, carry=carry)


def _check(attributes: JsonObject) -> None:
    if attributes.get("specversion") != "1.0":
        raise RecordInvalid("specversion", f"is {attributes.get('specversion')!r}", limit="'1.0'")
    for name in ("id", "source", "type"):
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            problem = "is not text, or empty" if name in attributes else "is missing"
            raise RecordInvalid(name, problem, limit="text of at least one character")
    for name, value in attributes.items():
        if _ATTRIBUTE_NAME.fullmatch(name) is None:
            raise RecordInvalid(name, "is no attribute's name", limit="lower-case letters and digits")
        if not isinstance(value, str | int):  # bool is an int
            raise RecordInvalid(name, f"is {type(value).__name__}", limit="text, an integer or a boolean")
    if not isinstance(attributes.get("datacontenttype", JSON_TYPE), str):
        raise RecordInvalid("datacontenttype", "is not text", limit="a media type")


def _read(attributes: JsonObject) -> WireFields:
    _check(attributes)
    fields: WireFields = {
        "id": bus_id(attributes["id"]).encode(),
        "source": bus_app(attributes["source"]).encode(),
        "type": bus_type(attributes["type"]).encode(),
        "priority": b"%d" % Priority.NORMAL,
    }
    sent = time_ns(attributes["time"]) if isinstance(attributes.get("time"), str) else None
    if sent is not None:
        fields["time"] = b"%d" % sent
    content_type = attributes.get("datacontenttype", JSON_TYPE)
    if _PLAIN_JSON.fullmatch(content_type) is None:
        fields["content_type"] = utf8(content_type, under="datacontenttype")
    for name, attribute in _OURS.items():
        value = attributes.get(attribute)
        if attribute in _FOREIGN and not (isinstance(value, str) and len(value) <= 128):
            continue  # somebody else's extension may say more than our field holds: then it is kept beside it
        if value is not None:
            fields[name] = utf8(str(int(value)) if isinstance(value, bool) else str(value), under=attribute)
    for name, value in attributes.items():
        if isinstance(value, str) and _becomes_field(name):
            fields[name] = utf8(value, under=name)
    return fields


def _write(record: Record) -> JsonObject:
    event: JsonObject = {"specversion": "1.0", "id": record.id, "source": record.source, "type": record.type}
    sent = time_text(record.time) if record.time is not None else None
    if sent is not None:
        event["time"] = sent
    event["datacontenttype"] = record.content_type if record.content_type is not None else JSON_TYPE
    flat = record.to_fields()
    for raw_name, raw_value in zip(flat[::2], flat[1::2], strict=True):
        name = raw_name.decode()
        if name not in _OURS and not _becomes_field(name):
            continue
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:
            continue
        if value.isprintable() and not (name == "priority" and record.priority is Priority.NORMAL):
            event[_OURS.get(name, name)] = value
    return event


def _becomes_field(name: str) -> bool:
    """Whether an extension attribute and a record field of this name are the same thing."""
    return (
        _EXTENSION_NAME.fullmatch(name) is not None
        and not name.startswith("pb")
        and name not in _CORE
        and name not in _RECORD_NAMES
        and name not in _OURS.values()
    )


def _structured_body(event: JsonObject, content_type: object) -> tuple[bytes, str]:
    """The payload's bytes and how they stood in the event."""
    if event.get("data_base64") is not None:
        if event.get("data") is not None:
            raise RecordInvalid("data_base64", "stands beside data", limit="one of the two")
        return _decode_base64(event["data_base64"], "data_base64"), "base64"
    if "data" not in event:
        return _empty_body(content_type), "none"
    if content_type is None or (isinstance(content_type, str) and _JSON_MEDIA.fullmatch(content_type)):
        return encode_json(event["data"]), "json"
    if not isinstance(event["data"], str):
        problem = f"is {type(event['data']).__name__} in {content_type!r}"
        raise RecordInvalid("data", problem, limit="text, or data_base64")
    return utf8(event["data"], under="data"), "text"


def _usual_form(content_type: object, body: bytes) -> str:
    media = content_type if isinstance(content_type, str) else JSON_TYPE
    if _JSON_MEDIA.fullmatch(media):
        return "json"
    if _TEXT_MEDIA.fullmatch(media) is None:
        return "base64"
    return "text" if _is_text(body) else "base64"


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _exact_body(exact: bytes, body: bytes) -> bytes:
    """The bytes as they were before somebody wrote the JSON anew; they must not say anything else."""
    if encode_json(decode_json(exact, under=_EXACT_DATA)) != body:
        raise RecordInvalid(_EXACT_DATA, "is not the same value as data", limit="base64 of the data's original bytes")
    return exact


def _empty_body(content_type: object) -> bytes:
    """The payload of an event without data."""
    return b"{}" if _usual_form(content_type, b"") == "json" else b""


def _decode_base64(value: object, name: str) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "!", validate=True)
    except ValueError:
        raise RecordInvalid(name, "is not base64", limit="base64 text") from None


_EXCHANGE: Final = Exchange(
    keeps=KEPT,
    carries=CARRIED,
    read=_read,
    write=_write,
    blamed={"content_type": "datacontenttype"} | _OURS,
    carried_as_text=True,
    apart=frozenset({"data"}),
)
