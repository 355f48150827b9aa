"""Real servers on real sockets: an HttpApp with petals, and what talks to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.petal_app import petal_app
from petalbus.daemon.http.relay import Relay
from petalbus.daemon.http.server import Server, address_of, tcp_listener, unix_listener

from support.servers import short_directory

OPTIONS = HttpOptions(port=0)


class Site:
    """A running server: its address, its mounts, and a client."""

    def __init__(self, app: HttpApp, mounts: PetalMounts, server: Server, url: str) -> None:
        self.app = app
        self.mounts = mounts
        self.server = server
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.ws = url.replace("http:", "ws:")
        self.client = httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return await self.client.get(path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        """POST."""
        return await self.client.post(path, **options)


Serve = Callable[..., Awaitable[Site]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server: ``await serve(petal, ..., body_limit=...)``. It is stopped at the end, and nothing is left."""
    async with AsyncExitStack() as stack:

        async def start(*petals: Any, build: Callable[[HttpApp], None] | None = None, **changes: Any) -> Site:
            options = replace(OPTIONS, **changes)
            mounts = PetalMounts(options)
            app = HttpApp(mounts, options=options)
            if build is not None:
                build(app)
            await asyncio.to_thread(app.build)
            server = Server(app, await tcp_listener(options.host, 0), options=options, calls=app.calls)
            await server.start()
            stack.push_async_callback(server.stop, timeout=1)
            site = Site(app, mounts, server, address_of(server.listener))
            stack.push_async_callback(site.client.aclose)
            for petal in petals:
                await mounts.mount_petal(petal)
            return site

        yield start


class Child:
    """What a petal's own process does about HTTP, here in this one: its app on a unix socket."""

    def __init__(self, petal: Any, path: Path, options: HttpOptions) -> None:
        self.app = petal_app(petal, options=options)
        self.path = path
        self.relay = Relay(petal.name, path, options=options)
        self._options = options
        self._server: Server | None = None

    async def up(self) -> None:
        """Serve."""
        self._server = Server(self.app, unix_listener(self.path), options=self._options)
        await self._server.start()

    async def down(self, *, timeout: float = 0.0) -> None:
        """Stop: everything that is open is cut off."""
        if self._server is not None:
            await self._server.stop(timeout=timeout)
            self._server = None


@pytest.fixture
async def child() -> AsyncIterator[Callable[..., Awaitable[Child]]]:
    """Serve a petal on a unix socket: ``await child(petal)``."""
    with short_directory() as directory:
        made: list[Child] = []

        async def start(petal: Any, **changes: Any) -> Child:
            one = Child(petal, directory / "run" / f"{petal.name}.sock", replace(OPTIONS, **changes))
            made.append(one)
            await one.up()
            return one

        yield start
        for one in made:
            await one.down()


def deaf_client(site: Site, path: str, *, websocket: bool = False) -> socket.socket:
    """A client that asks and never reads what it is answered."""
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n"
    )
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", site.port))
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade if websocket else ''}\r\n".encode())
    return made


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
