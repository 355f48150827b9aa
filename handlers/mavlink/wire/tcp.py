"""TCP below a link: connecting to one place again and again, or letting others connect."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from petalbus.handlers.mavlink.errors import LinkError
from petalbus.handlers.mavlink.wire.endpoint import Endpoint
from petalbus.handlers.mavlink.wire.line import Line
from petalbus.handlers.mavlink.wire.pace import SocketPace
from petalbus.handlers.mavlink.wire.transport import MAX_WAITING_BYTES, Address, LineTransport, Opened, Receiver

log = logging.getLogger(__name__)

_CONNECT_S: Final = 5.0
_SEND_BUFFER: Final = 64 * 1024
_MAX_CLIENTS: Final = 16
_ACCEPT_AGAIN_S: Final = 1.0
_DEAD_AFTER_MS: Final = 30_000


class TcpClient(LineTransport):
    """Connects to one place; nobody need listen there yet."""

    def __init__(self, endpoint: Endpoint, *, rest: float = 0.005) -> None:
        """``rest`` is the pause after each draining, in seconds; 0 for none."""
        super().__init__(endpoint, rest=rest)

    async def _connect(self) -> Opened:
        loop = asyncio.get_running_loop()
        try:
            places = await loop.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(f"{self.endpoint.host!r} is no host name ({error})") from None
        problem: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in places:
            sock = socket.socket(family, kind, protocol)
            try:
                _tune(sock)
                await _dial(sock, address)
            except OSError as error:  # a timeout is one
                sock.close()
                # asyncio's own texts do not say why
                reason = os.strerror(error.errno) if error.errno else f"no answer within {_CONNECT_S:g} s"
                problem = OSError(reason)
            except BaseException:
                sock.close()
                raise
            else:
                return Opened(sock.fileno(), SocketPace(sock), _closer(sock))
        raise problem


class TcpServer:
    """Lets up to 16 others connect. One that does not read what it gets is dropped."""

    def __init__(self, endpoint: Endpoint, *, rest: float = 0.005) -> None:
        """``rest`` is the pause after each draining, in seconds; 0 for none."""
        self.endpoint = endpoint
        self.connections = 0
        """How many connected so far."""
        self.refused = 0
        """How many were turned away because 16 were there."""
        self._dropped = 0
        self._rest = rest
        self._socket: socket.socket | None = None
        self._clients: dict[Address, tuple[socket.socket, Line]] = {}
        self._receiver: Receiver | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The endpoint, as it is written."""
        return str(self.endpoint)

    @property
    def local(self) -> Address:
        """The address that it listens at."""
        if self._socket is None:
            raise LinkError(f"{self.name} is not open")
        address: Address = self._socket.getsockname()
        return address

    @property
    def dropped(self) -> int:
        """Frames that did not leave, because a client did not read or went away."""
        return self._dropped + sum(line.dropped for _, line in self._clients.values())

    def is_datagram(self, address: Address) -> bool:  # noqa: ARG002  # the same for every address
        """No."""
        return False

    def channel(self, address: Address) -> int:  # noqa: ARG002  # there is one
        """One wire."""
        return 0

    def targets(
        self,
        route: Address | None,
        speaking: Sequence[Address],  # noqa: ARG002  # who connects is served, also when it only listens
    ) -> Sequence[Address]:
        """The client of the route, while it is connected; else all clients."""
        return (route,) if route in self._clients else [*self._clients]

    def describe(self) -> list[dict[str, Any]]:
        """One entry: state and counters."""
        return [
            {
                "endpoint": self.name,
                "state": "open" if self._socket is not None else "closed",
                "clients": len(self._clients),
                "connections": self.connections,
                "refused": self.refused,
                "dropped": self.dropped,
                "waiting_bytes": sum(line.waiting for _, line in self._clients.values()),
                "overtaken": sum(line.overtaken for _, line in self._clients.values()),
            }
        ]

    async def open(self, receiver: Receiver) -> None:
        """Resolve, listen. Raises LinkError."""
        loop = asyncio.get_running_loop()
        try:
            family, _, _, _, address = (
                await loop.getaddrinfo(
                    self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )[0]
        except (OSError, UnicodeError) as error:
            raise LinkError(f"{self.name}: the host cannot be resolved: {error}") from None
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections do not hold the port
            sock.bind(address)
            sock.listen(_MAX_CLIENTS)
        except OSError as error:
            sock.close()
            raise LinkError(
                f"{self.name}: cannot listen there: {error.strerror or error}; is another program using the port?"
            ) from None
        self._socket = sock
        self._receiver = receiver
        loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        self._timer = None
        while self._socket is not None:
            try:
                client, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # too many open files: the listening socket stays readable, so look again after a while
                log.warning("%s: nobody can connect for now: %s", self.name, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket.fileno())
                self._timer = loop.call_later(_ACCEPT_AGAIN_S, self._listen_again)
                return
            if len(self._clients) >= _MAX_CLIENTS:
                self.refused += 1
                client.close()
                continue
            self._welcome(client, address)

    def _listen_again(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _welcome(self, client: socket.socket, peer: Address) -> None:
        assert self._receiver is not None, "open sets it"
        try:
            _tune(client)
        except OSError:
            client.close()  # it is gone already
            return
        self.connections += 1
        address = (*peer, self.connections)
        line = Line(
            client.fileno(),
            address,
            self._receiver,
            pace=SocketPace(client),
            rest=self._rest,
            limit=MAX_WAITING_BYTES,
            end_when_full=True,
            on_end=lambda reason: self._leave(address, reason),
        )
        self._clients[address] = client, line
        log.info("%s: %s connected", self.name, peer)

    def _leave(self, address: Address, reason: str) -> None:
        client, line = self._clients.pop(address)
        line.stop()
        self._dropped += line.dropped
        client.close()
        log.info("%s: %s left: %s", self.name, address[:-1], reason)

    def send(self, data: bytes, address: Address) -> bool:
        """Send one frame to a client; False when it was dropped."""
        client = self._clients.get(address)
        return client is not None and client[1].send(data)

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for address in [*self._clients]:
            self._leave(address, "the link was closed")


async def _dial(sock: socket.socket, address: Any) -> None:
    async with asyncio.timeout(_CONNECT_S):
        await asyncio.get_running_loop().sock_connect(sock, address)
    if sock.getsockname() == sock.getpeername():
        # a port of the range from which the system takes ours, with nobody there: it met itself
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _tune(sock: socket.socket) -> None:
    """Small frames leave at once; a dead other end is noticed within half a minute, whether we send or not."""
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # what waits in the system is old when it arrives: without this it grows to megabytes
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _DEAD_AFTER_MS),
    ):
        if hasattr(socket, name):  # not every system has them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _closer(sock: socket.socket) -> Any:
    async def close() -> None:
        sock.close()

    return close
