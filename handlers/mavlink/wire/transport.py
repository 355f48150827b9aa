"""What a link needs of the wire below it, what all byte streams share, and which transport an endpoint names.

UDP is in ``udp``, TCP in ``tcp``, serial ports in ``serial_line``, several wires for one link in ``many``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from petalbus.handlers.mavlink.wire.endpoint import Endpoint, parse_endpoints
from petalbus.handlers.mavlink.wire.udp import UdpTransport

__all__ = ["Address", "Line", "LineTransport", "Opened", "Receiver", "Transport", "UdpTransport", "open_transport"]

log = logging.getLogger(__name__)

Address = tuple[Any, ...]
"""Who is on the other end: for UDP the socket address, for a byte stream one that is new with every connection."""

MAX_WAITING_BYTES: Final = 64 * 1024
"""What may wait for one slow other end."""

_READ_BYTES: Final = 64 * 1024
_MAX_DRAIN: Final = 256 * 1024
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
_LAST_WORDS_S: Final = 0.25


class Receiver(Protocol):
    """Who gets what arrives."""

    def received(self, data: bytes, address: Address) -> None:
        """Bytes from ``address``; the transport calls it for everything that is there."""

    def drained(self) -> None:
        """Nothing more is there for now."""

    def closed(self, address: Address) -> None:
        """A connection ended; its address does not come again."""


class Transport(Protocol):
    """The wire below a link, or several of them."""

    @property
    def name(self) -> str:
        """The endpoint, for messages."""

    def is_datagram(self, address: Address) -> bool:
        """True when a ``received`` from there is a datagram, False when it is a piece of a stream."""

    def channel(self, address: Address) -> int:
        """The number of the wire that leads there; 0 where there is only one."""

    def targets(self, route: Address | None, speaking: Sequence[Address]) -> Sequence[Address]:
        """Where to send to; empty when nobody is there.

        ``route`` is where the system that is meant was heard last (None: all are meant, or it was not heard),
        ``speaking`` are all that spoke so far.
        """

    def describe(self) -> list[dict[str, Any]]:
        """State and counters, an entry for each wire."""

    async def open(self, receiver: Receiver) -> None:
        """Start. Raises LinkError."""

    def send(self, data: bytes, address: Address) -> bool:
        """Hand over to the system at once; False when it was dropped (never waits, never raises OSError)."""

    async def close(self) -> None:
        """Stop; twice is allowed."""


class Line:
    """One open byte stream: a non-blocking file descriptor (a socket, a serial port) in the event loop.

    It reads everything that is there, then rests, as UDP does. It writes at once what the system takes; what is
    left waits, whole frames up to a limit. It does not close the descriptor.
    """

    def __init__(
        self,
        descriptor: int,
        address: Address,
        receiver: Receiver,
        *,
        rest: float,
        on_end: Callable[[str], None],
        limit: int = MAX_WAITING_BYTES,
        end_when_full: bool = False,
    ) -> None:
        """Begin to read. ``on_end`` is called once, with the reason, when the other end is gone, not by ``send``.

        ``limit`` is in bytes. A frame that has no room is dropped, or ends the line (``end_when_full``).
        """
        self.address = address
        self.heard = 0
        """Bytes received."""
        self.dropped = 0
        """Frames that did not leave."""
        self._descriptor = descriptor
        self._receiver = receiver
        self._rest = rest
        self._on_end = on_end
        self._limit = limit
        self._end_when_full = end_when_full
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._frames: deque[int] = deque()  # how many bytes of each frame wait
        self._timer: asyncio.TimerHandle | None = None
        self._open = True
        self._loop.add_reader(descriptor, self._readable)

    @property
    def open(self) -> bool:
        """False as soon as it is known that nothing can be sent any more."""
        return self._open

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return len(self._waiting)

    def send(self, data: bytes) -> bool:
        """Send one frame; False when it was dropped."""
        if self._open and len(self._waiting) + len(data) > self._limit and self._end_when_full:
            self._fail("it does not read")
        if not self._open or len(self._waiting) + len(data) > self._limit:
            self.dropped += 1
            return False
        written = 0 if self._waiting else self._write(data)
        if written < 0:
            self.dropped += 1
            return False
        if written < len(data):
            if not self._waiting:
                self._loop.add_writer(self._descriptor, self._writable)
            self._waiting += data[written:]
            self._frames.append(len(data) - written)
        return True

    def stop(self) -> None:
        """Leave the event loop; what waits counts as dropped. Call it before the descriptor is closed."""
        if self._descriptor < 0:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._descriptor = -1
        self.dropped += len(self._frames)
        self._waiting.clear()
        self._frames.clear()

    def _write(self, data: bytes | bytearray) -> int:
        """How much the system took; -1 when the line is broken."""
        try:
            return os.write(self._descriptor, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return -1

    def _writable(self) -> None:
        written = self._write(self._waiting) if self._open else -1
        if written <= 0:
            return
        del self._waiting[:written]
        while written > 0:
            size = self._frames.popleft()
            if size > written:
                self._frames.appendleft(size - written)
            written -= size
        if not self._waiting:
            self._loop.remove_writer(self._descriptor)

    def _readable(self) -> None:
        self._timer = None
        reason, end = None, self.heard + _MAX_DRAIN
        while reason is None and self._descriptor >= 0 and self.heard < end:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                reason = error.strerror or str(error)
                break
            if data:
                self.heard += len(data)
                self._receiver.received(data, self.address)
            else:
                reason = "the other end closed it"
        self._receiver.drained()
        if reason is not None:
            self._end(reason)
        elif self._rest > 0 and self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._timer = self._loop.call_later(self._rest, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)

    def _fail(self, reason: str) -> None:
        """Nothing can be sent any more; tell it later, because whoever sends just now is no place for it."""
        if self._open:
            self._open = False
            self._loop.call_soon(self._end, reason)

    def _end(self, reason: str) -> None:
        if self._descriptor >= 0:
            self.stop()
            self._receiver.closed(self.address)
            self._on_end(reason)


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor in non-blocking mode, and how to close it."""

    descriptor: int
    close: Callable[[], Awaitable[None]]


