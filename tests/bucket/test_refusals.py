"""What looks like a refusal and is none: stores and services that cannot say what they mean, or mean it for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket import credentials as credentials_module
from petalbus.handlers.bucket import store as store_module
from petalbus.handlers.bucket import upload as upload_module
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.transfer import options_of, put
from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import KB, MACHINE, World
from .wire import Exchange, answer

DENIED = answer(403)


@pytest.fixture
async def proxy(world: World) -> AsyncIterator[S3BucketProxy]:
    made = S3BucketProxy(
        world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE, url=world.server.url, bus=world.bus_name
    )
    await made.start()
    yield made
    await made.stop()


async def theirs(world: World, key: str) -> None:
    """Another machine's log."""
    log = check_file(world.log(name="theirs.ulg"))
    async with world.store(endpoint=world.s3.url) as store:
        await put(store, log, key, options_of(log, "m2"))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (408, ""),
        (425, ""),
        (429, ""),
        (429, "ServiceUnavailable"),
        (429, "TooManyRequestsException"),
        (400, "ThrottlingException"),
        (400, "RequestLimitExceeded"),
        (400, "BandwidthLimitExceeded"),
        (400, "ClientDisconnect"),
        (400, "ExpiredRequest"),
        (400, "RequestTimeout"),
        (403, "RequestTimeTooSkewed"),
    ],
)
async def test_what_passes_is_no_dead_letter(world: World, status: int, code: str) -> None:
    """S-245: a store that is busy, or whose link broke, says so in many words."""
    await world.start(first_wait=0.01)
    rule = world.wire.rule("PUT", "", answer(status, code), times=2)
    path = world.log()
    told = await world.result(await world.send(path), path)
    assert rule.hits == 2
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert await world.bus.dead.list("bucket") == []


async def test_credentials_that_ran_out_by_another_name(world: World) -> None:
    """S-246: new ones are fetched."""
    await world.start()
    world.wire.rule("PUT", "", answer(401, "Unauthorized"))
    path = world.log()
    assert (await world.result(await world.send(path), path))["attempts"] == 1
    assert world.tokens.asked == 2


@pytest.mark.parametrize("minutes", [-300, 16])
async def test_a_wrong_clock_is_waited_for(
    world: World, proxy: S3BucketProxy, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """S-245, S-246: a bare 403 by a store whose time is another: the log goes when the clock is right."""
    monkeypatch.setattr(store_module, "DOUBTED_AFTER", 0.0)
    await world.start()
    date = formatdate(time.time() + 60 * minutes, usegmt=True)
    rule = world.wire.rule("HEAD", "flights/a.ulg", answer(403, headers=f"Date: {date}\r\n"), times=999)
    path = world.log()
    upload = await world.send(path, s3_key="flights/a.ulg")
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["last_error"])
    assert f"clock is {abs(minutes)} minutes from the store's" in seen["last_error"]
    assert await proxy.may_store("flights/b.ulg") == {"success": True}
    assert world.tokens.asked <= 2  # new credentials do not set a clock
    rule.times = 0
    await world.result(upload, path, s3_key="flights/a.ulg")
    assert world.stored("flights/a.ulg") == path.read_bytes()


async def test_a_refusal_with_the_right_time_is_one(world: World) -> None:
    """S-272: a dead letter at once."""
    await world.start()
    date = formatdate(time.time() - 600, usegmt=True)
    world.wire.rule("HEAD", "", answer(403, headers=f"Date: {date}\r\n"), times=99)
    path = world.log()
    with pytest.raises(ReplyError, match="Access denied"):
        await world.result(await world.send(path, s3_key="flights/a.ulg"), path, s3_key="flights/a.ulg")


async def test_the_store_gave_the_parts_up_and_hides_what_is_missing(world: World, small_parts: int) -> None:
    """S-245, S-258: offline for longer than the store keeps parts, without the right to list: it begins anew."""
    await world.start()
    world.wire.delay = 0.03
    path = world.log(8 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 3 * small_parts)
    await world.stop()
    (old,) = await world.unfinished()
    async with world.store(endpoint=world.s3.url) as store:
        await store.abort(old.key, old.upload)

    async def hidden(exchange: Exchange) -> bytes:
        told = await exchange.forward()
        return await DENIED(exchange) or b"" if told.startswith(b"HTTP/1.1 404") else told

    rule = world.wire.rule("HEAD", "", hidden, times=99)
    await world.start()
    told = await world.result(upload, path)
    assert rule.hits >= 2
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert await world.bus.dead.list("bucket") == []
    await world.settled()


