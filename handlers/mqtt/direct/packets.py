"""Packets of MQTT 5 and 3.1.1, made and read with gmqtt's encoders and property tables.

The only module that knows gmqtt. Its ``Client`` is not used: it does not hand on the broker's reason codes, logs and
skips a packet it cannot read, and what it connects again by itself loses messages.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gmqtt import Message, Subscription  # type: ignore[import-untyped]  # gmqtt has no types
from gmqtt.mqtt.constants import MQTTCommands  # type: ignore[import-untyped]  # the same
from gmqtt.mqtt.package import (  # type: ignore[import-untyped]  # the same
    CommandWithMidPacket,
    DisconnectPacket,
    LoginPackageFactor,
    PublishPacket,
    SimpleCommandPacket,
    SubscribePacket,
    UnsubscribePacket,
)
from gmqtt.mqtt.property import Property  # type: ignore[import-untyped]  # the same
from gmqtt.mqtt.utils import (  # type: ignore[import-untyped]  # the same
    IdGenerator,
    unpack_variable_byte_integer,
)

from petalbus.handlers.mqtt.direct.framing import MalformedPacket
from petalbus.handlers.mqtt.transport import Incoming, Outgoing

Properties = dict[str, list[Any]]

_LONGEST_EXPIRY: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Connack:
    """The broker's answer to our greeting; ``code`` 0 lets us in."""

    session_present: bool
    code: int
    properties: Properties = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """What the broker announced under a name, or what holds when it said nothing."""
        return int(self.properties.get(name, [default])[0])


@dataclass(frozen=True, slots=True)
class Publish:
    """A message, and the id under which it is to be acknowledged (None: it is not)."""

    message: Incoming
    mid: int | None


