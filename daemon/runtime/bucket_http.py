"""``/bucket/*`` and ``/test/bucket/*`` of the daemon: a bucket proxy of its own, and the logs that wait on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.paths import DataPaths

if TYPE_CHECKING:
    from petalbus.daemon.config import Settings
    from petalbus.daemon.http.bucket_spool import Spool
    from petalbus.daemon.http.part import HttpPart
    from petalbus.petals.organization import OrganizationManager
    from petalbus.petals.proxies.bucket.proxy import S3BucketProxy

PREFIXES: Final = ("/bucket", "/test/bucket")
_APP: Final = "http.bucket"


class BucketRoutes:
    """They answer 503 where no bucket is configured, or while it is not up.

    ``url``: the bus's server, once it is known.
    """

    def __init__(self, settings: Settings, *, url: Callable[[], str], configured: bool) -> None:
        self._settings = settings
        self._url = url
        self._configured = configured
        self._proxy: S3BucketProxy | None = None
        self._spool: Spool | None = None

    def include_in(self, http: HttpPart) -> None:
        """Add the routes."""
        for prefix in PREFIXES:
            http.include(self._router, prefix=prefix)

    @asynccontextmanager
    async def open(self, manager: OrganizationManager) -> AsyncIterator[None]:
        """Let them work. What waits since an earlier run goes on."""
        if not self._settings.http_enabled:
            yield
            return
        bucket = await asyncio.to_thread(import_module, "petalbus.petals.proxies.bucket")
        context = import_module("petalbus.petals.proxies.context").ProxyContext(
            url=self._url(),
            bus=self._settings.bus,
            app=_APP,
            data=DataPaths.of(self._settings.data).root,
            settings=self._settings,
            organization=manager,
        )
        spool = await asyncio.to_thread(self._spooled)
        proxy = bucket.make(context)
        await proxy.start()
        try:
            await spool.resume(proxy)
            self._proxy = proxy
            yield
        finally:
            self._proxy = None
            await spool.close()
            await proxy.stop()

    def _spooled(self) -> Spool:
        if self._spool is None:
            module = import_module("petalbus.daemon.http.bucket_spool")
            self._spool = module.Spool(DataPaths.of(self._settings.data).root / "bucket" / "incoming")
        return self._spool

    def _absent(self) -> str:
        if not self._configured:
            return "no bucket is configured: set s3_bucket_name and session_token_url, and start again"
        return "the bucket's part of the daemon is not up just now: try again"

    def _router(self) -> Any:
        module = import_module("petalbus.daemon.http.bucket")
        return module.bucket_router(lambda _request: self._proxy, spool=self._spooled(), absent=self._absent)
