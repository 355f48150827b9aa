"""Fixtures of uploads: a real bus, a real S3 server behind a wire that can break, and bucket handlers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.bucket import handler as handler_module
from petalbus.handlers.bucket import store as store_module
from petalbus.handlers.bucket import words
from petalbus.handlers.bucket.files import ULOG_MAGIC
from petalbus.handlers.bucket.handler import BucketHandler, BucketOptions
from petalbus.handlers.bucket.store import Store
from petalbus.schemas.vocabulary import Priority

from .wire import Wire
from support.s3_world import RealS3, TokenService
from support.servers import RealServer

KB = 1024
MB = 1024 * 1024
MACHINE = "m1"


class World:
    """What an upload needs. ``wire`` is between the handler and the store."""

    def __init__(self, server: RealServer, bus_name: str, folder: Path, s3: RealS3, tokens: TokenService) -> None:
        self.server = server
        self.bus_name = bus_name
        self.folder = folder
        self.s3 = s3
        self.tokens = tokens
        self.machine: str | None = MACHINE
        self.stack = AsyncExitStack()
        self.wire = Wire(s3.url)
        self.handler: BucketHandler | None = None
        self._running: AsyncExitStack | None = None
        self.bus = self.client("gcs")

    def client(self, app: str, **options: Any) -> Bus:
        """A client of the test's bus."""
        return Bus(self.server.url, app=app, bus=self.bus_name, options=BusOptions(**options))

    def store(self, **changes: Any) -> Store:
        """The bucket, through the wire."""
        told: dict[str, Any] = {"token_url": self.tokens.url, "endpoint": self.wire.url, "timeout": 5.0, "attempts": 1}
        return Store("logs", **{**told, **changes})

    async def start(self, *, store: Store | None = None, **options: Any) -> BucketHandler:
        """A bucket handler, as the daemon has it, with short pauses."""
        told = BucketOptions(**{"first_wait": 0.05, "sweep_every": 0.5, **options})
        self._running = running = AsyncExitStack()
        handler = BucketHandler(
            self.client("bucket"), store or self.store(), machine=lambda: self.machine, options=told
        )
        self.handler = await running.enter_async_context(handler)
        task = asyncio.create_task(handler.run(), name="bucket-handler")

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        running.push_async_callback(end)
        return handler

    async def stop(self) -> None:
        """Stop the handler in order."""
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    def log(self, size: int = 200, name: str = "flight.ulg") -> Path:
        """A flight log of so many bytes, none of them like another's."""
        path = self.folder / name
        path.write_bytes(ULOG_MAGIC + b"\x01" + os.urandom(size - 8))
        return path

    async def send(self, path: Path, **more: Any) -> str:
        """Ask for an upload; its id."""
        options = {name: more.pop(name) for name in ("id", "priority", "deadline") if name in more}
        return (await self.bus.send(words.APP, words.UPLOAD, {"path": str(path), **more}, **options)).id

    async def result(self, upload: str, path: Path, *, timeout: float = 30.0, **more: Any) -> dict[str, Any]:
        """Wait for the result. Raises ReplyError, RequestCancelled."""
        on_progress = more.pop("on_progress", None)
        options = {name: more.pop(name) for name in ("priority",) if name in more}
        reply = await self.bus.request(
            words.APP, words.UPLOAD, {"path": str(path), **more}, id=upload, timeout=timeout,
            on_progress=on_progress, **options,
        )  # fmt: skip
        data: dict[str, Any] = reply.data
        return data

    async def listed(self, upload: str) -> dict[str, Any] | None:
        """An upload as the list shows it."""
        told = (await self.bus.request(words.APP, words.UPLOADS, {}, timeout=20, priority=Priority.HIGH)).data
        return next((one for one in [*told["uploads"], *told["ended"]] if one["id"] == upload), None)

    async def until(self, upload: str, condition: Callable[[dict[str, Any]], bool], *, seconds: float = 20) -> Any:
        """Wait until the list shows an upload as wanted."""
        end = time.monotonic() + seconds
        while True:
            told = await self.listed(upload)
            if told is not None and condition(told):
                return told
            assert time.monotonic() < end, told
            await asyncio.sleep(0.02)

    async def unfinished(self) -> list[Any]:
        """What the store has begun and not ended."""
        async with self.store(endpoint=self.s3.url) as store:
            return list(await store.begun(""))

    async def settled(self, *, seconds: float = 10) -> None:
        """Wait until nothing is left behind: neither parts in the store, nor notes."""
        end = time.monotonic() + seconds
        while (left := await self.unfinished()) or await self.bus.ask("HLEN", words.notes_key(self.bus.keys)):
            assert time.monotonic() < end, left
            await asyncio.sleep(0.05)

    def stored(self, key: str) -> bytes:
        """What the store has."""
        return (self.s3.files / key).read_bytes()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of so many bytes, so that there are many in a small file."""
    monkeypatch.setattr(store_module, "PART_BYTES", 128 * KB)
    return 128 * KB


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[RealS3]:
    """A real S3 server of the test's own."""
    async with RealS3(tmp_path) as made:
        yield made


@pytest.fixture
async def tokens() -> AsyncIterator[TokenService]:
    """The service that gives out credentials."""
    async with TokenService() as made:
        yield made


@pytest.fixture
async def world(
    server: RealServer,
    bus_name: str,
    tmp_path: Path,
    s3: RealS3,
    tokens: TokenService,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[World]:
    """Everything but the handler: ``await world.start()``."""
    monkeypatch.setattr(handler_module, "SETTLE_S", 0.02)
    made = World(server, bus_name, tmp_path, s3, tokens)
    async with made.wire, made.bus:
        yield made
        await made.stop()