@dataclass(frozen=True, slots=True)
class Ack:
    """PUBACK, SUBACK or UNSUBACK: a reason code for each thing asked for."""

    mid: int
    codes: tuple[int, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """DISCONNECT of MQTT 5: why the broker ends the connection."""

    code: int
    text: str = ""


Packet = Connack | Publish | Ack | Pong | Goodbye


class Codec:
    """The packets of one connection and their ids. A new connection begins with a new one, so no id can leak."""

    proto_name = b"MQTT"

    def __init__(self, version: Literal["5", "3.1.1"]) -> None:
        self.proto_ver = 5 if version == "5" else 4
        self.id_generator = IdGenerator()

    @property
    def five(self) -> bool:
        """Whether MQTT 5 is spoken."""
        return self.proto_ver == 5

    def connect(
        self,
        client_id: str,
        *,
        username: str | None,
        password: str | None,
        keepalive: int,
        session_expiry: int,
        receive_maximum: int,
    ) -> bytes:
        """The greeting. The session of an earlier connection is continued."""
        more = {"session_expiry_interval": session_expiry, "receive_maximum": receive_maximum} if self.five else {}
        name = None if username is None else username.encode()
        secret = None if password is None else password.encode()
        clean = False
        # gmqtt counts characters where bytes are meant: everything is handed over as bytes
        made = LoginPackageFactor.build_package(client_id.encode(), name, secret, clean, keepalive, self, **more)
        return bytes(made)

    def publish(self, message: Outgoing) -> tuple[int | None, bytes]:
        """A message and its id (None for quality 0). Raises ValueError for what MQTT cannot say."""
        more: dict[str, Any] = {}
        if self.five:
            more["user_property"] = [("id", message.id)]
            if message.expiry is not None:
                more["message_expiry_interval"] = max(1, min(_LONGEST_EXPIRY, math.ceil(message.expiry)))
        made = Message(message.topic.encode(), message.payload, qos=message.qos, retain=message.retain, **more)
        try:
            mid, packet = PublishPacket.build_package(made, self)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"it does not fit into an MQTT packet: {error}") from error
        return mid, bytes(packet)

    def subscribe(self, filters: Iterable[tuple[str, int]], *, retained: bool = True) -> tuple[int, bytes]:
        """Ask for filters with their quality; ``retained`` False: no retained messages for one we had already."""
        handling = 0 if retained or not self.five else 1
        asked = [Subscription(name, qos=qos, retain_handling_options=handling) for name, qos in filters]
        mid, packet = SubscribePacket.build_package(asked, self)
        return mid, bytes(packet)

    def unsubscribe(self, filters: Sequence[str]) -> tuple[int, bytes]:
        """Give filters up."""
        mid, packet = UnsubscribePacket.build_package([name.encode() for name in filters], self)
        return mid, bytes(packet)

    def puback(self, mid: int) -> bytes:
        """We have the broker's message of this id."""
        return bytes(CommandWithMidPacket.build_package(MQTTCommands.PUBACK, mid, 0, proto_ver=self.proto_ver))

    def ping(self) -> bytes:
        """Are you there?"""
        return bytes(SimpleCommandPacket.build_package(MQTTCommands.PINGREQ))

    def disconnect(self, code: int = 0) -> bytes:
        """The orderly end."""
        return bytes(DisconnectPacket.build_package(self, reason_code=code))

    def free(self, mid: int) -> None:
        """The broker has answered: the id may be used again."""
        self.id_generator.free_id(mid)

    def read(self, first: int, body: bytes) -> Packet:
        """What a packet says. Raises MalformedPacket."""
        try:
            return self._read(first, body)
        except (struct.error, IndexError, ValueError) as error:
            raise MalformedPacket(f"a packet of type {first >> 4} cannot be read: {error}") from error

    def _read(self, first: int, body: bytes) -> Packet:
        kind = first & 0xF0
        if kind == MQTTCommands.PUBLISH:
            return self._publish(first, body)
        if kind == MQTTCommands.PUBACK:
            return self._puback(body)
        if kind in (MQTTCommands.SUBACK, MQTTCommands.UNSUBACK):
            (mid,) = struct.unpack_from("!H", body)
            properties, rest = self._properties(body[2:])
            return Ack(mid, tuple(rest), _reason(properties))
        if kind == MQTTCommands.PINGRESP:
            return Pong()
        if kind == MQTTCommands.CONNACK:
            present, code = struct.unpack_from("!BB", body)
            properties = self._properties(body[2:])[0] if len(body) > 2 else {}
            return Connack(bool(present & 1), code, properties)
        if kind == MQTTCommands.DISCONNECT:
            properties = self._properties(body[1:])[0] if len(body) > 1 else {}
            return Goodbye(body[0] if body else 0, _reason(properties))
        raise MalformedPacket(f"a packet of type {first >> 4} is not for us")

    def _publish(self, first: int, body: bytes) -> Publish:
        (length,) = struct.unpack_from("!H", body)
        topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
        qos = (first >> 1) & 3
        if not topic or qos > 1:
            raise MalformedPacket(
                f"a message on topic {topic!r} with quality of service {qos}: none such was asked for"
            )
        mid = None
        if qos:
            (mid,) = struct.unpack_from("!H", rest)
            rest = rest[2:]
        properties, payload = self._properties(rest)
        text = {str(name): str(value) for name, value in properties.get("user_property", [])}
        retain, again = bool(first & 1), bool(first & 8)
        left = properties.get("message_expiry_interval")
        expiry = float(left[0]) if left else None
        return Publish(Incoming(topic, payload, qos, retain, again, text, expiry), mid)

    def _puback(self, body: bytes) -> Ack:
        (mid,) = struct.unpack_from("!H", body)
        properties = self._properties(body[3:])[0] if len(body) > 3 else {}
        return Ack(mid, (body[2] if len(body) > 2 else 0,), _reason(properties))

    def _properties(self, body: bytes) -> tuple[Properties, bytes]:
        """The properties at the beginning of ``body``, and what follows them."""
        if not self.five:
            return {}, body
        length, rest = unpack_variable_byte_integer(body)
        if len(rest) < length:
            raise MalformedPacket(f"its properties should have {length} bytes and have {len(rest)}")
        block, rest = rest[:length], rest[length:]
        found: Properties = {}
        while block:
            known = Property.factory(id_=block[0])
            if known is None:
                raise MalformedPacket(f"there is no property {block[0]}")
            values, block = known.loads(block[1:])
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        return found, rest


def _reason(properties: Properties) -> str:
    return str(properties.get("reason_string", [""])[0])
