"""The database handler as a part of the daemon: writes to the cloud's tables, and what the local database queued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.config_cloud import names
from petalbus.daemon.paths import DataPaths

if TYPE_CHECKING:
    from petalbus.daemon.config import Settings
    from petalbus.daemon.http.part import HttpPart
    from petalbus.daemon.runtime.parts import Connect
    from petalbus.daemon.runtime.supervisor import Kept
    from petalbus.petals.proxies.cloud import CloudDBProxy

_REQUEST_S: Final = 30.0
_APP: Final = "http.cloud"


def is_configured(settings: Settings) -> bool:
    """Whether there are tables in the cloud, and a service that lets us in."""
    if settings.cloud_backend == "dynamodb":
        return bool(settings.session_token_url)
    return bool(settings.cloud_endpoint and settings.access_token_url)


class CloudTables:
    """The part, and what it puts into HTTP.

    ``url``: the bus's server, once it is known. ``ready``: nothing is held up any more by loading the part.
    """

    def __init__(self, connect: Connect, settings: Settings, *, url: Callable[[], str], ready: asyncio.Event) -> None:
        self._connect = connect
        self._settings = settings
        self._url = url
        self._ready = ready
        self._proxy: CloudDBProxy | None = None

    def include_in(self, http: HttpPart) -> None:
        """Add the routes ``/cloud/*``; they answer 503 where nothing is configured."""
        http.include(self._router)

    async def run(self, kept: Kept) -> None:
        """The part itself."""
        await self._ready.wait()
        settings = self._settings
        loaded = await asyncio.to_thread(_Loaded)
        manager = loaded.organization.OrganizationManager(
            settings.organization_file, data=DataPaths.of(settings.data).root, machine_id=settings.machine_id
        )
        async with AsyncExitStack() as stack:
            await manager.start()
            stack.push_async_callback(manager.stop)
            told = {**settings.model_dump(), "timeout": _REQUEST_S}
            handler = loaded.handler.DatabaseHandler(
                self._connect("database"),
                loaded.tables.make_tables(told),
                machine=lambda: manager.machine_id,
                options=self._options(loaded),
            )
            local = loaded.local.LocalQueue(self._file(), handler)
            handler.local = local
            await stack.enter_async_context(handler)
            if settings.http_enabled:
                await self._open_proxy(stack, loaded, manager)
            kept.up(handler.statistics)
            await local.run()

    def _file(self) -> Any:
        return self._settings.localdb_file or DataPaths.of(self._settings.data).root / "local.db"

    def _options(self, loaded: _Loaded) -> Any:
        settings, policy = self._settings, loaded.writes.Policy
        other = dict.fromkeys(names(settings.cloud_refuse_tables), policy.REFUSE)
        other |= dict.fromkeys(names(settings.cloud_last_writer_tables), policy.LAST_WRITER)
        return loaded.handler.DatabaseOptions(policy=policy(settings.cloud_policy), other=other)

    async def _open_proxy(self, stack: AsyncExitStack, loaded: _Loaded, manager: Any) -> None:
        """The routes' own proxy."""
        context = loaded.context.ProxyContext(
            url=self._url(),
            bus=self._settings.bus,
            app=_APP,
            data=DataPaths.of(self._settings.data).root,
            settings=self._settings,
            organization=manager,
        )
        self._proxy = proxy = loaded.cloud.make(context)
        await proxy.start()
        stack.push_async_callback(proxy.stop)
        stack.callback(setattr, self, "_proxy", None)

    def _absent(self) -> str:
        if is_configured(self._settings):
            return "the cloud's part of the daemon is not up just now: try again"
        return "no tables in the cloud are configured: set cloud_endpoint and access_token_url, and start again"

    def _router(self) -> Any:
        module = import_module("petalbus.daemon.http.cloud")
        return module.cloud_router(lambda: self._proxy, absent=self._absent)


class _Loaded:
    """What the part needs, imported."""

    def __init__(self) -> None:
        self.handler = import_module("petalbus.handlers.database.handler")
        self.writes = import_module("petalbus.handlers.database.writes")
        self.local = import_module("petalbus.daemon.runtime.database_local")
        self.cloud = import_module("petalbus.petals.proxies.cloud")
        self.tables = import_module("petalbus.petals.proxies.cloud.tables")
        self.context = import_module("petalbus.petals.proxies.context")
        self.organization = import_module("petalbus.petals.organization")
