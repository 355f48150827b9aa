"""Answers that are made without a framework: errors to HTTP requests and to websockets that are not accepted."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID: Final = "petalbus.request_id"
_HEADER: Final = b"x-request-id"
_MAX_ID: Final = 64
_numbers: Final = itertools.count(1)
_prefix: Final = secrets.token_hex(4)


class ClientGone(OSError):
    """Nobody is there to take the answer any more: what makes it can stop."""

    code = "client_gone"


def request_id(scope: Scope) -> str:
    """The id of a request: its own ``X-Request-ID`` when that is a short word, else a new one; the same every time."""
    known = scope.get(REQUEST_ID)
    if known is None:
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        known = given.decode("latin-1") if _is_word(given) else f"{_prefix}-{next(_numbers):x}"
        scope[REQUEST_ID] = known
    return str(known)


def _is_word(value: bytes) -> bool:
    return 0 < len(value) <= _MAX_ID and value.isascii() and value.replace(b"-", b"").replace(b"_", b"").isalnum()


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    error: str,
    detail: str,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    **more: Any,
) -> None:
    """Answer a request, or a websocket that is not accepted yet, with an error that programs and people can read."""
    told = {"detail": detail, "error": error, **more, "request_id": request_id(scope)}
    body = orjson.dumps(told, default=str)
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": detail[:100]})
            return
        kind = "websocket.http"
    await send({"type": f"{kind}.response.start", "status": status, "headers": head})
    if scope.get("method") == "HEAD":
        body = b""
    await send({"type": f"{kind}.response.body", "body": body, "more_body": False})
