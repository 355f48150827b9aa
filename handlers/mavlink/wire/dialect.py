"""One MAVLink dialect: message names and ids, packing, lazy decoding. Of pymavlink, only its generated classes.

A dialect is imported as the one module that it is; pymavlink's ``mavutil`` (blocking I/O, and a module global that the
first received byte switches) is never touched. Two links can speak two dialects side by side.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from math import isfinite
from typing import Any, Final, Protocol

from petalbus.handlers.mavlink.errors import DialectError
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame

DEFAULT_DIALECT: Final = "all"
"""Every message of pymavlink's dialects that do not contradict one another, PX4's and ArduPilot's among them."""

_PYMAVLINK: Final = "pymavlink.dialects.v20."
_SIZES: Final = {"int16_t": 2, "int32_t": 4, "int64_t": 8, "float": 4, "double": 8}


class MavMessage(Protocol):
    """What we use of a pymavlink message object."""

    def get_type(self) -> str:
        """The message's name, such as ``HEARTBEAT``."""

    def get_msgId(self) -> int:  # noqa: N802 - pymavlink's name
        """The message's id."""

    def pack(self, mav: Any, force_mavlink1: bool = False) -> bytes:  # noqa: FBT001, FBT002 - pymavlink's signature
        """The whole frame, with the sequence number and sender of ``mav``."""


class MessageDefinition:
    """One message of the dialect, ready for unpacking: which value of the wire belongs to which field."""

    __slots__ = ("crc_extra", "fields", "msgid", "name", "target_places", "unpacker")

    def __init__(self, message_class: Any) -> None:
        self.msgid: int = message_class.id
        self.name: str = message_class.msgname
        self.crc_extra: int = message_class.crc_extra
        self.unpacker: struct.Struct = message_class.unpacker
        self.fields: tuple[tuple[str, str, int, int], ...] = tuple(_field_plan(message_class))
        """(name, how to read, first value, one past the last value), in the order of the definition."""
        self.target_places: tuple[int | None, int | None] = _target_places(message_class)
        """Where in the payload the target system and the target component stand; None where there is none."""

    def unpack(self, payload: bytes, *, json_safe: bool = True) -> dict[str, Any]:
        """The fields by name. A cut payload is filled up with zeros, a longer one (a newer definition) cut.

        ``json_safe`` turns NaN and infinities, which mean "not known" in MAVLink and are no JSON, into None.
        """
        size = self.unpacker.size
        if len(payload) != size:
            payload = payload[:size].ljust(size, b"\0")
        values = self.unpacker.unpack(payload)
        result: dict[str, Any] = {}
        for name, how, start, end in self.fields:
            value: Any
            if how == "plain":
                value = values[start]
            elif how == "float":
                value = values[start]
                if json_safe and not isfinite(value):
                    value = None
            elif how == "text":
                value = values[start].partition(b"\0")[0].decode("utf-8", "backslashreplace")
            else:
                value = list(values[start:end])
                if how == "floats" and json_safe:
                    value = [item if isfinite(item) else None for item in value]
            result[name] = value
        return result


def _field_plan(message_class: Any) -> list[tuple[str, str, int, int]]:
    ordered: list[str] = message_class.ordered_fieldnames
    lengths: list[int] = message_class.lengths
    arrays: list[int] = message_class.array_lengths
    types: dict[str, str] = dict(zip(message_class.fieldnames, message_class.fieldtypes, strict=True))
    places: dict[str, tuple[str, str, int, int]] = {}
    start = 0
    for name, length, array_length in zip(ordered, lengths, arrays, strict=True):
        kind = types[name]
        is_float = kind in ("float", "double")
        if kind == "char":
            how, count = "text", 1
        elif array_length:
            how, count = ("floats" if is_float else "list"), length
        else:
            how, count = ("float" if is_float else "plain"), 1
        places[name] = (name, how, start, start + count)
        start += count
    return [places[name] for name in message_class.fieldnames]


def _target_places(message_class: Any) -> tuple[int | None, int | None]:
    types: dict[str, str] = dict(zip(message_class.fieldnames, message_class.fieldtypes, strict=True))
    places: dict[str, int] = {}
    place = 0
    for name, count in zip(message_class.ordered_fieldnames, message_class.array_lengths, strict=True):
        places[name] = place
        place += _SIZES.get(types[name].removeprefix("u"), 1) * max(count, 1)
    return places.get("target_system"), places.get("target_component")


