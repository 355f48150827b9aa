"""One connection to the server: an asyncio protocol on hiredis' parser and packer.

Whatever is sent within one event-loop tick leaves in one write. Answers arrive in the order of the requests, so a
request is a waiter in a queue; there are no tasks and no locks here. Nothing is retried: a lost connection fails every
waiter, and the layer above decides what may be sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Any, Final

import hiredis

from petalbus.daemon.bus.errors import BusUnavailable, OutcomeUnknown
from petalbus.daemon.bus.url import Address

Waiter = Callable[[Any], None]
"""Called once with the reply, with a ServerError that the server sent, or with OutcomeUnknown."""

pack: Final = hiredis.pack_command
_NOTHING: Final = object()


class ServerError(Exception):
    """An error reply. ``prefix`` is its first word, such as ``NOGROUP`` or ``OOM``."""

    @property
    def prefix(self) -> str:
        """The kind of the error, in capitals."""
        return str(self).split(" ", 1)[0]


class Connection(asyncio.Protocol):
    """A connection that is open. ``closed`` is done once it is not any more.

    ``patience`` is the longest time in seconds (monotonic) that an answer may take before the connection counts as
    dead; a blocking read needs more than its block.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, patience: float) -> None:
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._patience = patience
        self._reader = hiredis.Reader(notEnoughData=_NOTHING, replyError=ServerError)
        self._waiters: deque[Waiter] = deque()
        self._out: list[bytes] = []
        self._flushing = False
        self._transport: asyncio.WriteTransport | None = None
        self._last_progress = time.monotonic()
        self._watch: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._waiters)

    @property
    def broken(self) -> bool:
        """True once the connection is lost, or about to be."""
        return self._transport is None or self._transport.is_closing()

    @property
    def unwritten(self) -> int:
        """Bytes that the server has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, packed: bytes, waiter: Waiter, *, more: bool = False, replies: int = 1) -> None:
        """Send one packed request, or ``replies`` of them in one piece. ``waiter`` is always called, once for each
        reply, also when the connection is lost.

        An idle connection sends at once; on a busy one everything of this tick leaves in one write. ``more``: another
        request follows right away, or ``flush``: keep this one for the same write.
        """
        transport = self._transport
        if transport is None:
            for _ in range(replies):
                waiter(OutcomeUnknown("the connection is closed; nothing was sent"))
            return
        idle = not self._waiters
        if idle:
            self._last_progress = time.monotonic()
            if self._watch is None:
                self._watch = self._loop.call_later(self._patience, self._check)
        if replies == 1:
            self._waiters.append(waiter)
        else:
            self._waiters.extend(repeat(waiter, replies))
        if idle and not more and not self._out:
            transport.write(packed)
            return
        if not more and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)
        self._out.append(packed)

    def call(self, *args: bytes | str | float) -> asyncio.Future[Any]:
        """Send a command; the future gives its reply, or raises ServerError or OutcomeUnknown."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(pack(args), lambda reply: settle(future, reply))
        return future

    def close(self, reason: BaseException | None = None) -> None:
        """Close now; requests without an answer fail."""
        self._error = self._error or reason
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio's classes

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol: hand every complete reply to its waiter."""
        reader, waiters = self._reader, self._waiters
        reader.feed(data)
        while True:
            try:
                reply = reader.gets()
            except hiredis.ProtocolError as error:
                self.close(BusUnavailable(f"the server does not speak the Redis protocol: {error}"))
                return
            if reply is _NOTHING:
                break
            waiters.popleft()(reply)
        self._last_progress = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol: fail what is unanswered, then tell the owner."""
        self._transport = None
        self._out.clear()
        if self._watch is not None:
            self._watch.cancel()
        cause = self._error or exc or "closed by the server"
        lost = OutcomeUnknown(f"connection lost before the answer came ({cause})")
        while self._waiters:
            self._waiters.popleft()(lost)
        if not self.closed.done():
            self.closed.set_result(None)

    def flush(self) -> None:
        """Write now what this tick has gathered."""
        self._flushing = False
        if self._transport is not None and self._out:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def _check(self) -> None:
        self._watch = None
        if not self._waiters:
            return
        left = self._last_progress + self._patience - time.monotonic()
        if left <= 0:
            self.close(BusUnavailable(f"the server did not answer for {self._patience:g} s"))
        else:
            self._watch = self._loop.call_later(left, self._check)


def settle(future: asyncio.Future[Any], reply: Any) -> None:
    """Put a reply or an error into a future that may have been cancelled meanwhile."""
    if future.done():
        return
    if isinstance(reply, BaseException):
        future.set_exception(reply)
    else:
        future.set_result(reply)


async def open_connection(address: Address, *, timeout: float, patience: float) -> Connection:
    """Connect and authenticate. Raises BusUnavailable, or ServerError when the server refuses the user."""
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        return Connection(loop, patience=patience)

    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            if address.path is not None:
                _, connection = await loop.create_unix_connection(make, address.path)
            else:
                context = address.ssl_context()
                name = address.host if context is not None else None
                _, connection = await loop.create_connection(
                    make, address.host, address.port, ssl=context, server_hostname=name
                )
            if address.password is not None:
                await connection.call("AUTH", address.username or "default", address.password)
            return connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        if not isinstance(error, OSError | TimeoutError):
            raise
        raise BusUnavailable(f"no server at {address.shown}: {str(error) or type(error).__name__}") from error
