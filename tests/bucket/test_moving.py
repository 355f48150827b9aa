"""Objects that an earlier program has stored: ours by their key, and still ours after a move to a free one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import MACHINE, World
from .test_second_store import store as second_store
from .wire import Exchange

__all__ = ["second_store"]

OLDER: dict[str, Any] = {
    "ContentType": "application/x-ulog",
    "CacheControl": "no-store",
    "ServerSideEncryption": "AES256",
}


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[S3BucketProxy]:
    made = S3BucketProxy(world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE)
    await made.start()
    yield made
    await made.stop()


async def older(world: World, key: str, metadata: dict[str, str]) -> None:
    """An object as an earlier program has stored it."""
    async with world.store() as store:
        client = await store._connected()
        await client.put_object(Bucket="logs", Key=key, Body=b"log", Metadata=metadata, **OLDER)


@pytest.mark.parametrize("owner", [{}, {"machine-id": "an-older-id"}])
async def test_a_move_says_whose_it_is(world: World, proxy: S3BucketProxy, owner: dict[str, str]) -> None:
    """S-066, S-247: nobody else's then; what else was known of it is kept."""
    await older(world, "m1/old.ulg", {"original-filename": "o.ulg", **owner})
    other = S3BucketProxy(world.tokens.url, "logs", endpoint=world.wire.url, machine_id="m2")
    await other.start()
    assert (await proxy.move_file("m1/old.ulg", "flights/a.ulg"))["success"]
    assert (await other.head_object("flights/a.ulg"))["status"] == 403
    assert (await proxy.head_object("m1/old.ulg"))["status"] == 404
    for key in ("flights/b.ulg", "deleted/m1/c.ulg", "d.ulg"):
        before = (await proxy.list_files(prefix="flights/"))["files"] or [{"key": "deleted/m1/c.ulg"}]
        assert (await proxy.move_file(before[0]["key"], key))["success"], key
        told = await proxy.head_object(key)
        told["metadata"].pop("mtime", None)  # the test's server adds it
        assert told["metadata"] == {"original-filename": "o.ulg", "machine-id": "m1"}
        assert told["content_type"] == OLDER["ContentType"]
    assert world.stored("d.ulg") == b"log"
    await other.stop()


async def test_a_store_that_forgets_it(world: World, proxy: S3BucketProxy) -> None:
    """S-066: the original stays where it is, for there alone it is ours."""
    await older(world, "m1/old.ulg", {})

    async def nobodys(exchange: Exchange) -> bytes:
        return re.sub(rb"(?i)x-amz-meta-machine-id", b"x-amz-meta-other", await exchange.forward())

    world.wire.rule("HEAD", "flights/", nobodys, times=9)
    told = await proxy.move_file("m1/old.ulg", "flights/a.ulg")
    assert (told["status"], "'m1/old.ulg' stays" in told["error"]) == (500, True)
    assert world.stored("m1/old.ulg") == b"log"


async def test_on_another_store(world: World, second_store: Any) -> None:
    """S-066: one that keeps encryption and the rest of the head as AWS does."""
    client = await second_store._connected()
    kms = {**OLDER, "ServerSideEncryption": "aws:kms"}
    await client.put_object(Bucket="logs", Key="m1/old.ulg", Body=b"log", Metadata={"a": "b"}, **kms)
    proxy = S3BucketProxy(world.tokens.url, "logs", endpoint=second_store.endpoint, machine_id=MACHINE)
    await proxy.start()
    for source, target in (("m1/old.ulg", "flights/a.ulg"), ("flights/a.ulg", "flights/b.ulg")):
        assert (await proxy.move_file(source, target))["success"]
        told = await second_store.head(target)
        assert {name: told[name] for name in kms} == kms
        assert told["Metadata"] == {"a": "b", "machine-id": "m1"}
    await proxy.stop()