class LineTransport(ABC):
    """A wire with one other end: opened when it is there, and again when it vanished (after 0.5 s to 5 s)."""

    def __init__(self, endpoint: Endpoint, *, rest: float, limit: int = MAX_WAITING_BYTES) -> None:
        """``rest`` is the pause after each draining in seconds, ``limit`` what may wait to be sent, in bytes."""
        self.endpoint = endpoint
        self.state = "closed"
        """``open``, ``closed``, or why it is not open."""
        self.connections = 0
        """How often it was opened."""
        self._dropped = 0
        self._rest = rest
        self._limit = limit
        self._line: Line | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _connect(self) -> Opened:
        """Open it once. Raises OSError with a text that says what to do."""

    def _unsent(self) -> int:
        """Bytes that the system has taken and that did not leave yet."""
        return 0

    @property
    def name(self) -> str:
        """The endpoint, as it is written."""
        return str(self.endpoint)

    @property
    def dropped(self) -> int:
        """Frames that did not leave: too many waited, or nobody was there any more."""
        return self._dropped + (0 if self._line is None else self._line.dropped)

    def is_datagram(self, address: Address) -> bool:  # noqa: ARG002  # the same for every address
        """No."""
        return False

    def channel(self, address: Address) -> int:  # noqa: ARG002  # there is one
        """One wire."""
        return 0

    def targets(
        self,
        route: Address | None,  # noqa: ARG002  # there is one place
        speaking: Sequence[Address],  # noqa: ARG002  # the same
    ) -> Sequence[Address]:
        """The other end when it is there, whether it spoke or not."""
        return () if self._line is None or not self._line.open else (self._line.address,)

    def describe(self) -> list[dict[str, Any]]:
        """One entry: state and counters."""
        waiting = 0 if self._line is None else self._line.waiting
        return [
            {
                "endpoint": self.name,
                "state": self.state,
                "connections": self.connections,
                "dropped": self.dropped,
                "waiting_bytes": waiting,
            }
        ]

    async def open(self, receiver: Receiver) -> None:
        """Start to look for the other end; it need not be there yet."""
        self.state = "opening"
        self._task = asyncio.create_task(self._keep(receiver), name=f"mavlink.{self.endpoint.kind}")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Stop. What was handed over last gets a quarter of a second to leave."""
        task, self._task = self._task, None
        if task is None:
            return
        deadline = asyncio.get_running_loop().time() + _LAST_WORDS_S
        while self._line is not None and self._line.open and (self._line.waiting or self._unsent()):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.state = "closed"

    def send(self, data: bytes, address: Address) -> bool:
        """Send one frame to the connection ``address``; False when it was dropped."""
        line = self._line
        return line is not None and line.address == address and line.send(data)

    async def _keep(self, receiver: Receiver) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                opened = await self._connect()
            except OSError as error:
                self._note(f"not there: {error.strerror or error}")
            else:
                if await self._use(opened, receiver):
                    pause = _FIRST_PAUSE_S  # what opens and never says a word is not asked more often
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _use(self, opened: Opened, receiver: Receiver) -> bool:
        """Use it until it ends; True when something was heard."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.connections += 1
        place = self.endpoint.device or self.endpoint.host
        line = self._line = Line(
            opened.descriptor,
            (place, self.endpoint.port, self.connections),
            receiver,
            rest=self._rest,
            limit=self._limit,
            on_end=lambda reason: None if ended.done() else ended.set_result(reason),
        )
        self.state = "open"
        log.info("%s: open", self.name)
        try:
            self._note(f"lost: {await ended}")
        finally:
            line.stop()
            self._line = None
            self._dropped += line.dropped
            await opened.close()
        return line.heard > 0

    def _ended(self, task: asyncio.Task[None]) -> None:
        """It ends when it is cancelled; anything else is a mistake in the code, which must not stay unseen."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.state = f"failed: {error!r}"
            log.error("%s: this wire is given up", self.name, exc_info=error)

    def _note(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.warning("%s: %s; trying again", self.name, state)


def open_transport(endpoint: str | Endpoint, *, rest: float = 0.005) -> Transport:
    """The transport for an endpoint, or for several ones with commas between them; not yet open.

    ``rest`` is the pause after each draining, in seconds. Raises EndpointError.
    """
    # these are built on what is above
    from petalbus.handlers.mavlink.wire.many import ManyTransports  # noqa: PLC0415  # see above
    from petalbus.handlers.mavlink.wire.tcp import TcpClient, TcpServer  # noqa: PLC0415  # see above

    wires: list[Transport] = []
    for each in parse_endpoints(endpoint) if isinstance(endpoint, str) else (endpoint,):
        if each.kind == "tcp":
            wires.append(TcpClient(each, rest=rest))
        elif each.kind == "tcpin":
            wires.append(TcpServer(each, rest=rest))
        elif each.kind == "serial":
            from petalbus.handlers.mavlink.wire.serial_line import SerialTransport  # noqa: PLC0415  # it needs pyserial

            wires.append(SerialTransport(each, rest=rest))
        else:
            wires.append(UdpTransport(each, rest=rest))
    return wires[0] if len(wires) == 1 else ManyTransports(wires)
