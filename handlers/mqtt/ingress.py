"""What the broker brings becomes a record before the broker hears that we have it.

transport -> received: a command, or anything else -> topic mqtt.rx
                       not what its topic stands for -> topic mqtt.invalid, and an error response where one can be given

A command's record bears its messageId, so the one that comes again after a crash is the same record.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import IdConflict
from petalbus.handlers.mqtt import words
from petalbus.schemas.convert.names import bus_id, content_id
from petalbus.schemas.errors import RecordInvalid

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mqtt.options import MqttOptions
    from petalbus.handlers.mqtt.transport import Incoming

log = logging.getLogger(__name__)

KEPT_BYTES: Final = 64 * 1024
"""Of a message that is invalid, so many bytes are kept."""

_MESSAGE_ID: Final = re.compile(rb'"messageId"\s*:\s*(?:"((?:[^"\\]|\\.){1,200})"|(\d{1,40}))')
_WAITS: Final = re.compile(rb'"waitResponse"\s*:\s*true')
_SANE_CLOCK: Final = 1_700_000_000
"""Seconds since 1970: a clock before it was never set, and tells no ages."""

Respond = Callable[[str, str, dict[str, Any]], Awaitable[None]]
"""``(device topic, messageId, response data)``: answer the sender of a command."""


class Ingress:
    """Stores what arrives. ``respond`` answers commands that cannot be taken."""

    def __init__(
        self,
        bus: Bus,
        options: MqttOptions,
        *,
        respond: Respond,
        for_us: Callable[[str], bool] = words.is_command_topic,
    ) -> None:
        """``for_us(topic)``: whether commands for this device arrive there."""
        self._for_us = for_us
        self._bus = bus
        self._options = options
        self._respond = respond
        self.stored = 0
        self.duplicates = 0
        self.invalid_messages = 0

    def statistics(self) -> dict[str, int]:
        """Messages stored, recognised as duplicates, and kept as invalid."""
        return {"stored": self.stored, "duplicates": self.duplicates, "invalid": self.invalid_messages}

    async def received(self, message: Incoming) -> None:
        """Store a message, valid or not; returns when that is done. Raises BusError when it is not stored."""
        if len(message.payload) > self._options.max_incoming:
            text = f"it has {len(message.payload)} bytes, more than {self._options.max_incoming} (mqtt_max_incoming)"
            await self.invalid(message.topic, message.payload, text)
            return
        is_command = self._for_us(message.topic)
        try:
            payload = _decoded(message.payload)
        except ValueError as error:
            if is_command:
                await self.invalid(message.topic, message.payload, f"it is no JSON: {error}")
                return
            payload = _as_text(message.payload)
        if is_command and (problem := self._problem(payload, retain=message.retain)) is not None:
            await self.invalid(message.topic, message.payload, problem)
            return
        data = {"topic": message.topic, "payload": payload, "qos": message.qos}
        if message.retain:
            data["retain"] = True
        if message.properties:
            data["properties"] = dict(message.properties)
        try:
            receipt = await self._bus.publish(
                words.TOPIC, words.MESSAGE, data, id=_record_id(message, payload, is_command=is_command)
            )
        except (RecordInvalid, IdConflict) as error:
            await self.invalid(message.topic, message.payload, str(error))
            return
        self.stored += not receipt.duplicate
        self.duplicates += receipt.duplicate

    async def invalid(self, topic: str, raw: bytes, reason: str) -> None:
        """Keep a message that is not what its topic stands for; its sender is answered where that is possible.

        Raises BusError when it is not stored.
        """
        self.invalid_messages += 1
        log.warning("a message on %s is kept in %s: %s", topic or "(no topic)", words.INVALID, reason)
        digest = hashlib.sha256(raw).hexdigest()
        kept = {"reason": reason, "topic": topic, "bytes": len(raw), "sha256": digest, **_beginning(raw)}
        await self._bus.publish(words.INVALID, words.INVALID, kept, id=f"{digest[:32]}@{words.INVALID}")
        device = words.device_of(topic)
        found = _MESSAGE_ID.search(raw[:KEPT_BYTES])
        if device is not None and self._for_us(topic) and found is not None:
            message_id = _text_of(found)
            if _WAITS.search(raw[:KEPT_BYTES]):
                await self._respond(device, message_id, words.refusal(f"not taken: {reason}", "INVALID_COMMAND"))

    def _problem(self, payload: Any, *, retain: bool) -> str | None:
        """Why this is no command; None when it is one."""
        if not isinstance(payload, dict):
            return "a command is a JSON object"
        command, message_id = payload.get("command"), payload.get("messageId")
        if not isinstance(command, str) or not command:
            return "a command needs the member command (text)"
        if isinstance(message_id, bool) or not isinstance(message_id, str | int) or message_id == "":
            return "a command needs the member messageId (text or a whole number)"
        if retain:
            return (
                "it is retained: the broker would bring it again at every connection; publish commands without retain"
            )
        most = self._options.command_max_age
        age = None if most is None else _age(payload.get("timestamp"))
        if most is not None and age is not None and age > most:
            text = "it waited too long, or the clocks differ"
            return f"by its timestamp it is {age:.0f} s old, more than {most:g} s (mqtt_command_max_age): {text}"
        return None


def _decoded(raw: bytes) -> Any:
    """The JSON value. Raises ValueError."""
    try:
        return orjson.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _record_id(message: Incoming, payload: Any, *, is_command: bool) -> str:
    """The id that makes a repetition recognisable: of the message where it has one, else of its arrival."""
    message_id = payload.get("messageId") if isinstance(payload, dict) else None
    if isinstance(message_id, bool) or not isinstance(message_id, str | int):
        return message.id
    if is_command:
        return bus_id(f"{message_id}@{words.TOPIC}")
    # one command has several answers: what they say tells them apart
    return content_id(str(message_id), words.TOPIC, content=message.topic.encode() + b"\0" + message.payload)


def _as_text(raw: bytes) -> Any:
    """What is no JSON, as JSON: text as it is, other bytes in base64."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def _beginning(raw: bytes) -> dict[str, str]:
    kept = raw[:KEPT_BYTES]
    try:
        return {"text": kept.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(kept).decode()}


def _text_of(found: re.Match[bytes]) -> str:
    if found[1] is None:
        return found[2].decode()
    try:
        return str(json.loads(b'"' + found[1] + b'"'))
    except ValueError:
        return found[1].decode(errors="replace")


def _age(timestamp: Any) -> float | None:
    """Seconds since a command was sent, by both wall clocks; None where that cannot be told."""
    now = time.time()
    if not isinstance(timestamp, str) or now < _SANE_CLOCK:
        return None
    try:
        sent = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    if sent.tzinfo is None:
        return None  # a local time of somebody's
    return now - sent.timestamp()
