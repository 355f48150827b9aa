"""One connection to the broker: it opens once, and it ends once, for ever."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from petalbus.handlers.mqtt.direct import errors
from petalbus.handlers.mqtt.direct.errors import Failure, LinkFailure
from petalbus.handlers.mqtt.direct.framing import Framer, MalformedPacket
from petalbus.handlers.mqtt.direct.packets import Ack, Codec, Connack, Goodbye, Packet, Pong, Publish
from petalbus.handlers.mqtt.options import DirectOptions

log = logging.getLogger(__name__)

RECEIVE_MAXIMUM: Final = 64
"""Messages that the broker may have brought without an acknowledgement. We hold no more of them."""

_ANSWER_S: Final = 10.0
_HESITATION_S: Final = 0.5
_MALFORMED: Final = 0x81


async def first_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until one of them is done, or ``timeout`` seconds have passed."""
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


class Events(Protocol):
    """Who is told what the broker sends."""

    def let_in(self, connack: Connack, connection: Connection) -> None:
        """The broker takes us. What it kept for us may come in the same breath."""

    def arrived(self, publish: Publish, connection: Connection) -> None:
        """A message. Acknowledge it with ``connection.acknowledge(mid)`` once it is stored."""

    def acknowledged(self, ack: Ack) -> None:
        """The broker's answer to a message of ours."""

    def flow_changed(self) -> None:
        """The write buffer is full, or has room again."""

    def overdue(self) -> bool:
        """Whether a message waits for its acknowledgement for so long that the connection is worth nothing."""


