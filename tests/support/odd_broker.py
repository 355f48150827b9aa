"""A small MQTT broker that misbehaves on request, speaking 5 and 3.1.1 as far as a client under test needs it.

async with OddBroker() as broker:
    broker.suback = lambda name: 0x87
    ... client on broker.port ...
    assert broker.published[0].topic == "out"
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

_TEXT, _PAIR, _VARIABLE = "text", "pair", "variable"
_KINDS: dict[int, Any] = {
    1: 1,
    2: 4,
    3: _TEXT,
    8: _TEXT,
    9: _TEXT,
    11: _VARIABLE,
    17: 4,
    33: 2,
    34: 2,
    38: _PAIR,
    39: 4,
}


@dataclass
class Greeting:
    """A CONNECT."""

    client_id: str
    clean: bool
    keepalive: int
    properties: dict[int, Any]
    at: float = field(default_factory=time.monotonic)


@dataclass
class Published:
    """A PUBLISH of the client."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    mid: int
    properties: dict[int, Any]


class OddBroker:
    """Well behaved until its attributes say otherwise. They are looked at again for each packet."""

    def __init__(self) -> None:
        self.port = 0
        self.connack_codes: list[int] = []
        """Codes of the next answers to CONNECT; 0 when there are no more."""
        self.session_present = False
        self.announce = b""
        """Properties of CONNACK."""
        self.puback: Callable[[Published], int | None] = lambda _: 0
        """The reason code for a message; None: no answer."""
        self.suback: Callable[[str], int] = lambda _: 1
        self.close_on: set[str] = set()
        """Topics for which the connection is closed."""
        self.close_code: int | None = None
        """Said before that, in MQTT 5: the reason code of DISCONNECT."""
        self.most_a_second: int | None = None
        """More messages than that in any second are dropped, without an answer."""
        self.connect_every = 0.0
        """A second CONNECT of a client id within so many seconds is closed without an answer."""
        self.repeat_every: float | None = None
        """Seconds after which ``deliver`` brings a message again on the same connection, until it is answered."""
        self.silent = False
        """Reads, and answers nothing at all, not even pings."""
        self.greetings: list[Greeting] = []
        self.published: list[Published] = []
        self.subscribes: list[list[str]] = []
        self.unsubscribes: list[list[str]] = []
        self.options: list[int] = []
        """Options of each filter of each SUBSCRIBE."""
        self.pubacks: list[int] = []
        self.discarded: list[Published] = []
        self.too_soon = 0
        """CONNECTs that came too soon."""
        self.goodbyes: list[int] = []
        self.most_unanswered = 0
        self.order: list[str] = []
        """subscribe and unsubscribe as they came."""
        self._unanswered = 0
        self._came: deque[float] = deque()
        self._open: dict[int, asyncio.TimerHandle] = {}
        self._talks: set[_Talk] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        for again in self._open.values():
            again.cancel()
        while self._talks:
            await asyncio.sleep(0.005)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = _Talk(self, reader, writer)
        self._talks.add(talk)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await talk.run()
        finally:
            self._talks.discard(talk)
            writer.transport.abort()

    def be_aws(self) -> None:
        """Behave as AWS IoT Core: its quotas of a connection are kept in silence, and messages come again."""
        self.most_a_second, self.connect_every, self.repeat_every = 100, 1.0, 0.2

    def reset(self) -> None:
        """End every connection as a router does that has forgotten it."""
        for talk in list(self._talks):
            end = talk.writer.get_extra_info("socket")
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.drop()

    def drop(self) -> None:
        """End every connection without a word."""
        for talk in list(self._talks):
            talk.writer.transport.abort()

    def raw(self, data: bytes) -> None:
        """Send any bytes to everybody."""
        for talk in self._talks:
            talk.writer.write(data)

    def deliver(self, topic: str, payload: bytes, mid: int, *, again: bool = False, expiry: int | None = None) -> None:
        """A message with quality of service 1 to everybody; ``again`` with the flag that says so. ``expiry``: seconds
        for which it is wanted still (MQTT 5).
        """
        said = b"" if expiry is None else struct.pack("!BI", 2, expiry)
        for talk in self._talks:
            body = _text(topic) + struct.pack("!H", mid) + (bytes([len(said)]) + said if talk.five else b"") + payload
            talk.send(0x32 | (8 if again else 0), body)
        if self.repeat_every is not None:
            loop = asyncio.get_running_loop()
            if mid in self._open:
                self._open[mid].cancel()
            self._open[mid] = loop.call_later(
                self.repeat_every, lambda: self.deliver(topic, payload, mid, again=True, expiry=expiry)
            )

    def acknowledged(self, mid: int) -> None:
        """The client has it: it comes no more."""
        self.pubacks.append(mid)
        again = self._open.pop(mid, None)
        if again is not None:
            again.cancel()

    def is_too_much(self, message: Published) -> bool:
        """Whether it exceeds what is taken in a second."""
        now = time.monotonic()
        while self._came and now - self._came[0] >= 1:
            self._came.popleft()
        if self.most_a_second is not None and len(self._came) >= self.most_a_second:
            self.discarded.append(message)
            return True
        self._came.append(now)
        return False

    def is_too_soon(self, client_id: str) -> bool:
        """Whether this client has just sent another CONNECT."""
        before = [greeting.at for greeting in self.greetings if greeting.client_id == client_id]
        soon = bool(before) and time.monotonic() - before[-1] < self.connect_every
        self.too_soon += soon
        return soon

    def goodbye(self, code: int) -> None:
        """DISCONNECT of MQTT 5, then the end."""
        for talk in list(self._talks):
            talk.send(0xE0, bytes([code, 0]))
            talk.writer.close()

    def counted(self, change: int) -> None:
        """Keep how many messages had no answer at a time."""
        self._unanswered += change
        self.most_unanswered = max(self.most_unanswered, self._unanswered)


