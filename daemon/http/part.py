"""HTTP as a part of the daemon: it takes its port at once, and is loaded when the bus is ready."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus.daemon.http.app import Health, HttpApp
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.options import HttpOptions, is_loopback, words
from petalbus.daemon.http.server import Server, address_of, tcp_listener

if TYPE_CHECKING:
    from petalbus.daemon.config import Settings
    from petalbus.daemon.runtime.supervisor import Kept

_STOP_SHARE: Final = 0.7
_LARGEST_CONFIG: Final = 1 << 20

log: Final = structlog.get_logger(__name__)

Announce = Callable[[str | None], Awaitable[None]]
"""Told the address when it answers there, and None when it does not any more."""


class HttpPart:
    """Owns the port, the app and the mounts of a daemon. ``run`` is its RunPart."""

    def __init__(self, settings: Settings, *, health: Health, announce: Announce) -> None:
        self.options = HttpOptions.of(settings)
        self.mounts = PetalMounts(self.options)
        self.ready = asyncio.Event()
        """Set it when nothing is held up any more by loading the server."""
        self._settings = settings
        self._announce = announce
        self._listener: socket.socket | None = None
        self._server: Server | None = None
        self._app: HttpApp | None = None
        self._routers: list[tuple[Callable[[], Any], Mapping[str, Any]]] = []
        self._health = health
        self.url: str | None = None

    def include(self, make: Callable[[], Any], **options: Any) -> None:
        """Add a router of the core's: ``make`` returns it, and may import FastAPI."""
        self._routers.append((make, options))
        if self._app is not None:
            self._app.include(make, **options)

    async def take_port(self) -> None:
        """Listen at once, so that nobody is turned away while the server is loaded. Raises OSError."""
        if self._listener is None:
            self._listener = await tcp_listener(self.options.host, self.options.port)
            self.url = address_of(self._listener)

    async def run(self, kept: Kept) -> None:
        """Serve until cancelled."""
        try:
            await self.take_port()
            assert self._listener is not None
            assert self.url is not None
            await self.ready.wait()
            if not is_loopback(self.options.host):
                log.warning("HTTP answers whoever reaches this computer, without asking who it is", address=self.url)
            app = await asyncio.to_thread(self._build)
            self._server = Server(app, self._listener, options=app.options, calls=app.calls)
            await self._server.start()
            self._app = app
            kept.up(self._statistics)
            await self._announce(self.url)
            log.debug("HTTP answers", address=self.url)
            await asyncio.Event().wait()
        finally:
            await self._stop()

    def _build(self) -> HttpApp:
        options = replace(self.options, allowed_origins=_origins(self.options, self._settings))
        app = HttpApp(self.mounts, options=options, health=self._health)
        for make, more in self._routers:
            app.include(make, **more)
        app.build()
        return app

    async def _stop(self) -> None:
        server, listener = self._server, self._listener
        answered = self._app is not None
        self._server = self._listener = self._app = None
        self.url = None
        if answered:
            await self._announce(None)
        if server is not None:
            await server.stop(timeout=self._settings.stop_timeout * _STOP_SHARE)
        elif listener is not None:
            listener.close()

    def _statistics(self) -> dict[str, Any]:
        server = self._server.statistics() if self._server is not None else {}
        return {"url": self.url, **server, **(self._app.statistics() if self._app is not None else {})}


def _origins(options: HttpOptions, settings: Any) -> tuple[str, ...]:
    """The origins of the settings, and those of ``config.json``, which existing installations have."""
    file = Path(options.root or settings.data, "config.json")
    origins = list(options.allowed_origins)
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= _LARGEST_CONFIG else ""
        given = json.loads(text).get("allowed_origins", [])
        origins += words(given)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError, TypeError) as error:
        log.warning("the allowed origins cannot be read", file=str(file), error=str(error))
    if "*" in origins:
        log.warning("the origin * is ignored: name the pages that may use this server", file=str(file))
    return tuple(dict.fromkeys(origin for origin in origins if origin != "*"))
