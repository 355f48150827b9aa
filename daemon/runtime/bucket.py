"""The bucket handler as a part of the daemon: flight logs go to the store as records, by themselves."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Final

from petalbus.daemon.paths import DataPaths

if TYPE_CHECKING:
    from petalbus.daemon.config import Settings
    from petalbus.daemon.runtime.bucket_http import BucketRoutes
    from petalbus.daemon.runtime.parts import Connect
    from petalbus.daemon.runtime.supervisor import Kept, RunPart

_REQUEST_S: Final = 60.0
"""How long the store may take to answer: behind a slow link what is sent lies in buffers for long."""


def is_configured(settings: Settings) -> bool:
    """Whether there is a bucket, and a service that gives out credentials for it."""
    return bool(settings.s3_bucket_name and settings.session_token_url)


def bucket_part(connect: Connect, settings: Settings, ready: asyncio.Event, routes: BucketRoutes) -> RunPart:
    """The part. ``ready``: nothing is held up any more by loading it. The S3 library waits for the first upload.

    ``routes``: what answers over HTTP for as long as it runs.
    """

    async def run(kept: Kept) -> None:
        await ready.wait()
        handler_module, store_module, kept_module, organization = await asyncio.to_thread(
            lambda: (
                import_module("petalbus.handlers.bucket.handler"),
                import_module("petalbus.handlers.bucket.store"),
                import_module("petalbus.handlers.bucket.kept"),
                import_module("petalbus.petals.organization"),
            )
        )
        manager = organization.OrganizationManager(
            settings.organization_file, data=DataPaths.of(settings.data).root, machine_id=settings.machine_id
        )
        path = DataPaths.of(settings.data).root / "bucket" / "credentials.json"
        kept_credentials = None
        if settings.credentials_cache:
            where = (settings.session_token_url, settings.s3_bucket_name, settings.s3_endpoint or "")
            kept_credentials = kept_module.KeptCredentials(path, lambda: (*where, manager.machine_id))
        else:
            await asyncio.to_thread(kept_module.delete_kept, path)
        store = store_module.Store(
            settings.s3_bucket_name or "",
            token_url=settings.session_token_url or "",
            region=settings.s3_region,
            endpoint=settings.s3_endpoint,
            timeout=_REQUEST_S,
            attempts=1,  # the handler has its own, with longer pauses
            encryption=settings.s3_encryption,
            kept=kept_credentials,
        )
        async with AsyncExitStack() as stack:
            await manager.start()
            stack.push_async_callback(manager.stop)
            handler = handler_module.BucketHandler(connect("bucket"), store, machine=lambda: manager.machine_id)
            await stack.enter_async_context(handler)
            await stack.enter_async_context(routes.open(manager))
            kept.up(handler.statistics)
            await handler.run()

    return run
