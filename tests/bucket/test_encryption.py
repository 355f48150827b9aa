"""Encryption by the store: asked for as set up, never left out; a store that cannot do it is told of clearly."""

from __future__ import annotations

import re

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket import store as store_module
from petalbus.handlers.bucket.errors import NotEncrypted
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.transfer import options_of, put
from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import MACHINE, World
from .wire import Act, Exchange

ASKED = re.compile(rb"(?im)^x-amz-server-side-encryption: *([^\r]*)")


class Picky:
    """A store that refuses some encryption; ``seen``: what each request that makes an object has asked for."""

    def __init__(self, world: World, status: int = 501, error: str = "", *, refuses: bytes | None = b"") -> None:
        self.seen: list[bytes | None] = []
        self._status, self._error, self._refuses = status, error, refuses
        for method, part in (("PUT", "/logs/"), ("POST", "uploads")):
            world.wire.rule(method, part, self.act(), times=10_000)

    def act(self) -> Act:
        """Refuse, or pass on."""

        async def act(exchange: Exchange) -> bytes:
            if "partNumber" in exchange.target:
                return await exchange.forward()
            found = ASKED.search(exchange.head)
            self.seen.append(found[1] if found else None)
            if self._refuses is None or not found or self._refuses not in found[1]:
                return await exchange.forward()
            body = f"<Error>{self._error}</Error>".encode()
            head = f"HTTP/1.1 {self._status} Told\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            return head.encode() + body

        return act


@pytest.mark.parametrize(("encryption", "asked"), [("AES256", b"AES256"), ("aws:kms", b"aws:kms"), ("none", None)])
async def test_it_is_asked_for(world: World, small_parts: int, encryption: str, asked: bytes | None) -> None:
    """S-245: in one request, in parts, and by a move; other values where they are set."""
    seen = Picky(world, refuses=None).seen
    await world.start(store=world.store(encryption=encryption))
    for path in (world.log(), world.log(3 * small_parts, "large.ulg")):
        told = await world.result(await world.send(path, s3_key=f"m1/{path.name}"), path)
        assert world.stored(told["s3_key"]) == path.read_bytes()
    proxy = S3BucketProxy(world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE, encryption=encryption)
    await proxy.start()
    assert (await proxy.move_file("m1/flight.ulg", "m1/moved.ulg"))["success"]
    await proxy.stop()
    assert seen == [asked] * 3


REFUSALS = [
    (501, "<Code>NotImplemented</Code><Message>A header implies what is not implemented</Message>"),
    (400, "<Code>InvalidEncryptionAlgorithmError</Code><Message>no</Message>"),
    (400, "<Code>InvalidArgument</Code><ArgumentName>x-amz-server-side-encryption</ArgumentName>"),
    (400, "<Code>KMS.NotFoundException</Code><Message>no such key</Message>"),
]


@pytest.mark.parametrize(("status", "error"), REFUSALS)
@pytest.mark.parametrize("free", [True, False])
async def test_a_store_that_cannot_is_waited_for(
    world: World, small_parts: int, status: int, error: str, free: bool
) -> None:
    """S-245, S-268: no log is given up for a setting, none goes without; the text names it; few bytes are wasted."""
    picky = Picky(world, status, error)
    await world.start(first_wait=0.01)
    path = world.log(3 * small_parts if free else 200)
    upload = await world.send(path, s3_key="flights/a.ulg" if free else "m1/a.ulg")
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["attempts"] > 3)
    assert "s3_encryption" in seen["last_error"]
    assert "AES256" in seen["last_error"]
    assert picky.seen == [b"AES256"]
    await world.stop()
    await world.start(store=world.store(encryption="none"))
    told = await world.result(upload, path)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert await world.bus.dead.list("bucket") == []


async def test_a_store_that_can_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while it is asked again; a deadline that passes before names the setting, too."""
    monkeypatch.setattr(store_module, "NOT_ENCRYPTED_S", 0.1)
    picky = Picky(world, *REFUSALS[0])
    await world.start(first_wait=0.02)
    path = world.log()
    with pytest.raises(ReplyError, match=r"deadline passed.*s3_encryption"):
        await world.result(await world.send(path, id="one", deadline=3), path)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["state"] == "offline")
    picky._refuses = None
    assert (await world.result(upload, path))["success"]


async def test_a_refusal_that_may_be_about_it_says_so(world: World) -> None:
    """S-272: a dead letter, with the setting in its text: a store has not said what it does not like."""
    Picky(world, 400, "<Code>InvalidArgument</Code><Message>no</Message>")
    await world.start()
    path = world.log()
    with pytest.raises(ReplyError, match=r"InvalidArgument.*s3_encryption"):
        await world.result(await world.send(path), path)
    assert "s3_encryption" in (await world.bus.dead.list("bucket"))[0].reason


async def test_a_store_without_conditions_and_without_encryption(world: World) -> None:
    """What is refused for its condition is not taken for a refusal to encrypt."""
    picky = Picky(world)

    async def no_conditions(exchange: Exchange) -> bytes:
        if b"if-none-match" in exchange.head.lower():
            return b"HTTP/1.1 501 Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        return await picky.act()(exchange)

    picky._refuses = None
    world.wire._rules.clear()
    rule = world.wire.rule("PUT", "/logs/", no_conditions, times=100)
    await world.start()
    path = world.log()
    assert (await world.result(await world.send(path, s3_key="flights/a.ulg"), path))["success"]
    assert rule.hits == 2


async def test_another_kind_may_be_taken(world: World) -> None:
    """S-066: that an object cannot be copied with its own encryption keeps no upload from going."""
    Picky(world, *REFUSALS[0], refuses=b"kms")
    path = world.log()
    async with world.store() as store:
        await put(store, check_file(path), "m1/a.ulg", options_of(check_file(path), MACHINE))
        for _ in range(2):
            with pytest.raises(NotEncrypted, match=r"aws:kms.*s3_encryption"):
                await store.copy("m1/a.ulg", "m1/b.ulg", {"ServerSideEncryption": "aws:kms"}, {})
        await put(store, check_file(path), "m1/c.ulg", options_of(check_file(path), MACHINE))
    assert world.stored("m1/c.ulg") == path.read_bytes()


async def test_checksums_of_what_is_encrypted_with_keys_of_ones_own(world: World, small_parts: int) -> None:
    """Such a store's ETag is no MD5, though it looks like one: then it says nothing."""

    async def by_kms(exchange: Exchange) -> bytes:
        told = await exchange.forward()
        told = re.sub(rb'(?i)(etag: *")[0-9a-f]{4}', rb"\g<1>0000", told)
        return told.replace(b"\r\n", b"\r\nx-amz-server-side-encryption: aws:kms\r\n", 1)

    for method, part in (("PUT", "m1/small"), ("HEAD", "")):
        world.wire.rule(method, part, by_kms, times=100)
    await world.start(store=world.store(encryption="aws:kms"))
    path = world.log(name="small.ulg")
    assert (await world.result(await world.send(path, s3_key="m1/small.ulg"), path))["attempts"] == 1


async def test_the_proxy_says_it_too(world: World) -> None:
    """S-268: without a daemon the answer is an error in the documented shape."""
    Picky(world, *REFUSALS[0])
    proxy = S3BucketProxy(world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE)
    await proxy.start()
    told = await proxy.upload_file(world.log())
    assert (told["status"], told["success"], "s3_encryption" in told["error"]) == (501, False, True)
    await proxy.stop()