class Dialect:
    """A dialect's messages. Make it with ``load_dialect``, which keeps one of each."""

    def __init__(self, name: str) -> None:
        """Import the dialect. Raises DialectError when there is no such module, or it is no MAVLink 2 dialect."""
        module_name = name if "." in name else _PYMAVLINK + name
        try:
            self.module: Any = import_module(module_name)
            classes: Mapping[int, Any] = self.module.mavlink_map
        except (ImportError, AttributeError) as error:
            raise DialectError(
                f"MAVLink dialect {name!r} cannot be loaded ({error}); name one of pymavlink's, such as all, common or "
                "ardupilotmega, or the dotted name of a module that pymavlink's mavgen wrote for MAVLink 2"
            ) from None
        self.name = name
        self._classes = classes
        self.names: dict[int, str] = {msgid: cls.msgname for msgid, cls in classes.items()}
        """Message id -> name."""
        self.ids: dict[str, int] = {message_name: msgid for msgid, message_name in self.names.items()}
        """Message name -> id."""
        self.crc_extras: dict[int, int] = {msgid: cls.crc_extra for msgid, cls in classes.items()}
        """What a framer needs to know."""
        self._definitions: dict[int, MessageDefinition] = {}

    def definition(self, msgid: int) -> MessageDefinition | None:
        """How to read a message; None when the dialect does not know it."""
        found = self._definitions.get(msgid)
        if found is None and msgid in self._classes:
            found = self._definitions[msgid] = MessageDefinition(self._classes[msgid])
        return found

    def target_places(self, msgid: int) -> tuple[int | None, int | None]:
        """Where in a message's payload its target system and component stand; None where it has none."""
        definition = self.definition(msgid)
        return (None, None) if definition is None else definition.target_places

    def decode(self, frame: Frame, *, json_safe: bool = True) -> dict[str, Any]:
        """The frame's fields by name, with ``mavpackettype`` (the message's name) and ``header`` before them.

        A message that the dialect does not know comes as ``UNKNOWN_<id>`` with its payload in hex.
        """
        definition = self.definition(frame.msgid)
        head: dict[str, Any] = {
            "mavpackettype": definition.name if definition else f"UNKNOWN_{frame.msgid}",
            "header": {
                "msgid": frame.msgid,
                "system": frame.sysid,
                "component": frame.compid,
                "seq": frame.seq,
                "version": frame.version,
                "signed": frame.signed,
            },
        }
        fields = (
            definition.unpack(frame.payload, json_safe=json_safe) if definition else {"payload": frame.payload.hex()}
        )
        return head | fields

    def fields(self, frame: Frame) -> dict[str, Any]:
        """The frame's fields alone, floats exactly as sent. Raises DialectError for an unknown message."""
        definition = self.definition(frame.msgid)
        if definition is None:
            raise DialectError(f"message {frame.msgid} is not in the dialect {self.name!r}")
        return definition.unpack(frame.payload, json_safe=False)

    def message(self, name: str, /, **fields: Any) -> MavMessage:
        """Make a message; fields not given are zero. Raises DialectError for an unknown message or field."""
        msgid = self.ids.get(name)
        if msgid is None:
            raise DialectError(f"message {name!r} is not in the dialect {self.name!r}")
        message_class = self._classes[msgid]
        unknown = fields.keys() - set(message_class.fieldnames)
        if unknown:
            raise DialectError(f"{name} has no field {sorted(unknown)}; it has {message_class.fieldnames}")
        values = {}
        for field_name, kind, length in zip(
            message_class.fieldnames, message_class.fieldtypes, _array_lengths(message_class), strict=True
        ):
            value = fields.get(field_name)
            if kind == "char":
                value = value.encode() if isinstance(value, str) else (value or b"")
            elif length:
                value = [*(value or ()), *([0] * length)][:length]
            values[field_name] = 0 if value is None else value
        message: MavMessage = message_class(**values)
        return message

    def enum_name(self, enum: str, value: int) -> str:
        """The name of an enumeration's value, such as ``MAV_RESULT_ACCEPTED``; ``<ENUM>_<value>`` when it has none."""
        entry = self.module.enums.get(enum, {}).get(value)
        return f"{enum}_{value}" if entry is None else str(entry.name)


def _array_lengths(message_class: Any) -> list[int]:
    in_wire_order = dict(zip(message_class.ordered_fieldnames, message_class.array_lengths, strict=True))
    return [in_wire_order[name] for name in message_class.fieldnames]


class Packer:
    """Makes frames as one system and component, with one running sequence number for all that it sends."""

    def __init__(self, dialect: Dialect, *, system: int, component: int, version: int = 2) -> None:
        """Send as ``system`` (1 to 255) and ``component``; ``version`` is 1 or 2. Raises ValueError."""
        if not 1 <= system <= 255 or not 1 <= component <= 255:
            raise ValueError(f"MAVLink sender {system}/{component}: system and component are 1 to 255")
        if version not in (1, 2):
            raise ValueError(f"MAVLink version {version}: it is 1 or 2")
        self.dialect = dialect
        self.system = system
        self.component = component
        self.version = version
        self._mav: Any = dialect.module.MAVLink(None, srcSystem=system, srcComponent=component)

    def pack(self, message: MavMessage) -> bytes:
        """The frame of ``message``. Raises struct.error or TypeError when a field does not fit its type."""
        frame = message.pack(self._mav, force_mavlink1=self.version == 1)
        self._mav.seq = (self._mav.seq + 1) & 0xFF
        return frame

    def pack_payload(self, msgid: int, payload: bytes) -> bytes:
        """The frame around a payload made elsewhere, byte for byte (parameter values must not pass through a float)."""
        frame = build_frame(
            msgid,
            payload,
            crc_extra=self.dialect.crc_extras[msgid],
            sysid=self.system,
            compid=self.component,
            seq=self._mav.seq,
            version=self.version,
        )
        self._mav.seq = (self._mav.seq + 1) & 0xFF
        return frame

    def repack(self, frame: Frame) -> bytes:
        """A checked frame of somebody else's as one of ours; a message that the dialect does not know passes, too.

        Raises ValueError when it does not fit MAVLink 1 and that is the version.
        """
        definition = self.dialect.definition(frame.msgid)
        payload = frame.payload
        if self.version == 1:
            if definition is None or frame.msgid > 255:
                raise ValueError(f"message {frame.msgid} cannot leave as MAVLink 1")
            payload = payload.ljust(definition.unpacker.size, b"\0")
        data = build_frame(
            frame.msgid,
            payload,
            crc_extra=frame.crc_extra if definition is None else definition.crc_extra,
            sysid=self.system,
            compid=self.component,
            seq=self._mav.seq,
            version=self.version,
        )
        self._mav.seq = (self._mav.seq + 1) & 0xFF
        return data


@cache
def load_dialect(name: str = DEFAULT_DIALECT) -> Dialect:
    """The dialect ``name``: one of pymavlink's, or the dotted name of a generated module. Raises DialectError."""
    return Dialect(name)
