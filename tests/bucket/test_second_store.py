"""The same transfers on another S3 server, whose ETags are AWS's: those of parts, and replaced parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from petalbus.handlers.bucket.body import Meter
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.reading import load
from petalbus.handlers.bucket.store import PART_BYTES, Store
from petalbus.handlers.bucket.transfer import InMemory, Transfer, options_of, put

from .conftest import MB, World
from support.s3_world import TokenService, free_port

MOTO = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture
async def store(tokens: TokenService) -> AsyncIterator[Store]:
    if MOTO is None:
        pytest.skip("no moto_server: the package moto[server] brings it")
    port = free_port()
    quiet = asyncio.subprocess.DEVNULL
    apart = {**os.environ, "PYTHONPATH": ""}  # it may live in an environment of its own
    child = await asyncio.create_subprocess_exec(MOTO, "-p", str(port), env=apart, stdout=quiet, stderr=quiet)
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        async with Store("logs", token_url=tokens.url, endpoint=f"http://127.0.0.1:{port}") as made:
            await (await made._connected()).create_bucket(Bucket="logs")
            yield made
    finally:
        child.kill()
        await child.wait()


async def test_transfers(store: Store, world: World) -> None:
    """S-245, S-263: in one request, in parts, resumed with a wrong part, and found finished."""
    path = world.log(20 * MB)
    log, data = check_file(path), path.read_bytes()
    options = options_of(log, "m1")
    size, etag = await Transfer(store, log, "m1/a.ulg", options, progress=InMemory()).run()
    assert (size, etag.endswith("-3")) == (len(data), True)
    progress = InMemory()
    upload = await store.begin("m1/b.ulg", options)
    await progress.begun(upload, PART_BYTES)
    client = await store._connected()
    for number, piece in ((1, data[:PART_BYTES]), (2, b"x" * PART_BYTES)):
        await client.upload_part(Bucket="logs", Key="m1/b.ulg", UploadId=upload, PartNumber=number, Body=piece)
    meter = Meter()
    assert await Transfer(store, log, "m1/b.ulg", options, progress=progress, meter=meter).run() == (size, etag)
    assert (meter.kept, meter.sent) == (PART_BYTES, len(data) - PART_BYTES)
    meter = Meter()
    assert await Transfer(store, log, "m1/b.ulg", options, progress=progress, meter=meter).run() == (size, etag)
    assert (meter.kept, meter.sent) == (len(data), 0)
    assert await load(store, "m1/b.ulg", await store.head("m1/b.ulg"), world.folder / "back.ulg") == len(data)
    assert (world.folder / "back.ulg").read_bytes() == data
    small = check_file(world.log(1000, "small.ulg"))
    assert await put(store, small, "m1/small.ulg", options) == 1000
    assert await store.begun("m1/") == ()
