"""What the broker brings becomes a record before the broker hears that we have it.

transport -> received: a command, or anything else -> topic mqtt.rx
                       not what its topic stands for -> topic mqtt.invalid, and an error response where one can be given

A command's record bears its messageId, so the one that comes again after a crash is the same record. Another command
under a used messageId is refused; one that must not wait runs nevertheless, under an id made of what it says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from petalbus.daemon.bus.errors import BusError, BusUnavailable, IdConflict
from petalbus.handlers.mqtt import words
from petalbus.schemas.convert.names import bus_id, content_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import boot_clock_ns
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.sender import Receipt
    from petalbus.handlers.mqtt.options import MqttOptions
    from petalbus.handlers.mqtt.transport import Incoming

log = logging.getLogger(__name__)

KEPT_BYTES: Final = 64 * 1024
"""Of a message that is invalid, so many bytes are kept."""

_MESSAGE_ID: Final = re.compile(rb'"messageId"\s*:\s*(?:"((?:[^"\\]|\\.){1,200})"|(\d{1,40}))')
_WAITS: Final = re.compile(rb'"waitResponse"\s*:\s*true')
_SANE_CLOCK: Final = 1_700_000_000
"""Seconds since 1970: a clock before it was never set, and tells no ages."""

_WAITED_S: Final = 0.05
"""What waited for longer before it could be stored has that in its record: it counts for its deadline."""

_STAMPS: Final = frozenset({"timestamp", "waitResponse", "waitAck", "retry", "retries", "attempt"})
"""Members that may differ where a sender repeats a command: none of them says what is to be done."""

_BODIES: Final = ("data", "payload")
"""Where a command's body is, in one of the two or in both."""

_SLOW_S: Final = 30.0
_FLOOD_S: Final = 60.0
"""Seconds after which a link that was established again brings nothing old any more, unless it is older than that."""


