"""A real S3 server with two machines, and the routes on a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.bucket import bucket_router
from petalbus.daemon.http.bucket_spool import Spool
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.server import Server, address_of, tcp_listener
from petalbus.handlers.bucket.files import ULOG_MAGIC
from petalbus.petals.proxies.bucket import S3BucketProxy

from support.s3_world import RealS3, TokenService

ULOG = ULOG_MAGIC + b"\x01" + bytes(range(200))
MACHINE = "machine-1"


class World:
    """``proxy`` is of machine-1, ``other`` of machine-10. ``client`` calls the routes of ``proxy``."""

    def __init__(self, s3: RealS3, tokens: TokenService, folder: Path) -> None:
        self.s3 = s3
        self.tokens = tokens
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.proxy = self.made(MACHINE)
        self.other = self.made("machine-10")
        self.present: S3BucketProxy | None = self.proxy
        self.client = httpx.AsyncClient(timeout=30, trust_env=False)

    def made(self, machine: str, **options: Any) -> S3BucketProxy:
        """A proxy of another machine, or another one of ours; not started."""
        told = {"endpoint": self.s3.url, "machine_id": machine, "request_timeout": 10, **options}
        return S3BucketProxy(self.tokens.url, "logs", **told)

    def log(self, name: str = "flight.ulg", content: bytes = ULOG) -> Path:
        """A file."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def stored(self, key: str) -> bytes:
        """What the store has."""
        return (self.s3.files / key).read_bytes()

    @property
    def spooled(self) -> list[Path]:
        """What lies on the disk, waiting."""
        return [path for path in (self.folder / "spool").rglob("*") if path.is_file()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Everything, running."""
    async with AsyncExitStack() as stack:
        s3 = await stack.enter_async_context(RealS3(tmp_path))
        tokens = await stack.enter_async_context(TokenService())
        made = World(s3, tokens, tmp_path)
        for proxy in (made.proxy, made.other):
            await proxy.start()
            stack.push_async_callback(proxy.stop)
        options = HttpOptions(port=0)
        app = HttpApp(PetalMounts(options), options=options)
        for prefix in ("/bucket", "/test/bucket"):
            app.include(lambda: bucket_router(lambda _: made.present, spool=made.spool), prefix=prefix)
        await asyncio.to_thread(app.build)
        server = Server(app, await tcp_listener("127.0.0.1", 0), options=options, calls=app.calls)
        await server.start()
        stack.push_async_callback(server.stop, timeout=1)
        stack.push_async_callback(made.client.aclose)
        made.client.base_url = httpx.URL(address_of(server.listener))
        yield made
        await made.spool.close()
