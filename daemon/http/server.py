"""uvicorn inside of a loop that is somebody else's: no signal handlers, no logging set up, no polling.

uvicorn's own ``serve`` wakes ten times a second; here its protocols are used on sockets of ours, and what it leaves to
a proxy in front is added: a time limit for the head of a request, for a client that does not read its answer, and a
limit of connections.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.http.answers import App
from petalbus.daemon.http.calls import GOING_AWAY, Calls
from petalbus.daemon.http.options import HttpOptions

_BACKLOG: Final = 128
_MAX_UNIX_PATH: Final = 107
_CANCEL_SECONDS: Final = 1.0

log: Final = logging.getLogger(__name__)


async def tcp_listener(host: str, port: int) -> socket.socket:
    """A socket that listens already: who connects before the server is loaded waits a moment. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)  # noqa: FBT003  # the socket's own signature
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each connection inherits it
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return listener


def unix_listener(path: Path) -> socket.socket:
    """A unix socket that only this user can connect to, in a directory that only this user can enter.

    What a process before us left there is removed. Raises OSError when the path is too long or something else is there.
    """
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise OSError(f"the socket path {path} is longer than {_MAX_UNIX_PATH} bytes; choose a shorter data directory")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} is in the way: it is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)  # noqa: FBT003  # the socket's own signature
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """``http://host:port`` of a listening TCP socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """Serves an app on a listening socket, on the running loop, until ``stop``."""

    def __init__(self, app: App, listener: socket.socket, *, options: HttpOptions, calls: Calls | None = None) -> None:
        self.listener = listener
        self._app = app
        self._options = options
        self._calls = calls
        """What closes the websockets in order; without it they are cut off."""
        self._uvicorn: Any = None
        self._behind = listener.family == socket.AF_UNIX

    async def start(self) -> None:
        """Load uvicorn (in a thread) and accept."""
        self._uvicorn = await asyncio.to_thread(self._load)
        await self._uvicorn.startup(sockets=[self.listener])

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Accept nothing more, close websockets with 1001, give requests ``timeout`` seconds, cut off the rest."""
        running = self._uvicorn
        if running is None or not running.started:
            self.listener.close()
            return
        for server in running.servers:
            server.close()
        self.listener.close()
        state = running.server_state
        for connection in list(state.connections):
            if hasattr(connection, "cycle"):  # HTTP: closes at once, or after the answer that is being made
                connection.shutdown()
        if self._calls is not None:
            left = await self._calls.drain(GOING_AWAY, "the server stops", timeout=timeout)
            if left:
                log.warning("%d requests did not finish within %g s and were ended", left, timeout)
        elif state.tasks:
            await asyncio.wait(list(state.tasks), timeout=timeout)
        for connection in list(state.connections):
            connection.shutdown()
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=_CANCEL_SECONDS)
        for connection in list(state.connections):
            connection.transport.abort()

    def statistics(self) -> dict[str, int]:
        """Connections that are open."""
        return {"connections": len(self._uvicorn.server_state.connections) if self._uvicorn is not None else 0}

    def _load(self) -> Any:
        import uvicorn  # noqa: PLC0415  # heavy: this runs in a thread

        from petalbus.daemon.http.protocols import patient_protocols  # noqa: PLC0415  # uvicorn comes with it

        http, websocket = patient_protocols(self._options)
        config = uvicorn.Config(
            self._app,
            http=http,
            ws=websocket,
            ws_max_size=self._options.websocket_message,
            ws_ping_interval=None if self._behind else self._options.websocket_ping,
            ws_ping_timeout=None if self._behind else self._options.websocket_ping,
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            # only the daemon reaches a unix socket of ours: what it says about its client is true
            proxy_headers=self._behind,
            forwarded_allow_ips="*",
            server_header=False,
            date_header=False,
            timeout_keep_alive=self._options.keep_alive,
        )
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        quiet = logging.getLogger("uvicorn.error")
        if quiet.level == logging.NOTSET:  # it tells each websocket at level info
            quiet.setLevel(logging.WARNING)
        return server