class _Talk:
    def __init__(self, broker: OddBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.broker = broker
        self.writer = writer
        self.five = True
        self._reader = reader

    def send(self, first: int, body: bytes) -> None:
        self.writer.write(bytes([first]) + _variable(len(body)) + body)

    async def run(self) -> None:
        while True:
            first = (await self._reader.readexactly(1))[0]
            length = shift = 0
            while True:
                byte = (await self._reader.readexactly(1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
            body = await self._reader.readexactly(length)
            handle = _HANDLERS[first & 0xF0]
            if not self.broker.silent and handle(self, first, body):
                return

    def _connect(self, first: int, body: bytes) -> bool:
        broker = self.broker
        self.five = body[6] == 5
        flags, keepalive = struct.unpack_from("!BH", body, 7)
        properties, rest = self._properties(body[10:])
        name, _ = _cut(rest)
        soon = broker.is_too_soon(name)
        broker.greetings.append(Greeting(name, bool(flags & 2), keepalive, properties))
        if soon:
            return True
        code = broker.connack_codes.pop(0) if broker.connack_codes else 0
        present = broker.session_present and not code
        announced = _variable(len(broker.announce)) + broker.announce if self.five else b""
        self.send(0x20, bytes([present, code]) + announced)
        return bool(code)

    def _publish(self, first: int, body: bytes) -> bool:
        broker, mid = self.broker, 0
        qos = (first >> 1) & 3
        topic, rest = _cut(body)
        if qos:
            mid, rest = int.from_bytes(rest[:2], "big"), rest[2:]
        properties, payload = self._properties(rest)
        message = Published(topic, payload, qos, bool(first & 1), mid, properties)
        if broker.is_too_much(message):
            return False
        broker.published.append(message)
        if topic in broker.close_on:
            if self.five and broker.close_code is not None:
                self.send(0xE0, bytes([broker.close_code, 0]))
                self.writer.close()  # the end would cut off what is not written yet
            return True
        if qos:
            broker.counted(1)
            code = broker.puback(message)
            if code is not None:
                asyncio.get_running_loop().call_later(0.001, self._answer, mid, code)
        return False

    def _answer(self, mid: int, code: int) -> None:
        self.broker.counted(-1)
        if not self.writer.is_closing():
            self.send(0x40, struct.pack("!H", mid) + (bytes([code, 0]) if self.five else b""))

    def _puback(self, first: int, body: bytes) -> bool:
        self.broker.acknowledged(struct.unpack_from("!H", body)[0])
        return False

    def _subscribe(self, first: int, body: bytes) -> bool:
        _, rest = self._properties(body[2:])
        names: list[str] = []
        while rest:
            name, rest = _cut(rest)
            names.append(name)
            self.broker.options.append(rest[0])
            rest = rest[1:]
        self.broker.subscribes.append(names)
        if self.broker.close_on & set(names):
            return True
        self.broker.order.append("subscribe")
        codes = bytes(self.broker.suback(name) for name in names)
        self.send(0x90, body[:2] + (b"\0" if self.five else b"") + codes)
        return False

    def _unsubscribe(self, first: int, body: bytes) -> bool:
        _, rest = self._properties(body[2:])
        names: list[str] = []
        while rest:
            name, rest = _cut(rest)
            names.append(name)
        self.broker.unsubscribes.append(names)
        self.broker.order.append("unsubscribe")
        self.send(0xB0, body[:2] + (b"\0" + bytes(len(names)) if self.five else b""))
        return False

    def _ping(self, first: int, body: bytes) -> bool:
        self.send(0xD0, b"")
        return False

    def _disconnect(self, first: int, body: bytes) -> bool:
        self.broker.goodbyes.append(body[0] if body else 0)
        return True

    def _properties(self, body: bytes) -> tuple[dict[int, Any], bytes]:
        if not self.five:
            return {}, body
        length, body = _number(body)
        block, rest = body[:length], body[length:]
        found: dict[int, Any] = {}
        while block:
            key, kind, block = block[0], _KINDS[block[0]], block[1:]
            if kind == _TEXT:
                found[key], block = _cut(block)
            elif kind == _PAIR:
                name, block = _cut(block)
                value, block = _cut(block)
                found.setdefault(key, {})[name] = value
            elif kind == _VARIABLE:
                found[key], block = _number(block)
            else:
                found[key], block = int.from_bytes(block[:kind], "big"), block[kind:]
        return found, rest


_HANDLERS: dict[int, Callable[[_Talk, int, bytes], bool]] = {
    0x10: _Talk._connect,
    0x30: _Talk._publish,
    0x40: _Talk._puback,
    0x80: _Talk._subscribe,
    0xA0: _Talk._unsubscribe,
    0xC0: _Talk._ping,
    0xE0: _Talk._disconnect,
}


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("!H", len(data)) + data


def _cut(data: bytes) -> tuple[str, bytes]:
    (length,) = struct.unpack_from("!H", data)
    return data[2 : 2 + length].decode(), data[2 + length :]


def _number(data: bytes) -> tuple[int, bytes]:
    value = 0
    for position in range(4):
        value |= (data[position] & 0x7F) << (7 * position)
        if not data[position] & 0x80:
            return value, data[position + 1 :]
    raise ValueError("a number of more than four bytes")


def _variable(number: int) -> bytes:
    out = bytearray()
    while True:
        number, byte = divmod(number, 128)
        out.append(byte | (0x80 if number else 0))
        if not number:
            return bytes(out)