class Respond(Protocol):
    """Answers the sender of a command, once."""

    async def __call__(self, device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        """``device``: its topic. ``name``: what to recognise this answer by, where it is not the one and only answer
        to this messageId. Raises BusError, RecordInvalid.
        """


class _Reused(Exception):
    """Its messageId was another command's before. ``silent``: its sender is not told, who might take it for the answer
    to the first one.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        super().__init__(text)
        self.silent = silent


def _nobody(_message_id: str, _command: str) -> bool:
    return False


class Ingress:
    """Stores what arrives. ``respond`` answers commands that cannot be taken."""

    def __init__(
        self,
        bus: Bus,
        options: MqttOptions,
        *,
        respond: Respond,
        for_us: Callable[[str], bool] = words.is_command_topic,
        watched: Callable[[str, str], bool] = _nobody,
    ) -> None:
        """``for_us(topic)``: whether commands for this device arrive there. ``watched(messageId, command)``: whether
        that command has not been answered yet.
        """
        self._watched = watched
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
        name = _record_id(message, payload, is_command=is_command)
        # one that is known has had its turn: that it comes again late is no reason to call it refused
        if is_command and (late := self._late(message, payload)) and await self._bus.status(name) is Status.UNKNOWN:
            await self.invalid(message.topic, message.payload, late, code="DEADLINE_EXPIRED")
            return
        data = _data(message, payload)
        if is_command:
            data["ours"] = True
        try:
            receipt = await (self._command(data, name) if is_command else self._store(data, name))
        except _Reused as error:
            await self.invalid(
                message.topic, message.payload, str(error), code="MESSAGE_ID_REUSED", answer=not error.silent
            )
            return
        except (RecordInvalid, IdConflict) as error:
            await self.invalid(message.topic, message.payload, str(error))
            return
        self.stored += not receipt.duplicate
        self.duplicates += receipt.duplicate

    async def _store(self, data: dict[str, Any], name: str) -> Receipt:
        return await self._bus.publish(words.TOPIC, words.MESSAGE, data, id=name)

    async def _command(self, data: dict[str, Any], name: str) -> Receipt:
        """Store a command. Raises _Reused where its messageId was another command's; one that must not wait is stored
        all the same, under an id made of what it says.
        """
        payload = data["payload"]
        urgent = self._options.is_urgent(payload["command"])
        try:
            receipt = await self._store(data, name)
            if not receipt.duplicate:
                return receipt
            first = await self._first(receipt.stream_id)
            # of one that must not wait every stamp counts, and what nobody can tell any more: a stop that was
            # swallowed is worse than one that comes twice
            if first == payload if urgent else first is None or _meaning(first) == _meaning(payload):
                return receipt
        except IdConflict:  # the id is another app's
            if not urgent:
                raise
        text = f"messageId {payload['messageId']} was used before for another command"
        if not urgent:
            silent = self._watched(str(payload["messageId"]), payload["command"])
            raise _Reused(f"{text}; each command needs a new one", silent=silent)
        log.warning("%s; %s is carried out nevertheless", text, payload["command"])
        content = orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)
        another = content_id(str(payload["messageId"]), words.TOPIC, content=content)
        return await self._store({**data, "reused": True}, another)

    async def _first(self, stream_id: str) -> Any:
        """What was said under this messageId before; None where nobody can tell any more."""
        rows = await self._bus.ask("XRANGE", self._bus.keys.topic(words.TOPIC), stream_id, stream_id)
        if not rows:
            return None
        data = Record.from_fields(rows[0][1]).data
        return data.get("payload", {}) if isinstance(data, dict) else {}

    async def invalid(
        self, topic: str, raw: bytes, reason: str, *, code: str = "INVALID_COMMAND", answer: bool = True
    ) -> None:
        """Keep a message that is not what its topic stands for; its sender is answered where that is possible, unless
        ``answer`` says otherwise.

        Raises BusError when it is not stored.
        """
        self.invalid_messages += 1
        log.warning("a message on %s is kept in %s: %s", topic or "(no topic)", words.INVALID, reason)
        digest = hashlib.sha256(raw).hexdigest()
        kept = {"reason": reason, "topic": topic, "bytes": len(raw), "sha256": digest, **_beginning(raw)}
        await self._bus.publish(words.INVALID, words.INVALID, kept, id=f"{digest[:32]}@{words.INVALID}")
        device = words.device_of(topic)
        found = _MESSAGE_ID.search(raw[:KEPT_BYTES])
        if answer and device is not None and self._for_us(topic) and found is not None:
            message_id = _text_of(found)
            if _WAITS.search(raw[:KEPT_BYTES]):
                await self._answer(device, message_id, words.refusal(f"not taken: {reason}", code), digest[:32])

    async def _answer(self, device: str, message_id: str, data: dict[str, Any], name: str) -> None:
        """As well as it can be done: the message is kept, and must not come again for ever."""
        try:
            await self._respond(device, message_id, data, name=name)
        except BusUnavailable:
            raise  # it comes again when the bus is back, and is answered then
        except (BusError, RecordInvalid, ValueError) as error:
            log.warning("the sender of message %r cannot be answered: %s", message_id, error)

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
        return None

    def _late(self, message: Incoming, payload: dict[str, Any]) -> str | None:
        """Why a command is too old; None when it is not. What stops an aircraft is not judged by two clocks; nor is,
        unless somebody asked for it, what nobody can have held.
        """
        most = self._options.command_max_age
        age = None if most is None or self._options.is_urgent(payload["command"]) else _age(payload.get("timestamp"))
        if most is None or age is None or not most < age <= (self._options.command_held or math.inf):
            return None
        if self._options.command_held is not None and not _may_be_held(message, age):
            return None
        text = "it waited too long, or the clocks differ"
        return f"by its timestamp it is {age:.0f} s old, more than {most:g} s (mqtt_command_max_age): {text}"


def _decoded(raw: bytes) -> Any:
    """The JSON value. Raises ValueError."""
    try:
        return orjson.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _data(message: Incoming, payload: Any) -> dict[str, Any]:
    """What the record of a message says."""
    data = {"topic": message.topic, "payload": payload, "qos": message.qos}
    if message.retain:
        data["retain"] = True
    if message.properties:
        data["properties"] = dict(message.properties)
    if message.expiry is not None:
        data["expiry"] = message.expiry
    waited = (boot_clock_ns() - message.arrived_ns) / 1e9
    if waited > _WAITED_S:
        data["waited"] = round(waited, 3)
    return data


def _meaning(payload: Any) -> Any:
    """What a command says, without what a sender may change when it sends it again."""
    if not isinstance(payload, dict):
        return None
    bodies = [_without_stamps(payload[name]) for name in _BODIES if name in payload]
    if len(bodies) == len(_BODIES) and bodies[0] == bodies[1]:
        del bodies[1]
    other = {name: value for name, value in payload.items() if name not in (*_BODIES, "messageId")}
    return _without_stamps(other), bodies


def _without_stamps(body: Any) -> Any:
    return {name: value for name, value in body.items() if name not in _STAMPS} if isinstance(body, dict) else body


def _may_be_held(message: Incoming, age: float) -> bool:
    """Whether the broker can have held it: it was sent before the link was there, or it came with what had waited."""
    up = message.link_s
    return up is None or age > up + _SLOW_S or up < _FLOOD_S


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
        # half a surrogate pair is JSON, and no text that can be written
        return str(json.loads(b'"' + found[1] + b'"')).encode("utf-8", "replace").decode()
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
