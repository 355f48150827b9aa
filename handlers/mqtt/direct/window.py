"""What goes out: messages under way to the broker, no more at a time than it bears, in the order they were given."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.mqtt.direct.connection import Connection
from petalbus.handlers.mqtt.direct.errors import Failure
from petalbus.handlers.mqtt.direct.packets import Ack, Connack
from petalbus.handlers.mqtt.direct.suspects import DIRECTLY, Suspects
from petalbus.handlers.mqtt.options import DirectOptions
from petalbus.handlers.mqtt.transport import LinkLost, NotNow, Outgoing, PublishRefused

_REFUSED: Final = 0x80
_QUOTA: Final = 0x97
_PERHAPS_LATER: Final = frozenset({0x80, 0x83, 0x91})
"""Unspecified, specific to the broker, "packet id in use": they say nothing against the message."""
_MOMENT_S: Final = 0.5
_IN_A_ROW: Final = 32
"""Messages that may leave before others get the event loop."""
_MOST_BEHIND: Final = 1024
_UNLIMITED: Final = 268_435_460


@dataclass(slots=True)
class _Given:
    message: Outgoing
    future: asyncio.Future[int]
    sent: float = 0.0


class Window:
    """Outlives connections; what is under way does not: it ends with LinkLost, and the caller sends it again."""

    def __init__(self, options: DirectOptions, suspects: Suspects) -> None:
        self.size = 0
        self.acknowledged = 0
        self.refused = 0
        self.put_off = 0
        """Messages that the broker did not take just then."""
        self.lost = 0
        self._options = options
        self._suspects = suspects
        self._connection: Connection | None = None
        self._open = False
        self._limits = Connack(session_present=False, code=0)
        self._under_way: dict[int, _Given] = {}
        self._waiting: deque[_Given] = deque()
        self._unconfirmed: deque[tuple[float, str]] = deque(maxlen=256)
        self._alone: str | None = None
        self._asking = False
        self._in_a_row = 0
        self._alive_at = -math.inf
        self._room = asyncio.Event()
        self._idle = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Messages without an answer, those that wait for their turn included."""
        return len(self._under_way) + len(self._waiting)

    def attach(self, connection: Connection, limits: Connack) -> None:
        """A new connection, on which nothing is sent before ``start``."""
        self._connection, self._limits = connection, limits
        self.size = max(1, min(limits.number("receive_maximum", 65535), self._options.window) - 2)

    def start(self) -> None:
        """Let messages go."""
        self._open = True
        self._changed()

    def stop(self) -> None:
        """No further ones; those under way may still be answered."""
        self._open = False
        self._changed()

    def detach(self, failure: Failure) -> None:
        """The connection is gone: everything under way may have arrived or not."""
        now = time.monotonic()
        recent = {given.message.topic for given in self._under_way.values() if now - given.sent < DIRECTLY}
        recent |= {topic for sent, topic in self._unconfirmed if now - sent < DIRECTLY}
        if failure.blame and recent:
            self._suspects.closed(recent, self._alone if recent == {self._alone} else None, failure.blame)
        gone = [*self._under_way.values(), *self._waiting]
        self._connection, self._open, self._alone, self._asking = None, False, None, False
        self._alive_at = -math.inf
        self._under_way.clear()
        self._waiting.clear()
        self._unconfirmed.clear()
        self._changed()
        for given in gone:
            self.lost += 1
            _fail(given.future, LinkLost(f"the connection ended before the broker had confirmed: {failure.reason}"))

    async def room(self) -> None:
        """Wait until one more message can go."""
        self._in_a_row += 1
        if self._in_a_row >= _IN_A_ROW:  # quality 0 has nothing to wait for: who sends only that lets others work, too
            self._in_a_row = 0
            await asyncio.sleep(0)
        while not self._has_room():
            self._room.clear()
            await self._room.wait()

    async def empty(self) -> None:
        """Wait until nothing is under way."""
        while self.in_flight:
            self._idle.clear()
            await self._idle.wait()

    def submit(self, message: Outgoing) -> asyncio.Future[int]:
        """See Transport.submit."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self._open:
            _fail(future, LinkLost("there is no connection to the broker"))
        elif len(self._waiting) >= _MOST_BEHIND:
            _fail(future, LinkLost("too many messages at once: await room() before each"))
        else:
            self._waiting.append(_Given(message, future))
            self._pump()
        return future

    def answered(self, ack: Ack) -> None:
        """The broker's PUBACK."""
        given = self._under_way.pop(ack.mid, None)
        if given is None:
            return
        if self._connection is not None:
            self._connection.answered_after(time.monotonic() - given.sent)
        self._is_through(given.message.topic)
        code = ack.codes[0]
        if code >= _REFUSED:
            said = f" ({ack.text[:200]})" if ack.text else ""
            text = f"the broker refuses the message on topic {given.message.topic!r} with reason code {code:#04x}{said}"
            if code == _QUOTA or code in _PERHAPS_LATER:
                self.put_off += 1
                _fail(given.future, NotNow(text, code=code, patient=code == _QUOTA))
            else:
                self.refused += 1
                _fail(given.future, PublishRefused(text, code=code))
        else:
            self.acknowledged += 1
            if not given.future.done():
                given.future.set_result(code)
        self._changed()

    def flow_changed(self) -> None:
        """The socket takes more now, or no more."""
        self._changed()

    def overdue(self) -> bool:
        """Whether the oldest message has waited for one and a half keepalive."""
        oldest = next(iter(self._under_way.values()), None)
        return oldest is not None and time.monotonic() - oldest.sent > 1.5 * self._options.keepalive

    def describe(self) -> dict[str, Any]:
        """Counters."""
        return {
            "window": self.size,
            "in_flight": self.in_flight,
            "acknowledged": self.acknowledged,
            "refused": self.refused,
            "put_off": self.put_off,
            "lost": self.lost,
            "quarantined": self._suspects.describe(),
        }

    def _has_room(self) -> bool:
        connection = self._connection
        return self._open and connection is not None and connection.writable and self.in_flight < self.size

    def _changed(self) -> None:
        self._pump()
        if self._has_room():
            self._room.set()
        if not self.in_flight:
            self._idle.set()

    def _pump(self) -> None:
        while self._waiting and self._connection is not None and self._connection.writable and self._may_go():
            given = self._waiting.popleft()
            if not given.future.done():  # who had asked has not given it up
                self._send(given, self._connection)

    def _may_go(self) -> bool:
        message = self._waiting[0].message
        if self._alone is not None:
            return False
        if self._suspects.suspected(message.topic):
            return not self._under_way and self._all_confirmed(sure=self._suspects.wary(message.topic))
        return message.qos == 0 or len(self._under_way) < self.size

    def _all_confirmed(self, *, sure: bool) -> bool:
        """Whether the broker has seen all of quality 0, which nobody acknowledges; if not, ask.

        ``sure``: it must have given a sign of life, too: an end that follows is not that of a link that was dead.
        """
        if not self._unconfirmed and (not sure or time.monotonic() - self._alive_at < DIRECTLY):
            return True
        if not self._asking and self._connection is not None:
            self._asking = True
            self._connection.ping(self._confirmed)
        return False

    def _confirmed(self) -> None:
        self._asking, self._alive_at = False, time.monotonic()
        self._unconfirmed.clear()
        self._changed()

    def _send(self, given: _Given, connection: Connection) -> None:
        message = given.message
        codec = connection.codec
        refusal = self._refusal(message)
        if refusal is None:
            try:
                mid, packet = codec.publish(message)
            except ValueError as error:
                refusal = PublishRefused(f"topic {message.topic!r}: {error}", code=0x90)
            else:
                most = self._limits.number("maximum_packet_size", _UNLIMITED)
                if len(packet) > most:
                    if mid is not None:
                        codec.free(mid)
                    text = f"the message on topic {message.topic!r} has {len(packet)} bytes; the broker takes {most}"
                    refusal = PublishRefused(text, code=0x95)
        if refusal is not None:
            self.refused += 1
            _fail(given.future, refusal)
            return
        given.sent = time.monotonic()
        if self._suspects.suspected(message.topic):
            self._alone, self._alive_at = message.topic, -math.inf
        if mid is not None:
            self._under_way[mid] = given
        connection.send(packet)
        if mid is None:
            self._unconfirmed.append((given.sent, message.topic))
            given.future.set_result(0)
            if self._alone is not None:  # nobody acknowledges it: the answer to a ping says that it was taken
                self._ask_after(message.topic, connection)

    def _ask_after(self, topic: str, connection: Connection) -> None:
        if not self._suspects.wary(topic):
            connection.ping(lambda: self._is_through(topic))
            return

        def ask() -> None:
            if connection is self._connection:
                connection.ping(lambda: self._is_through(topic))

        # a broker that closes with our ping unread resets the connection, and a reset accuses nobody
        asyncio.get_running_loop().call_later(_MOMENT_S, ask)

    def _is_through(self, topic: str) -> None:
        self._suspects.passed(topic)
        if self._alone == topic:
            self._alone = None
            self._unconfirmed.clear()
            self._changed()

    def _refusal(self, message: Outgoing) -> PublishRefused | None:
        topic = message.topic
        if self._suspects.quarantined(topic):
            text = f"the broker ends the connection for messages on topic {topic!r}: its policy forbids them, it seems"
            return PublishRefused(text, code=0x87)
        if not topic or any(sign in topic for sign in "+#\0"):
            return PublishRefused(f"{topic!r} is no topic to publish to", code=0x90)
        if message.qos not in (0, 1) or message.qos > self._limits.number("max_qos", 1):
            return PublishRefused(f"quality of service {message.qos} is not possible with this broker", code=0x9B)
        if message.retain and not self._limits.number("retain_available", 1):
            return PublishRefused("the broker does not keep messages (retain)", code=0x9A)
        return None


def _fail(future: asyncio.Future[int], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # an error that nobody asks for any more is not worth a line in the log
