"""Passes requests and websockets on to a petal that has a process of its own, over its unix socket, as they come.

Nothing is collected: a body travels in pieces in both directions, and each side waits for the other. Every request has
a connection of its own: on a unix socket that costs little, and a petal that was started again is reached at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h11
import orjson
from starlette.exceptions import HTTPException

from petalbus.daemon.http.answers import ClientGone, Receive, Scope, Send, refuse, request_id
from petalbus.daemon.http.calls import SERVICE_RESTART
from petalbus.daemon.http.options import HttpOptions

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_PIECE: Final = 64 * 1024
_CONNECT_SECONDS: Final = 5.0
_MOST_HEADER_BYTES: Final = 64 * 1024
_NOT_PASSED_ON: Final = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect x-request-id"
    b" x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)
_OF_THE_HANDSHAKE: Final = (b"sec-websocket-", b"host", b"content-length")

log: Final = logging.getLogger(__name__)


class Relay:
    """The ASGI app of a petal in a process of its own."""

    def __init__(self, name: str, socket: Path, *, options: HttpOptions | None = None) -> None:
        self.name = name
        self._socket = str(socket)
        self._options = options or HttpOptions()
        self._counts = {"relayed": 0, "unreachable": 0, "broken": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        self._counts["relayed"] += 1
        if body := scope.get("petalbus.body"):
            body.limit = self._options.upload_limit  # which route it is for, and its limit, is known over there
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def openapi(self) -> Mapping[str, Any]:
        """The petal's description, asked from its process. Raises OSError or ValueError."""
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": f"/petals/{self.name}/.openapi",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        pieces: list[bytes] = []
        status = 0

        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            pieces.append(message.get("body", b""))

        await self._request(scope, receive, send)
        if status != 200:
            raise OSError(f"its process answers {status}")
        described: dict[str, Any] = orjson.loads(b"".join(pieces))
        return described

    def statistics(self) -> dict[str, Any]:
        """Counters."""
        return {"own_process": True, **self._counts}

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=_PIECE)
        except (OSError, TimeoutError):
            await self._unreachable(scope, send)
            return
        uploading: asyncio.Task[None] | None = None
        started = False
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADER_BYTES)
            request = h11.Request(method=scope["method"], target=_target(scope), headers=self._headers(scope))
            writer.write(connection.send(request) or b"")
            uploading = asyncio.create_task(
                _upload(connection, writer, receive), name=f"petalbus.http.relay.{self.name}"
            )
            async for event in _events(connection, reader):
                if isinstance(event, h11.Response):
                    started = True
                    headers = [pair for pair in event.headers if pair[0] not in _NOT_PASSED_ON]
                    await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
                elif isinstance(event, h11.Data):
                    await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                elif isinstance(event, h11.EndOfMessage):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
            await self._cut_off(scope, send, uploading, started=started)
        except ClientGone:
            raise
        except (OSError, h11.RemoteProtocolError):
            await self._cut_off(scope, send, uploading, started=started)
        finally:
            if uploading is not None:
                uploading.cancel()
                await asyncio.gather(uploading, return_exceptions=True)
            writer.transport.abort()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        from websockets.asyncio.client import unix_connect  # noqa: PLC0415  # only who has a petal like this needs it
        from websockets.exceptions import InvalidStatus, WebSocketException  # noqa: PLC0415  # the same
        from websockets.typing import Subprotocol  # noqa: PLC0415  # the same

        host = next((value for name, value in scope["headers"] if name == b"host"), b"localhost").decode("latin-1")
        passed = [pair for pair in self._headers(scope) if not pair[0].startswith(_OF_THE_HANDSHAKE)]
        try:
            there = await unix_connect(
                self._socket,
                f"ws://{host}{_target(scope).decode('latin-1')}",
                additional_headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in passed],
                subprotocols=[Subprotocol(word) for word in scope.get("subprotocols", ())] or None,
                user_agent_header=None,
                compression=None,
                open_timeout=_CONNECT_SECONDS,
                ping_interval=None,
                max_size=self._options.websocket_message,
                max_queue=8,
                proxy=None,
            )
        except InvalidStatus as error:
            await _pass_refusal(scope, send, error.response)
            return
        except (OSError, TimeoutError, WebSocketException):
            await self._unreachable(scope, send)
            return
        async with there:
            message = await receive()
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept", "subprotocol": there.subprotocol, "headers": []})
                await self._both_ways(there, receive, send)

    async def _both_ways(self, there: ClientConnection, receive: Receive, send: Send) -> None:
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415  # is loaded already

        async def forth() -> None:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    await there.close(_sendable(message.get("code", 1005)), message.get("reason") or "")
                    return
                text = message.get("text")
                with suppress(ConnectionClosed):  # the other direction sees it, and says so
                    await there.send(message["bytes"] if text is None else text)

        going = asyncio.create_task(forth(), name=f"petalbus.http.relay.{self.name}")
        try:
            async for data in there:
                await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
        except ConnectionClosed:
            pass
        finally:
            ended_here = going.done()
            going.cancel()
            await asyncio.wait([going])
        if not ended_here:
            code = there.close_code
            if code in (None, 1006):  # no word of farewell: the process ended
                self._counts["broken"] += 1
                code = SERVICE_RESTART
            await send({"type": "websocket.close", "code": _sendable(code), "reason": there.close_reason or ""})

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        headers = [(name, value) for name, value in scope["headers"] if name not in _NOT_PASSED_ON]
        named = {name for name, _ in scope["headers"]}
        # no `connection: close`: a petal that answers before it has read all would then cut off its own answer
        if scope["type"] == "http" and b"transfer-encoding" in named and b"content-length" not in named:
            headers.append((b"transfer-encoding", b"chunked"))
        if client := scope.get("client"):
            headers.append((b"x-forwarded-for", str(client[0]).encode()))
        headers.append((b"x-forwarded-proto", str(scope.get("scheme", "http")).encode()))
        host = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
        headers.append((b"x-forwarded-host", host))
        headers.append((b"x-request-id", request_id(scope).encode()))
        return headers

    async def _unreachable(self, scope: Scope, send: Send) -> None:
        self._counts["unreachable"] += 1
        text = f"the process of petal {self.name!r} does not answer; it is being started again"
        retry = [(b"retry-after", b"1")]
        await refuse(scope, send, 503, "petal_unavailable", text, headers=retry, petal=self.name, state="restarting")

    async def _cut_off(self, scope: Scope, send: Send, uploading: asyncio.Task[None] | None, *, started: bool) -> None:
        """The connection ended before the answer did: because the petal's process did, or the client's body."""
        if uploading is not None and uploading.done() and not uploading.cancelled():
            error: Any = uploading.exception()
            if error is not None and not started and hasattr(error, "status_code"):
                close = [(b"connection", b"close")] if error.headers else []
                await refuse(scope, send, error.status_code, error.error, error.detail, headers=close)
                return
        self._counts["broken"] += 1
        log.warning("petal %s: its process ended in the middle of %s %s", self.name, scope["method"], scope["path"])
        if not started:  # else the answer stays incomplete, and the client sees that
            text = f"the process of petal {self.name!r} ended before it answered; whether it did the work is unknown"
            await refuse(scope, send, 502, "petal_ended", text, petal=self.name)


