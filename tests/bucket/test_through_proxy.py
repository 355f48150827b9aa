"""The proxy on a bus: the same calls and answers, carried out by the daemon's handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from petalbus.handlers.bucket.errors import FileRefused
from petalbus.petals.proxies.bucket import S3BucketProxy
from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.schemas.vocabulary import Status

from .conftest import MACHINE, World


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[S3BucketProxy]:
    made = S3BucketProxy(
        world.tokens.url, "logs", endpoint=world.s3.url, machine_id=MACHINE, url=world.server.url, bus=world.bus_name
    )
    await made.start()
    yield made
    await made.stop()


async def test_upload_file_is_the_record_with_a_wait(world: World, proxy: S3BucketProxy, small_parts: int) -> None:
    """S-063, S-064, S-065, S-069, S-265, C-24: the documented answer; the bytes went through the handler."""
    await world.start()
    world.wire.delay = 0.15
    path = world.log(12 * small_parts)
    heard: list[dict[str, Any]] = []
    told = await proxy.upload_file(path, custom_filename="mission.ulg", on_progress=heard.append)
    assert told["success"]
    assert told["s3_key"].endswith("_mission.ulg")
    assert told["url"] == told["file_url"]
    assert set(told) == {"success", "message", "s3_key", "url", "file_url", "size", "upload_id"}
    assert heard[-1]["total"] == told["size"] == path.stat().st_size
    assert world.wire.count("PUT") == 12
    assert await world.bus.status(told["upload_id"]) is Status.COMPLETED
    free = await proxy.upload_file(path, custom_s3_key="flights/2026/a.ulg")
    assert free["s3_key"] == "flights/2026/a.ulg"
    assert (await proxy.download_file("flights/2026/a.ulg", world.folder / "back.ulg"))["success"]
    assert (world.folder / "back.ulg").read_bytes() == path.read_bytes()


async def test_errors_have_the_documented_shape(world: World, proxy: S3BucketProxy) -> None:
    """S-251, S-268, S-269, S-270, S-271, S-272: text and status, whoever found it."""
    await world.start()
    path = world.log()
    text = world.folder / "a.txt"
    text.write_bytes(b"text")
    refused = await proxy.upload_file(text)
    assert refused == {
        "error": "Invalid file extension. Only .bag, .ulg files are allowed",
        "status": 400,
        "success": False,
    }
    assert (await proxy.upload_file(path, machine_id="m2"))["status"] == 403
    world.machine = "m2"
    assert (await proxy.upload_file(path, custom_s3_key="flights/b.ulg"))["success"]
    world.machine = MACHINE
    theirs = await proxy.upload_file(path, custom_s3_key="flights/b.ulg")
    assert (theirs["status"], theirs["success"]) == (403, False)
    assert theirs["error"].startswith("Access denied")
    world.tokens.status = 403
    await world.stop()
    await world.start()
    failed = await proxy.upload_file(path, patience=0.1)
    assert (failed["status"], failed["queued"], failed["error"][:21]) == (503, True, "Authentication failed")
    asked = await proxy.list_files()
    assert (asked["status"], asked["error"][:21]) == (403, "Authentication failed")


async def test_a_call_while_offline_answers_and_the_upload_goes_on(world: World, proxy: S3BucketProxy) -> None:
    """S-268: 503 after a while, with the id; the same call waits for the same upload, and finds it done later."""
    await world.wire.shut()
    await world.start()
    path = world.log()
    told = await proxy.upload_file(path, patience=0.3)
    assert (told["status"], told["success"], told["queued"]) == (503, False, True)
    assert "cannot be reached" in told["error"]
    again = await proxy.upload_file(path, patience=0.3)
    assert again["upload_id"] == told["upload_id"]
    await world.wire.open()
    done = await proxy.upload_file(path)
    assert (done["success"], done["upload_id"]) == (True, told["upload_id"])
    assert len(list(world.s3.files.rglob("*.ulg"))) == 1
    fresh = await proxy.upload_file(path)
    assert fresh["upload_id"] != told["upload_id"]


async def test_upload_later(world: World, proxy: S3BucketProxy) -> None:
    """S-245: it returns when the record is durable, also with no handler and no link; then it happens by itself."""
    await world.start()
    await world.stop()
    path = world.log()
    upload = await proxy.upload_later(path, custom_s3_key="m1/later.ulg", upload_id="my-own-id")
    assert upload == "my-own-id"
    assert await proxy.upload_later(path, custom_s3_key="m1/later.ulg", upload_id="my-own-id") == "my-own-id"
    await world.start()
    await world.until(upload, lambda one: one["state"] == "done")
    assert world.stored("m1/later.ulg") == path.read_bytes()
    with pytest.raises(FileRefused):
        await proxy.upload_later(world.folder / "none.ulg")
    alone = S3BucketProxy(world.tokens.url, "logs", machine_id=MACHINE)
    await alone.start()
    with pytest.raises(ProxyNotReady, match="needs a bus"):
        await alone.upload_later(path)
    await alone.stop()


async def test_without_a_handler_the_proxy_uploads_itself(world: World, proxy: S3BucketProxy) -> None:
    """On a bus that never had a bucket handler a petal's upload still works."""
    path = world.log()
    told = await proxy.upload_file(path)
    assert told["success"]
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert "upload_id" not in told


async def test_cancelled_meanwhile(world: World, proxy: S3BucketProxy, small_parts: int) -> None:
    """S-268: whoever waits is told."""
    await world.start()
    world.wire.delay = 0.05
    path = world.log(20 * small_parts)
    call = asyncio.create_task(proxy.upload_file(path, upload_id="one"))
    await world.until("one", lambda one: one["bytes"] > 0)
    assert await world.bus.cancel("one")
    assert (await call)["error"] == "the upload was cancelled"