class Connection(asyncio.Protocol):
    """``await open(...)``, then it works until ``lost`` has a result, whoever ends it."""

    def __init__(self, options: DirectOptions, client_id: str, events: Events) -> None:
        self.codec = Codec(options.version)
        self.lost: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self.writable = True
        self.connack: Connack | None = None
        self.greeted_at: float | None = None
        """When our CONNECT left (time.monotonic()); None: it never did."""
        self.round_trip: float | None = None
        """Seconds from a question to its answer, smoothed."""
        self._options = options
        self.client_id = client_id
        self._where = f"{options.host}:{options.port}"
        self._events = events
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None
        self._verdict: Failure | None = None
        self._greeting: asyncio.Future[Connack] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[Ack]] = {}
        self._pings: deque[tuple[float, Callable[[], None] | None]] = deque()
        self._keepalive = float(options.keepalive)
        self._heard = self._spoke = time.monotonic()
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, context: ssl.SSLContext | None, *, hesitate: bool = False) -> Connack:
        """Connect and be let in. Raises LinkFailure, OSError or ssl.SSLError; the caller bounds the time.

        ``hesitate``: wait a moment before the greeting. A server that does not want our certificate says so after we
        think that all is well (TLS 1.3), and its words are lost when it resets the connection for what we send then.
        """
        options = self._options
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, options.host, options.port, ssl=context)
        if hesitate:
            await asyncio.wait({self.lost}, timeout=_HESITATION_S)
        self.greeted_at = time.monotonic()
        self.send(
            self.codec.connect(
                self.client_id,
                username=options.username,
                password=options.password,
                keepalive=options.keepalive,
                session_expiry=options.session_expiry,
                receive_maximum=RECEIVE_MAXIMUM,
            )
        )
        await first_of(self._greeting, self.lost)
        if not self._greeting.done():
            raise LinkFailure(self.lost.result())
        connack = self._greeting.result()
        if connack.code != 0:
            text = str(connack.properties.get("reason_string", [""])[0])
            raise LinkFailure(errors.refused(connack.code, self.client_id, five=self.codec.five, text=text))
        self._keepalive = float(connack.number("server_keep_alive", options.keepalive))
        self._tick()
        return connack

    def send(self, data: bytes) -> None:
        """Hand bytes to the socket. On a connection that has ended they go nowhere."""
        if self._transport is not None and not self._transport.is_closing():
            self._spoke = time.monotonic()
            self._transport.write(data)

    def acknowledge(self, mid: int) -> None:
        """Tell the broker that we have its message."""
        self.send(self.codec.puback(mid))

    def ping(self, answered: Callable[[], None] | None = None) -> None:
        """Ask for a sign of life. Answers come in order: all that was sent before has been looked at then."""
        self._pings.append((time.monotonic(), answered))
        self.send(self.codec.ping())

    async def subscribe(self, filters: Sequence[tuple[str, int]], *, retained: bool) -> tuple[int, ...]:
        """The broker's reason code for each filter. Raises LinkFailure when the connection ends before it answers."""
        mid, packet = self.codec.subscribe(filters, retained=retained)
        codes = (await self._asked(mid, packet)).codes
        if len(codes) != len(filters):
            raise LinkFailure(Failure("malformed", f"{self._where} answered {len(codes)} of {len(filters)} filters"))
        return codes

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Give filters up. Raises LinkFailure like ``subscribe``."""
        await self._asked(*self.codec.unsubscribe(filters))

    async def _asked(self, mid: int, packet: bytes) -> Ack:
        answer: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._answers[mid] = answer
        self.send(packet)
        try:
            await first_of(answer, self.lost, timeout=_ANSWER_S)
        finally:
            del self._answers[mid]
        if answer.done():
            return answer.result()
        if self.lost.done():
            raise LinkFailure(self.lost.result())
        raise LinkFailure(Failure("timeout", f"{self._where} does not answer which filters it takes"))

    def read_on(self, *, reading: bool) -> None:
        """Stop reading what the broker sends, or go on: it is held back by TCP then."""
        if reading == self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = reading
        self._heard = time.monotonic()
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def end(self, failure: Failure) -> None:
        """End it at once, for a reason of our own."""
        self._verdict = self._verdict or failure
        if self._transport is not None:
            self._transport.abort()
        else:
            self._finish(failure)

    async def leave(self, grace: float) -> None:
        """Say goodbye and let the broker close, which it has ``grace`` seconds for.

        To close at once would cut off what it has not read yet, our last acknowledgements among it: TCP resets a
        connection that is closed while something unread is there.
        """
        self._verdict = self._verdict or Failure("stopped", "we ended the connection")
        self.send(self.codec.disconnect())
        try:
            await asyncio.wait({self.lost}, timeout=grace)
        finally:
            if self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # not checked by its class: uvloop's transports are of another one
        opened = self._transport = cast("asyncio.Transport", transport)
        opened.set_write_buffer_limits(high=self._options.write_buffer)
        end = opened.get_extra_info("socket")
        if end is not None:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                limit = int(1.5 * self._options.keepalive * 1000)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        if self.lost.done():  # it was given up while TLS was being agreed on
            opened.abort()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._heard = time.monotonic()
        try:
            for first, body in self._framer.feed(data):
                self._handle(self.codec.read(first, body))
        except MalformedPacket as error:
            if self.codec.five:
                self.send(self.codec.disconnect(_MALFORMED))
            self.end(Failure("malformed", f"{self._where} does not speak MQTT {self._options.version}: {error}"))

    def _handle(self, packet: Packet) -> None:
        match packet:
            case Publish():
                self._events.arrived(packet, self)
            case Ack():
                self.codec.free(packet.mid)
                answer = self._answers.get(packet.mid)
                if answer is None:
                    self._events.acknowledged(packet)
                elif not answer.done():
                    answer.set_result(packet)
            case Pong():
                if self._pings:
                    since, answered = self._pings.popleft()
                    self.answered_after(time.monotonic() - since)
                    if answered is not None:
                        answered()
            case Connack():
                if self._greeting.done():
                    raise MalformedPacket("a second CONNACK")
                self._greeting.set_result(packet)
                if packet.code == 0:
                    self.connack = packet
                    self._events.let_in(packet, self)
            case Goodbye():
                self._verdict = self._verdict or errors.ended(packet.code, self.client_id, packet.text)
                if self._transport is not None:
                    self._transport.close()

    def answered_after(self, seconds: float) -> None:
        """One more measurement of the round trip."""
        known = self.round_trip
        self.round_trip = seconds if known is None else known + (seconds - known) / 8

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self.writable = False
        self._events.flow_changed()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self.writable = True
        self._events.flow_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        greeted = self.connack is not None
        tls = self._options.tls
        self._finish(self._verdict or errors.broken(exc, self._where, tls=tls, greeted=greeted, five=self.codec.five))

    def _finish(self, failure: Failure) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.writable = False
        if not self.lost.done():
            self.lost.set_result(failure)

    def _tick(self) -> None:
        """Four times in a keepalive: is the broker still there?"""
        if self.lost.done() or not self._keepalive:
            return
        now = time.monotonic()
        if self._reading and now - self._heard > 1.5 * self._keepalive:
            self.end(Failure("timeout", f"{self._where} has been silent for {now - self._heard:.0f} s"))
            return
        if self._events.overdue():
            text = f"{self._where} answers, but does not acknowledge messages"
            self.end(Failure("no-acknowledgement", text))
            return
        quiet = now - min(self._heard, self._spoke)
        if quiet >= self._keepalive / 2 and (not self._pings or now - self._pings[-1][0] >= self._keepalive / 2):
            self.ping()
        self._timer = asyncio.get_running_loop().call_later(self._keepalive / 4, self._tick)
