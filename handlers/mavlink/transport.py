"""What a link needs of the wire below it, and UDP. TCP and serial lines are further classes of the same form."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol

from petalbus.handlers.mavlink.endpoint import Endpoint
from petalbus.handlers.mavlink.errors import LinkError

Address = tuple[Any, ...]
"""Who is on the other end: for UDP the socket address, for a line with one other end an empty tuple."""

_MAX_DRAIN: Final = 512
_RECEIVE_BUFFER: Final = 1 << 20
_LARGEST_DATAGRAM: Final = 65535


class Receiver(Protocol):
    """Who gets what arrives."""

    def received(self, data: bytes, address: Address) -> None:
        """Bytes from ``address``; the transport calls it for everything that is there."""

    def drained(self) -> None:
        """Nothing more is there for now."""


class Transport(Protocol):
    """The wire below a link."""

    @property
    def name(self) -> str:
        """The endpoint, for messages."""

    @property
    def datagrams(self) -> bool:
        """True when a ``received`` is a datagram, False when it is a piece of a stream."""

    @property
    def remote(self) -> Address | None:
        """Where to send to before anybody was heard; None when somebody must be heard first."""

    async def open(self, receiver: Receiver) -> None:
        """Start. Raises LinkError."""

    def send(self, data: bytes, address: Address) -> bool:
        """Hand over to the system at once; False when it was dropped (never waits, never raises OSError)."""

    async def close(self) -> None:
        """Stop; twice is allowed."""


class UdpTransport:
    """UDP, listening (``udpin``) or sending to one place (``udpout``).

    It reads on a plan of its own: everything that is there at once, then a rest. The first datagram after a pause is
    seen immediately, a busy link wakes the process at most once a rest (200 times a second), and the kernel's buffer
    holds what comes meanwhile.
    """

    datagrams = True

    def __init__(self, endpoint: Endpoint, *, rest: float = 0.005) -> None:
        """``rest`` is the pause after each draining, in seconds; 0 for none."""
        self.endpoint = endpoint
        self.remote: Address | None = None
        self.dropped = 0
        """Datagrams the system would not take (full buffer, no route)."""
        self.receive_errors = 0
        self._rest = rest
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._receiver: Receiver | None = None
        self._buffer = bytearray(_LARGEST_DATAGRAM)

    @property
    def name(self) -> str:
        """The endpoint, as it is written."""
        return str(self.endpoint)

    @property
    def local(self) -> Address:
        """The address that the socket is bound to; port 0 before anything was sent from an ``udpout``."""
        if self._socket is None:
            raise LinkError(f"{self.name} is not open")
        address: Address = self._socket.getsockname()
        return address

    async def open(self, receiver: Receiver) -> None:
        """Resolve, make the socket, begin to read. Raises LinkError."""
        loop = asyncio.get_running_loop()
        listening = self.endpoint.kind == "udpin"
        try:
            family, _, _, _, address = (
                await loop.getaddrinfo(
                    self.endpoint.host,
                    self.endpoint.port,
                    type=socket.SOCK_DGRAM,
                    flags=socket.AI_PASSIVE if listening else 0,
                )
            )[0]
        except OSError as error:
            raise LinkError(f"{self.name}: the host cannot be resolved: {error}") from None
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if listening:
                # without SO_REUSEADDR on purpose: a second listener would take half of the datagrams in silence
                sock.bind(address)
            else:
                self.remote = tuple(address)
        except OSError as error:
            sock.close()
            raise LinkError(
                f"{self.name}: cannot listen there: {error.strerror or error}; is another ground station or bridge "
                "using the port?"
            ) from None
        self._socket = sock
        self._receiver = receiver
        loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        sock, receiver = self._socket, self._receiver
        if sock is None or receiver is None:
            return
        buffer = self._buffer
        for _ in range(_MAX_DRAIN):
            try:
                size, address = sock.recvfrom_into(buffer)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.receive_errors += 1
                break
            if self.remote is None or address[0] == self.remote[0]:
                receiver.received(bytes(buffer[:size]), address)
        receiver.drained()
        if self._rest > 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(sock.fileno())
            self._timer = loop.call_later(self._rest, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def send(self, data: bytes, address: Address) -> bool:
        """Hand one datagram to the system; False when it would not take it."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(data, address)
        except OSError:
            self.dropped += 1
            return False
        return True

    async def close(self) -> None:
        """Stop reading and close the socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None


def open_transport(endpoint: str | Endpoint, *, rest: float = 0.005) -> Transport:
    """The transport for an endpoint, not yet open. Raises EndpointError."""
    parsed = Endpoint.parse(endpoint) if isinstance(endpoint, str) else endpoint
    return UdpTransport(parsed, rest=rest)
