"""What a link needs of the wire below it, how a byte stream is kept open, and which transport an endpoint names.

One open byte stream is in ``line``, UDP in ``udp``, TCP in ``tcp``, serial ports in ``serial_line``, several wires
for one link in ``many``.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from petalbus.handlers.mavlink.wire.endpoint import Endpoint, parse_endpoints
from petalbus.handlers.mavlink.wire.line import Line
from petalbus.handlers.mavlink.wire.pace import Pace
from petalbus.handlers.mavlink.wire.udp import UdpTransport

__all__ = ["Address", "LineTransport", "Opened", "Receiver", "Transport", "UdpTransport", "open_transport"]

log = logging.getLogger(__name__)

Address = tuple[Any, ...]
"""Who is on the other end: for UDP the socket address, for a byte stream one that is new with every connection."""

MAX_WAITING_BYTES: Final = 64 * 1024
"""What may wait for one slow other end."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
_LAST_WORDS_S: Final = 0.25


class Receiver(Protocol):
    """Who gets what arrives."""

    def received(self, data: bytes, address: Address) -> None:
        """Bytes from ``address``; the transport calls it for everything that is there."""

    def drained(self) -> None:
        """Nothing more is there for now."""

    def leaving(self, data: bytes, address: Address) -> bytes:
        """A frame that was given to ``send`` leaves on a byte stream now: what its bytes shall be."""

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

        ``route`` is the way to the system that is meant (None: all are meant, or it was not heard),
        ``speaking`` are all that spoke so far.
        """

    def describe(self) -> list[dict[str, Any]]:
        """State and counters, an entry for each wire."""

    async def open(self, receiver: Receiver) -> None:
        """Start. Raises LinkError."""

    def send(self, data: bytes, address: Address) -> bool:
        """Send one whole frame; False when it was dropped (never waits, never raises OSError).

        A datagram leaves at once, as it is. On a byte stream it may wait, and others may overtake it: what depends
        on the order (its number, its signature) is for ``Receiver.leaving``.
        """

    async def close(self) -> None:
        """Stop; twice is allowed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor in non-blocking mode, how much of what leaves it gets at once, and how to close it."""

    descriptor: int
    pace: Pace
    close: Callable[[], Awaitable[None]]


class LineTransport(ABC):
    """A wire with one other end: opened when it is there, and again when it vanished (after 0.5 s to 5 s)."""

    def __init__(self, endpoint: Endpoint, *, rest: float, limit: int = MAX_WAITING_BYTES) -> None:
        """``rest`` is the pause after each draining in seconds, ``limit`` what bulk may wait to be sent, in bytes."""
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
        line = self._line
        return [
            {
                "endpoint": self.name,
                "state": self.state,
                "connections": self.connections,
                "dropped": self.dropped,
                "waiting_bytes": 0 if line is None else line.waiting,
                "overtaken": 0 if line is None else line.overtaken,
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
            pace=opened.pace,
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
