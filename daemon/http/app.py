"""The app that everything is behind: the guard, the petals, and the core's own routes.

request -> Guard -> /petals/<name>, /static/<name>  PetalMounts -> PetalApp, or Relay to a petal's own process
                 -> /health, /openapi.json, /docs, and the routers that were included
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petalbus._version import __version__
from petalbus.daemon.http.answers import App, ClientGone, Receive, Scope, Send
from petalbus.daemon.http.calls import Calls
from petalbus.daemon.http.mounts import PREFIXES, PetalMounts
from petalbus.daemon.http.options import HttpOptions

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

_PAGES: Final = Path(__file__).parent / "pages"
_POLICY: Final = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"

Health = Callable[[], Mapping[str, Any]]
"""What ``/health`` adds to its status and timestamp; a ``status`` in it wins."""

log: Final = logging.getLogger(__name__)


class HttpApp:
    """Light until ``build``, which loads FastAPI. ``include`` works before and after it."""

    def __init__(self, mounts: PetalMounts, *, options: HttpOptions, health: Health | None = None) -> None:
        self.calls = Calls()
        self._mounts = mounts
        self.options = options
        self._health = health
        self._routers: list[tuple[Callable[[], APIRouter], Mapping[str, Any]]] = []
        self._core: FastAPI | None = None
        self._guard: Any = None
        self._whole: tuple[int, dict[str, Any]] | None = None
        self._describing: asyncio.Lock | None = None

    def include(self, make: Callable[[], APIRouter], **options: Any) -> None:
        """Add a router of the core's. ``make`` is called when FastAPI is there; ``options`` as ``include_router``'s."""
        self._routers.append((make, options))
        if self._core is not None:
            self._core.include_router(make(), **options)
            self._whole = None

    def build(self) -> None:
        """Make it ready to answer. Imports FastAPI: call it in a thread."""
        from fastapi import FastAPI  # noqa: PLC0415  # a third of a second

        from petalbus.daemon.http.errors import answer_errors  # noqa: PLC0415  # FastAPI comes with it
        from petalbus.daemon.http.guard import Guard  # noqa: PLC0415  # the same
        from petalbus.daemon.http.handlers import TolerantJSONResponse  # noqa: PLC0415  # the same

        core = FastAPI(
            title="PetalBus",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            default_response_class=TolerantJSONResponse,
        )
        answer_errors(core)
        self._add_own(core)
        for make, options in self._routers:
            core.include_router(make(), **options)
        core.middleware_stack = core.build_middleware_stack()
        self._guard = Guard(self._route, self.options)
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer anything."""
        await self.calls.run(self._guard, scope, receive, send)

    def statistics(self) -> dict[str, Any]:
        """Counters of everything."""
        guard = self._guard.statistics() if self._guard is not None else {}
        return {**self.calls.statistics(), **guard, **self._mounts.statistics()}

    async def openapi(self) -> dict[str, Any]:
        """The description of all that answers now."""
        if self._describing is None:
            self._describing = asyncio.Lock()
        async with self._describing:
            if self._whole is None or self._whole[0] != self._mounts.changes:
                changes = self._mounts.changes
                self._whole = (changes, await self._describe())
            return self._whole[1]

    async def _describe(self) -> dict[str, Any]:
        from petalbus.daemon.http.schema import merged  # noqa: PLC0415  # FastAPI comes with it

        assert self._core is not None
        petals = []
        for name, app in self._mounts.mounted().items():
            describe = getattr(app, "openapi", None)
            if describe is None:
                continue
            try:
                if inspect.iscoroutinefunction(describe):
                    petals.append(await describe())
                else:
                    petals.append(await asyncio.to_thread(describe))
            except Exception as error:  # noqa: BLE001  # a petal that cannot be described keeps nobody else from it
                log.warning("petal %s is missing in /openapi.json: %s", name, error)
        core = await asyncio.to_thread(self._core.openapi)
        return await asyncio.to_thread(merged, core, petals)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: App = self._mounts if scope["path"].startswith(PREFIXES) else self._core  # type: ignore[assignment]  # built
        try:
            await app(scope, receive, send)
        except ClientGone:
            raise
        except Exception:
            if app is self._mounts:
                raise
            log.exception("%s %s failed", scope.get("method", "websocket"), scope["path"])

    def _add_own(self, core: FastAPI) -> None:
        from fastapi.responses import FileResponse, Response  # noqa: PLC0415  # FastAPI comes with it

        from petalbus.daemon.http import json  # noqa: PLC0415  # named like the standard library's

        @core.get("/health", tags=["health"], response_model=None)
        async def health() -> dict[str, Any]:
            """Whether the bus works, in one word."""
            told = self._health() if self._health is not None else {}
            now = datetime.now(UTC).isoformat()
            return {"status": "healthy", "timestamp": now, "version": __version__, **told}

        @core.get("/openapi.json", include_in_schema=False)
        async def openapi() -> Response:
            return Response(await json.encode_large(await self.openapi()), media_type="application/json")

        @core.get("/docs", include_in_schema=False)
        async def docs() -> Response:
            headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
            return FileResponse(_PAGES / "docs.html", headers=headers)

        @core.get("/docs/{file}", include_in_schema=False)
        async def docs_file(file: str) -> Response:
            if file not in ("docs.js", "docs.css"):
                return Response(status_code=404)
            return FileResponse(_PAGES / file, headers={"Cache-Control": "no-cache"})
