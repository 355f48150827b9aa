"""A port of its own for the callbacks of the MQTT client program, beside the one that everything else is served on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.server import Server, address_of, tcp_listener

if TYPE_CHECKING:
    from fastapi import APIRouter

_CONNECTIONS: Final = 64
_BODY: Final = 2 << 20
"""Bytes. The callbacks' own limit is lower, and keeps the beginning of what is larger."""


class CallbackPort:
    """``await start()``, ``await stop()``; guarded like the main port, and with nothing else on it but ``/health``.

    ``host``: the interface; ``names``: further names by which the client program calls us. ``make`` returns the router
    and may import FastAPI.
    """

    def __init__(
        self, host: str, port: int, make: Callable[[], APIRouter], *, options: HttpOptions, names: tuple[str, ...] = ()
    ) -> None:
        self.options = replace(
            options,
            host=host,
            port=port,
            connections=_CONNECTIONS,
            body_limit=_BODY,
            allowed_hosts=(*options.allowed_hosts, *names),
            allowed_origins=(),
        )
        self._make = make
        self._server: Server | None = None
        self.url: str | None = None

    async def start(self) -> None:
        """Listen and answer. Raises OSError when the port is taken."""
        listener = await tcp_listener(self.options.host, self.options.port)
        try:
            app = HttpApp(PetalMounts(self.options), options=self.options)
            app.include(self._make)
            await asyncio.to_thread(app.build)
            server = Server(app, listener, options=self.options, calls=app.calls)
            await server.start()
        except BaseException:
            listener.close()
            raise
        self._server = server
        self.url = address_of(listener)

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Accept nothing more; what is being answered has ``timeout`` seconds."""
        server, self._server, self.url = self._server, None, None
        if server is not None:
            await server.stop(timeout=timeout)

    def statistics(self) -> dict[str, Any]:
        """Address and connections."""
        return {"url": self.url, **(self._server.statistics() if self._server is not None else {})}
