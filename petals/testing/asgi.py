"""A websocket client for an ASGI application in this process: no socket, the petal's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class WebSocketClosed(ConnectionError):
    """The application has closed (or refused) the websocket. ``code`` is the websocket's close code."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(f"the websocket was closed with {code}" + (f": {reason}" if reason else ""))


class WebSocket:
    """``async with WebSocket(app, "/echo") as socket``: a websocket at ``path`` of ``app``.

    Raises WebSocketClosed when it is refused or closed, TimeoutError when nothing comes within ``timeout`` seconds.
    """

    def __init__(self, app: Application, path: str, *, timeout: float = 5.0) -> None:
        self._app = app
        self._timeout = timeout
        path, _, query = path.partition("?")
        self._scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"petal")],
            "client": ("127.0.0.1", 0),
            "server": ("petal", 80),
            "subprotocols": [],
            "state": {},
            "extensions": {},
        }
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="petal-websocket")
        self._to_app.put_nowait({"type": "websocket.connect"})
        try:
            await self._next("websocket.accept")
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def send_text(self, text: str) -> None:
        """Send a text frame."""
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary frame."""
        self._to_app.put_nowait({"type": "websocket.receive", "bytes": data})

    async def send_json(self, value: Any) -> None:
        """Send a JSON value as text."""
        await self.send_text(json.dumps(value))

    async def receive_text(self) -> str:
        """The next text frame."""
        return str((await self._next("websocket.send"))["text"])

    async def receive_bytes(self) -> bytes:
        """The next binary frame."""
        return bytes((await self._next("websocket.send"))["bytes"])

    async def receive_json(self) -> Any:
        """The JSON value in the next frame."""
        message = await self._next("websocket.send")
        return json.loads(message.get("text") or message["bytes"])

    async def close(self, code: int = 1000) -> None:
        """Close it, and wait for the application to be done with it. Raises what the application raised."""
        task, self._task = self._task, None
        if task is None:
            return
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        done, _ = await asyncio.wait([task], timeout=self._timeout)
        if not done:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise TimeoutError(f"the handler of {self._scope['path']} went on for {self._timeout:g} s after the end")
        task.result()

    async def _serve(self) -> None:
        try:
            await self._app(self._scope, self._to_app.get, self._from_app.put)
        finally:
            self._from_app.put_nowait({"type": "websocket.close", "code": 1006, "reason": "its handler has ended"})

    async def _next(self, kind: str) -> Message:
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._from_app.get()
        except TimeoutError:
            raise TimeoutError(f"{self._scope['path']} sent nothing within {self._timeout:g} s") from None
        if message["type"] == "websocket.close":
            raise WebSocketClosed(int(message.get("code", 1000)), str(message.get("reason") or ""))
        if message["type"] != kind:
            raise AssertionError(f"{self._scope['path']} sent {message['type']}, not {kind}")
        return message