async def _upload(connection: h11.Connection, writer: asyncio.StreamWriter, receive: Receive) -> None:
    try:
        with suppress(ConnectionError):  # the petal reads no more: it has answered, or is gone; who reads it sees which
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                if message.get("body"):
                    writer.write(connection.send(h11.Data(data=message["body"])) or b"")
                more = message.get("more_body", False)
                if not more:
                    writer.write(connection.send(h11.EndOfMessage()) or b"")
                await writer.drain()
        while message["type"] != "http.disconnect":
            message = await receive()
        writer.transport.abort()  # the client is gone: over there that is seen as it would be here
    except HTTPException:  # the body is too slow or too large
        writer.transport.abort()
        raise


async def _events(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return
        else:
            yield event


async def _pass_refusal(scope: Scope, send: Send, response: Any) -> None:
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers: Iterable[tuple[bytes, bytes]] = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.raw_items()
        if name.lower().encode("latin-1") not in (*_NOT_PASSED_ON, b"date", b"content-length")
    ]
    await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": [*headers]})
    await send({"type": "websocket.http.response.body", "body": response.body or b"", "more_body": False})


def _target(scope: Scope) -> bytes:
    path: bytes = scope.get("raw_path") or scope["path"].encode("latin-1")
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path


def _sendable(code: int | None) -> int:
    """A close code as it may be sent: 1005 and 1006 only say that there was none."""
    return 1000 if code in (None, 1005, 1006) else code