@pytest.mark.parametrize("parts", [0, 3])
async def test_stored_and_not_to_be_looked_at(world: World, small_parts: int, parts: int) -> None:
    """S-245: rights to store and none to read: the store's checksums of what it took are enough."""
    await world.start()
    world.wire.rule("HEAD", "", DENIED, times=99)
    path = world.log(parts * small_parts or KB)
    told = await world.result(await world.send(path), path)
    assert (told["size"], told["attempts"]) == (path.stat().st_size, 1)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert told["etag"]
    assert await world.bus.dead.list("bucket") == []


async def test_a_list_leaves_out_what_is_not_to_be_seen(world: World, proxy: S3BucketProxy) -> None:
    """S-247, S-254, S-266: rights per machine: ours are listed, and no credentials are fetched for the others."""
    await theirs(world, "flights/a.ulg")
    await theirs(world, "flights/c.ulg")
    assert (await proxy.upload_file(world.log(), custom_s3_key="flights/b.ulg"))["success"]
    asked = world.tokens.asked
    assert proxy._store is not None
    assert proxy._store._credentials is not None
    proxy._store._credentials._since -= 3600  # so old that they may have run out
    for name in "ac":
        world.wire.rule("HEAD", f"flights/{name}.ulg", DENIED, times=9)
    told = await proxy.list_files("flights/")
    assert [one["key"] for one in told["files"]] == ["flights/b.ulg"]
    assert world.tokens.asked == asked


@pytest.mark.parametrize("what", ["list", "head"])
async def test_a_free_key_where_others_are_not_to_be_seen(world: World, what: str) -> None:
    """S-065, S-247: rights per machine: whether another machine has this id cannot be seen, and a free key is free."""
    await theirs(world, "flights/old.ulg")
    await world.start()
    if what == "list":
        world.wire.rule("GET", "list-type", answer(403, "AccessDenied"), times=99)
    else:
        world.wire.rule("HEAD", "flights/old.ulg", DENIED, times=99)
    path = world.log()
    await world.result(await world.send(path, s3_key="flights/a.ulg"), path, s3_key="flights/a.ulg")
    assert world.stored("flights/a.ulg") == path.read_bytes()


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_token_service_that_refuses_us_for_a_while(world: World, proxy: S3BucketProxy, status: int) -> None:
    """S-246, S-268, S-271: nobody is logged in there yet: the documented words, and the log waits."""
    world.tokens.status = status
    await world.start()
    path = world.log()
    upload = await world.send(path)
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["last_error"])
    assert seen["last_error"] == f"Authentication failed: the session token service answered {status}"
    told: dict[str, Any] = await proxy.upload_file(path, upload_id="other", patience=0.1)
    assert (told["error"][:21], told["success"], told["queued"]) == ("Authentication failed", False, True)
    assert await proxy.may_store("flights/a.ulg") == {"success": True}
    world.tokens.status = 200
    assert (await world.result(upload, path))["success"]
    assert (await proxy.upload_file(path, upload_id="other"))["success"]
    assert await world.bus.dead.list("bucket") == []


async def test_a_token_service_that_refuses_us_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-271: then it is a dead letter, in the documented words; another trouble or a pause in between begins anew."""
    monkeypatch.setattr(upload_module, "REFUSED_S", 0.5)
    monkeypatch.setattr(credentials_module, "REMEMBERED_SECONDS", 0.0)
    world.tokens.status = 401
    await world.start(first_wait=0.02)
    path = world.log()
    upload = await world.send(path)
    await world.until(upload, lambda one: one["state"] == "offline" and "401" in (one["last_error"] or ""))
    world.tokens.status = 500
    await world.until(upload, lambda one: "500" in one["last_error"])
    await asyncio.sleep(0.5)
    world.tokens.status = 401
    began = time.monotonic()
    with pytest.raises(ReplyError, match="Authentication failed") as refused:
        await world.result(upload, path)
    assert time.monotonic() - began >= 0.5
    assert refused.value.detail["status"] == 403
    (letter,) = await world.bus.dead.list("bucket")
    assert "answered 401, for 0.0 hours" in letter.reason
