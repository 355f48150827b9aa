"""What a framework's app answers when something is wrong: JSON that says what, and a log line that says where."""

from __future__ import annotations

import logging
from typing import Any, Final

import orjson
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import Response

from petalbus.daemon.http.answers import Message, Receive, Scope, request_id

BODY: Final = "petalbus.body"
_REASON_BYTES: Final = 120

log: Final = logging.getLogger(__name__)


class Refused(HTTPException):
    """An error of ours that is answered in our shape, ``error`` being its stable code."""

    def __init__(self, status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.error = error


class Body:
    """Watches the body of one request: how much it is and how long its next piece takes."""

    def __init__(self, scope: Scope, receive: Receive, *, limit: int, patience: Any = None) -> None:
        self.limit = limit
        self._receive = receive
        self._patience = patience
        self._read = 0
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        self._declared = int(declared) if declared.isdigit() else 0

    async def receive(self) -> Message:
        """The next piece. Raises Refused with 413 when it is too much, with 408 when it does not come."""
        if self._declared > self.limit:
            raise self._too_large()
        message = await (self._patience(self._receive) if self._patience else self._receive())
        self._read += len(message.get("body", b""))
        if self._read > self.limit:
            raise self._too_large()
        return message

    def _too_large(self) -> Refused:
        return Refused(413, "body_too_large", f"the body may have {self.limit} bytes at most")


def answer_errors(app: FastAPI, *, petal: str | None = None) -> None:
    """Make an app answer its errors in our shape. ``petal``: named in them."""
    named = {} if petal is None else {"petal": petal}

    async def refused(request: Request, error: Refused) -> Response:
        told = {"detail": error.detail, "error": error.error, **named, "request_id": request_id(request.scope)}
        return _json(told, error.status_code, error.headers)

    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return _json({"detail": [_readable(one) for one in error.errors()]}, 422)

    async def invalid_websocket(websocket: WebSocket, error: WebSocketRequestValidationError) -> None:
        first = error.errors()[0]
        text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        await websocket.close(1008, text.encode()[:_REASON_BYTES].decode(errors="ignore"))

    async def failed(request: Request, _error: Exception) -> Response:
        # who runs the app has it raised again, and logs it
        told = {
            "detail": "Internal Server Error",
            "error": "handler_failed",
            **named,
            "request_id": request_id(request.scope),
        }
        return _json(told, 500)

    app.add_exception_handler(Refused, refused)  # type: ignore[arg-type]  # Starlette types all handlers alike
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]  # the same
    app.add_exception_handler(WebSocketRequestValidationError, invalid_websocket)  # type: ignore[arg-type]  # the same
    app.add_exception_handler(Exception, failed)


def _json(told: dict[str, Any], status: int, headers: Any = None) -> Response:
    body = orjson.dumps(told, default=_text, option=orjson.OPT_NON_STR_KEYS)
    return Response(body, status, headers=headers, media_type="application/json")


def _readable(error: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(error).items() if name != "url"}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value[:1000].decode(errors="replace")
    return str(value)
