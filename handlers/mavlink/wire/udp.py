"""UDP below a link: listening, sending to one place, or broadcasting."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.errors import LinkError
from petalbus.handlers.mavlink.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.wire.transport import Address, Receiver

log = logging.getLogger(__name__)

_MAX_DRAIN: Final = 512
_RECEIVE_BUFFER: Final = 1 << 20
_BUSY: Final = 1000.0
"""Datagrams a second."""
_LARGEST_DATAGRAM: Final = 16 << 10
"""What is longer is no MAVLink, and is cut: looking for frames in it would take long."""
_LONGEST_DRAIN_S: Final = 0.01


class UdpTransport:
    """UDP, listening (``udpin``), sending to one place (``udpout``) or to all (``udpbcast``).

    It reads on a plan of its own: everything that is there at once, then a rest. The first datagram after a pause
    is seen immediately, a busy link wakes the process at most once a rest (200 times a second, and half as often when
    it has been busy for a second), and the kernel's buffer holds what comes meanwhile.
    """

    def __init__(self, endpoint: Endpoint, *, rest: float = 0.005) -> None:
        """``rest`` is the pause after each draining, in seconds; 0 for none."""
        self.endpoint = endpoint
        self.remote: Address | None = None
        """Where an ``udpout`` and an ``udpbcast`` send to, once they are open."""
        self.dropped = 0
        """Datagrams the system would not take (full buffer, no route)."""
        self.receive_errors = 0
        self._rest = rest
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._receiver: Receiver | None = None
        self._buffer = bytearray(_LARGEST_DATAGRAM)
        self._view = memoryview(self._buffer)
        self._counted = 0
        self._counted_from = float("-inf")
        self._busy = False

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

    def is_datagram(self, address: Address) -> bool:  # noqa: ARG002  # the same for every address
        """Yes."""
        return True

    def channel(self, address: Address) -> int:  # noqa: ARG002  # there is one
        """One wire."""
        return 0

    def targets(self, route: Address | None, speaking: Sequence[Address]) -> Sequence[Address]:
        """An ``udpout`` has one place. A broadcast goes to all as long as no one system is meant."""
        if self.endpoint.kind == "udpout" and self.remote is not None:
            return (self.remote,)
        if route is not None:
            return (route,)
        return speaking if self.remote is None else (self.remote,)

    def describe(self) -> list[dict[str, Any]]:
        """One entry: state and counters."""
        return [
            {
                "endpoint": self.name,
                "state": "open" if self._socket is not None else "closed",
                "dropped": self.dropped,
                "receive_errors": self.receive_errors,
            }
        ]

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
        except (OSError, UnicodeError) as error:
            raise LinkError(f"{self.name}: the host cannot be resolved: {error}") from None
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if listening:
                # without SO_REUSEADDR on purpose: a second listener would take half of the datagrams in silence
                sock.bind(address)
            else:
                if self.endpoint.kind == "udpbcast":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                self.remote = tuple(address)
        except OSError as error:
            sock.close()
            raise LinkError(
                f"{self.name}: cannot listen there: {error.strerror or error}; is another ground station or "
                "bridge using the port?"
            ) from None
        self._socket = sock
        self._receiver = receiver
        loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        """Something came after a pause. From now on it is looked for now and then, until nothing comes any more."""
        if self._rest > 0 and self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._drain() and self._rest > 0:
            self._look_later()
        elif self._rest > 0:
            self._listen()

    def _look(self) -> None:
        self._timer = None
        if self._drain():
            self._look_later()
        else:
            self._listen()

    def _look_later(self) -> None:
        if self._socket is not None:
            self._timer = asyncio.get_running_loop().call_later(self._pause(), self._look)

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def _pause(self) -> float:
        """A link that has been busy for a second is looked at half as often: there it is the looking that costs."""
        now = time.monotonic()
        if now - self._counted_from >= 1.0:
            self._busy = self._counted > _BUSY * (now - self._counted_from)
            self._counted, self._counted_from = 0, now
        return 2 * self._rest if self._busy else self._rest

    def _drain(self) -> int:
        """Take in all that is there; how many datagrams that were."""
        sock, receiver = self._socket, self._receiver
        if sock is None or receiver is None:
            return 0
        buffer, view = self._buffer, self._view
        only = self.remote[0] if self.remote is not None and self.endpoint.kind == "udpout" else None
        count = 0
        until = time.monotonic() + _LONGEST_DRAIN_S
        try:
            while count < _MAX_DRAIN and (not count or time.monotonic() < until):
                try:
                    size, address = sock.recvfrom_into(buffer)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    self.receive_errors += 1
                    break
                count += 1
                if only is None or address[0] == only:
                    receiver.received(view[:size].tobytes(), address)
            if count:
                receiver.drained()
        except Exception:  # a fault of ours further up: the link must go on being read
            log.exception("%s: what came could not be taken in", self.name)
        self._counted += count
        return count

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
