"""The requests and websockets that are open: counted, limited, and ended in order without touching anybody else's."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from petalbus.daemon.http.answers import App, ClientGone, Message, Receive, Scope, Send, refuse

GOING_AWAY: Final = 1001
SERVICE_RESTART: Final = 1012
_CLOSE_SECONDS: Final = 1.0


class Closed(OSError):
    """The websocket was closed from our side; Starlette makes a WebSocketDisconnect of it."""

    code = "websocket_closed"


class Call:
    """One open request or websocket, and the task that works on it."""

    __slots__ = ("_receive", "_send", "closing", "ended", "is_websocket", "started", "task")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_websocket = scope["type"] == "websocket"
        self.task = asyncio.current_task()
        self.started = False
        self.closing = False
        self.ended = False
        """True: we have cancelled it."""
        self._receive = receive
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message on to the client. Raises Closed when it was closed from our side."""
        if self.closing and self.is_websocket:
            raise Closed("this websocket was closed by the server")
        self.started = True
        if message["type"] == "websocket.close":
            self.closing = True
        await self._send(message)

    async def close(self, code: int, reason: str) -> None:
        """Tell the client that it ends here; its handler reads that as a disconnect."""
        if self.closing or not self.is_websocket:
            return
        self.closing = True
        # a client that does not take anything any more is given up a little later, with its task
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def end(self) -> None:
        """Cancel what still works on it."""
        if self.task is not None and not self.task.done():
            self.ended = True
            self.task.cancel("ended by the server")


class Calls:
    """All that is open at one place. ``websockets``: how many may be open at a time; None: no limit of its own."""

    def __init__(self, *, websockets: int | None = None) -> None:
        self.open: set[Call] = set()
        self.requests = 0
        self.websockets_opened = 0
        self.websockets_refused = 0
        self._websockets = 0
        self._limit = websockets
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Run an app for one request or websocket."""
        call = Call(scope, receive, send)
        if not call.is_websocket:
            self.requests += 1
        elif self._limit is not None and self._websockets >= self._limit:
            self.websockets_refused += 1
            text = f"{self._websockets} websockets are open here, and no more are allowed"
            await refuse(scope, send, 503, "too_many_websockets", text, headers=[(b"retry-after", b"5")])
            return
        else:
            self.websockets_opened += 1
            self._websockets += 1
        self.open.add(call)
        self._idle.clear()
        try:
            await app(scope, receive, call.send)
        except ClientGone:
            return
        except Closed:
            if not call.closing:
                raise
        except asyncio.CancelledError:
            if not call.ended or call.task is None or call.task.uncancel() > 0:
                raise
            if not call.started:
                await refuse(scope, send, 503, "stopped", "what answers here was stopped", headers=[_RETRY])
        finally:
            self.open.discard(call)
            self._websockets -= call.is_websocket
            if not self.open:
                self._idle.set()

    async def drain(self, code: int, reason: str, *, timeout: float) -> int:
        """Close the websockets, let requests finish for ``timeout`` seconds, end the rest; returns how many."""
        me = asyncio.current_task()
        mine = {call for call in self.open if call.task is me}  # a request that stops what it runs in
        await asyncio.gather(*(call.close(code, reason) for call in list(self.open - mine)))
        waiting = [call.task for call in self.open - mine if call.task is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)
        left = list(self.open - mine)
        for call in left:
            call.end()
        if left:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await asyncio.wait([call.task for call in left if call.task is not None])
        return len(left)

    def statistics(self) -> dict[str, Any]:
        """How much was and is open."""
        return {
            "requests": self.requests,
            "requests_open": len(self.open) - self._websockets,
            "websockets_open": self._websockets,
            "websockets_opened": self.websockets_opened,
            "websockets_refused": self.websockets_refused,
        }


_RETRY: Final = (b"retry-after", b"1")
