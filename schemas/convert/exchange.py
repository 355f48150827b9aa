"""How a conversion loses nothing.

A record and a foreign message overlap: each says things that the other has no place for. Both have room for fields they
do not know, so each side lends it: what only the message had is kept in one field of the record (``keeps``), what only
the record had travels in one member of the message (``carries``). What has to be kept or carried is never listed by
hand: it is the difference between the original and what the plain translation there and back would give.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.record import Record

JsonObject = dict[str, Any]
WireFields = dict[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One foreign form: its plain translation both ways, and where the rest goes.

    ``read`` gives the record's wire fields that a message stands for and ignores members it does not know; it raises
    RecordInvalid. ``write`` must take every record. ``apart`` names wire fields that are handled outside of it.
    ``blamed`` translates wire names into the message's, for errors.
    """

    keeps: str
    carries: str
    read: Callable[[JsonObject], WireFields]
    write: Callable[[Record], JsonObject]
    blamed: Mapping[str, str]
    carried_as_text: bool = False
    apart: frozenset[str] = frozenset()

    def to_record(self, message: JsonObject, given: WireFields, *, carry: bool) -> Record:
        """Build the record; ``given`` are wire fields that the caller knows better. Raises RecordInvalid."""
        carried = self._carried(message) if carry else None
        body = {name: value for name, value in message.items() if name != self.carries or carried is None}
        fields = self.read(body)
        if carried is not None:
            _apply(fields, carried)
        fields |= given
        record = self._checked(fields)
        if self.keeps not in fields:
            again = self.from_record(record, carry=carried is not None)
            if carried is None:
                again = {name: value for name, value in again.items() if name != self.carries or name in message}
            kept = _difference(message, again)
            if kept:
                fields[self.keeps] = encode_json(kept, under=self.keeps, sort_keys=True)
                record = self._checked(fields)
        return record

    def from_record(
        self, record: Record, *, carry: bool, render: Callable[[JsonObject], JsonObject] | None = None
    ) -> JsonObject:
        """Build the message; without ``carry`` it says only what its own form can say.

        ``render`` puts the message's members into the shape of a transport that knows fewer kinds of values.
        """
        record = uncompressed(record)
        message = self.write(record)
        kept = self._kept(record, message)
        if kept is not None:
            _apply(message, kept)
        if render is not None:
            message = render(message)
        if not carry:
            return message
        wanted = {name: value for name, value in wire(record).items() if name not in self.apart}
        plain = self.read(message)
        hidden = {self.keeps} if kept is not None else set()
        carried = _difference({n: v for n, v in wanted.items() if n not in hidden}, plain)
        if carried:
            message[self.carries] = self._packed(carried)
        if kept is not None and not self._comes_back(message, wanted):
            carried.setdefault("set", {})[self.keeps] = wanted[self.keeps]
            message[self.carries] = self._packed(carried)
        return message

    def _comes_back(self, message: JsonObject, wanted: WireFields) -> bool:
        """Whether the message alone already leads back to the record, kept field included."""
        try:
            back = wire(self.to_record(message, dict.fromkeys(self.apart, b""), carry=True))
        except RecordInvalid:
            return False
        return {name: value for name, value in back.items() if name not in self.apart} == wanted

    def _checked(self, fields: WireFields) -> Record:
        try:
            return from_wire(fields)
        except RecordInvalid as error:
            name = self.blamed.get(error.field, error.field)
            raise RecordInvalid(name, error.problem, limit=error.limit) from None

    def _kept(self, record: Record, message: JsonObject) -> dict[str, Any] | None:
        """What the message had beyond the record, if the record's field says so and it makes sense."""
        stored = record.extra.get(self.keeps)
        if stored is None:
            return None
        try:
            kept = orjson.loads(stored)
        except (orjson.JSONDecodeError, TypeError):
            return None
        if not _is_change(kept):
            return None
        trial = dict(message)
        _apply(trial, kept)
        try:
            self.read(trial)
        except RecordInvalid:
            return None
        return dict(kept)

    def _packed(self, carried: dict[str, Any]) -> Any:
        packed = {part: _pack(carried[part]) if part == "set" else carried[part] for part in carried}
        return json.dumps(packed, separators=(",", ":"), sort_keys=True) if self.carried_as_text else packed

    def _carried(self, message: JsonObject) -> dict[str, Any] | None:
        packed = message.get(self.carries)
        if self.carried_as_text and isinstance(packed, str):
            try:
                packed = orjson.loads(packed)
            except orjson.JSONDecodeError:
                return None
        if not isinstance(packed, dict) or not _is_change(packed):
            return None
        try:
            unpacked = {part: _unpack(packed[part]) if part == "set" else packed[part] for part in packed}
        except (ValueError, TypeError, AttributeError, binascii.Error):
            return None
        return unpacked if self._packed(unpacked) == message[self.carries] else None


def wire(record: Record) -> WireFields:
    """The record's fields by wire name."""
    flat = record.to_fields()
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def from_wire(fields: WireFields) -> Record:
    """The record that has these fields; raises RecordInvalid."""
    return Record.from_fields([part for name, value in fields.items() for part in (name.encode(), value)])


def uncompressed(record: Record) -> Record:
    """The same record without compression: that belongs to the stream, not to what is said."""
    if record.encoding is None:
        return record
    fields = {name: value for name, value in wire(record).items() if name != "encoding"}
    return from_wire(fields | {"data": record.body})


def _difference(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> dict[str, Any]:
    """The change that makes ``wanted`` of ``have``: members to set, members to drop; empty where there is none."""
    change: dict[str, Any] = {}
    different = {name: v for name, v in wanted.items() if name not in have or not _same(name, v, have[name])}
    if different:
        change["set"] = different
    surplus = sorted(name for name in have if name not in wanted)
    if surplus:
        change["drop"] = surplus
    return change


def _same(name: str, one: Any, other: Any) -> bool:
    # as JSON, because in Python 1 == 1.0 == True
    if isinstance(one, bytes) or isinstance(other, bytes):
        return bool(one == other)
    return encode_json(one, under=name, sort_keys=True) == encode_json(other, under=name, sort_keys=True)


def _apply(target: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name in change.get("drop", ()):
        target.pop(name, None)
    target.update(change.get("set", {}))


def _is_change(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= {"set", "drop"}
        and isinstance(value.get("set", {}), dict)
        and isinstance(value.get("drop", []), list)
        and all(isinstance(name, str) for name in value.get("drop", []))
    )


def _pack(fields: Mapping[str, bytes]) -> JsonObject:
    return {name: _pack_value(value) for name, value in fields.items()}


def _pack_value(value: bytes) -> str | dict[str, str]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if text.isprintable() else {"base64": base64.b64encode(value).decode()}


def _unpack(packed: Mapping[str, Any]) -> WireFields:
    return {
        name: value.encode() if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)
        for name, value in packed.items()
    }
