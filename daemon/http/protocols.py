"""uvicorn's protocols with the patience of a server that has no proxy in front of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from petalbus.daemon.http.answers import ClientGone
from petalbus.daemon.http.options import HttpOptions

_DRAIN_SECONDS: Final = 2.0
_HEAD_BYTES: Final = 64 * 1024


def _refusal(status: str, error: str, detail: str) -> bytes:
    body = json.dumps({"detail": detail, "error": error})
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n{body}".encode("ascii")


_FULL: Final = _refusal("503 Service Unavailable", "too_many_connections", "too many connections are open here")
_LONG: Final = _refusal("431 Request Header Fields Too Large", "head_too_large", "the head is larger than 64 KiB")
_LATE: Final = _refusal("408 Request Timeout", "request_too_slow", "no request came in time")


class _PatientEvent(asyncio.Event):
    """An event that says whether a client takes what is sent; one that does not for long is cut off."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        super().__init__()
        self.set()
        self._transport = transport
        self._seconds = seconds

    async def wait(self) -> Any:
        if self.is_set():
            return True
        try:
            async with asyncio.timeout(self._seconds):
                return await super().wait()
        except TimeoutError:
            self._transport.abort()
            return await super().wait()  # the loss of the connection sets it


class _PatientFlow(FlowControl):
    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        super().__init__(transport)
        self._is_writable_event = _PatientEvent(transport, seconds)


class PatientHttp(HttpToolsProtocol):
    """HTTP within time limits."""

    options: HttpOptions
    _head_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    _head_is_whole = True
    _head_bytes = 0
    _refused = False
    _body_is_whole = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a request; one connection too many is told so."""
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.options.write_timeout)
        if len(self.connections) > self.options.connections:
            transport.write(_FULL)
            transport.close()
            return
        self._head_timer = self.loop.call_later(self.options.head_timeout, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._head_came()
        self._drained()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a head that has begun must become whole in time."""
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_is_whole:
            return
        self._head_bytes += len(data)
        if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self._refused = True  # and what still comes is forgotten for a moment, as below
            self.transport.write(_LONG)
            self.transport.write_eof()
            self._drain_timer = self.loop.call_later(_DRAIN_SECONDS, self.transport.close)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.options.head_timeout, self._late)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_is_whole = self._body_is_whole = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._body_is_whole = True
        self._drained()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is whole, perhaps before its request is."""
        super().on_response_complete()
        if not self._body_is_whole and self._drain_timer is None:
            # It was answered before it was read. Closing now would make the client's system throw the answer away
            # while it still sends; so the rest is read and forgotten for a moment.
            self._drain_timer = self.loop.call_later(_DRAIN_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head of a request is whole."""
        self._head_came()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        plain = cycle.send

        async def send(message: Any) -> None:
            # uvicorn's own drops it without a word, and a generator that only yields would hold the loop for ever
            if cycle.disconnected:
                raise ClientGone("the client is gone")
            await plain(message)

        cycle.send = send  # type: ignore[method-assign]  # there is no other place to say so
        super()._start_asgi_task(cycle, app)

    def _head_came(self) -> None:
        self._head_is_whole = True
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drained(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def _late(self) -> None:
        self._head_timer = None
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:  # not into the middle of an answer
            self._head_timer = self.loop.call_later(self.options.head_timeout, self._late)
        elif not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


class PatientWebSocket(WebSocketsSansIOProtocol):
    """A websocket whose client must read."""

    options: HttpOptions

    def connection_made(self, transport: Any) -> None:
        """Watch whether the client reads."""
        super().connection_made(transport)
        self.writable = _PatientEvent(transport, self.options.write_timeout)


def patient_protocols(options: HttpOptions) -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
    """The classes for HTTP and for websockets, with the limits of ``options`` built in."""
    own = {"options": options}
    return type("Http", (PatientHttp,), own), type("WebSocket", (PatientWebSocket,), own)
