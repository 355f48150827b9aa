"""Stores and links that fail: nothing is lost, nothing wrong is stored, and nobody has to touch anything."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket import store as store_module

from .conftest import KB, World
from .wire import Act, answer, lose_answer, other_etag, reset, stall
from support.s3_world import KEYS

PARTS = "partNumber="


@pytest.mark.parametrize(
    ("method", "part", "act", "times"),
    [
        ("PUT", PARTS, answer(500, "InternalError"), 3),
        ("PUT", PARTS, answer(503, "SlowDown"), 2),
        ("PUT", PARTS, reset, 3),
        ("PUT", PARTS, lose_answer, 2),
        ("PUT", PARTS, other_etag, 2),
        ("PUT", PARTS, answer(400, "BadDigest"), 2),
        ("POST", "uploads", answer(500, "InternalError"), 2),
        ("POST", "uploads", lose_answer, 1),
        ("POST", "uploadId", answer(500, "InternalError"), 1),
        ("POST", "uploadId", reset, 1),
        ("POST", "uploadId", lose_answer, 1),
        ("HEAD", "", answer(503), 1),
        ("HEAD", "", reset, 1),
    ],
)
async def test_a_failing_store_only_costs_time(
    world: World, small_parts: int, method: str, part: str, act: Act, times: int
) -> None:
    """S-245: errors, resets, lost answers, wrong checksums of each request of a multipart upload."""
    await world.start()
    rule = world.wire.rule(method, part, act, times=times)
    path = world.log(4 * small_parts + 77)
    told = await world.result(await world.send(path), path)
    assert rule.hits == times
    assert world.stored(told["s3_key"]) == path.read_bytes()
    await world.settled()


async def test_a_store_that_stops_talking(world: World, small_parts: int) -> None:
    """Slow reads: a request without an answer is given up after its time, and repeated."""
    await world.start(store=world.store(timeout=0.5))
    rule = world.wire.rule("PUT", PARTS, stall, times=2)
    path = world.log(3 * small_parts)
    told = await world.result(await world.send(path), path)
    assert rule.hits == 2
    assert world.stored(told["s3_key"]) == path.read_bytes()


async def test_a_store_that_keeps_something_else(world: World, small_parts: int) -> None:
    """Wrong bytes again and again: a dead letter that says so, and nothing wrong stays stored."""
    await world.start(first_wait=0.01)
    world.wire.rule("HEAD", "", other_etag, times=100)
    path = world.log(KB)
    with pytest.raises(ReplyError, match="checksum"):
        await world.result(await world.send(path), path)
    assert [one for one in world.s3.files.rglob("*") if one.is_file()] == []
    letter = (await world.bus.dead.list("bucket"))[0]
    assert "5 times" in letter.reason
    with pytest.raises(ReplyError) as large:
        path = world.log(3 * small_parts, "large.ulg")
        world.wire.rule("PUT", PARTS, other_etag, times=1000)
        await world.result(await world.send(path), path)
    assert large.value.detail["status"] == 502
    await world.settled()


async def test_the_store_has_forgotten_the_upload(world: World, small_parts: int) -> None:
    """It begins anew."""
    await world.start()
    world.wire.rule("PUT", "partNumber=3", answer(404, "NoSuchUpload"), times=1)
    world.wire.rule("GET", "uploadId", answer(404, "NoSuchUpload"), times=1)
    path = world.log(4 * small_parts)
    told = await world.result(await world.send(path), path)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert world.wire.count("POST", "uploads") == 2


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket"])
async def test_a_store_that_refuses_is_a_dead_letter(world: World, code: str) -> None:
    """S-268, S-272: at once, with the reason; nobody tries for ever what is forbidden."""
    await world.start()
    world.wire.rule("PUT", "", answer(403 if code == "AccessDenied" else 404, code), times=99)
    path = world.log()
    with pytest.raises(ReplyError) as refused:
        await world.result(await world.send(path), path)
    assert code in refused.value.detail["error"]
    assert code in (await world.bus.dead.list("bucket"))[0].reason
    assert world.wire.count("PUT") == 1


async def test_a_dead_letter_can_be_put_back(world: World) -> None:
    """When the reason is gone, `petalbus dead requeue` is all it takes."""
    await world.start()
    path = world.log()
    upload = await world.send(path)
    hidden = path.rename(path.with_suffix(".x"))
    with pytest.raises(ReplyError, match="cannot be read"):
        await world.result(upload, path)
    hidden.rename(path)
    (letter,) = await world.bus.dead.list("bucket")
    await world.bus.dead.requeue("bucket", letter.entry)
    told = await world.until(upload, lambda one: one["state"] == "done")
    assert world.stored(told["key"]) == path.read_bytes()


# -- credentials ------------------------------------------------------------------------------------------------------


async def test_credentials_that_run_out_on_the_way(world: World, small_parts: int) -> None:
    """S-246, S-250, S-260: each part asks for new ones when it must, parallel parts once; all bytes arrive."""
    await world.start()
    rule = world.wire.rule("PUT", PARTS, answer(400, "ExpiredToken"), times=2)
    path = world.log(6 * small_parts)
    told = await world.result(await world.send(path), path)
    assert rule.hits == 2
    assert told["attempts"] == 1
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert 2 <= world.tokens.asked <= 3


async def test_a_bare_refusal_of_a_look_renews_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD has no room for a reason: a bare 400 or 403 may mean that the credentials have run out."""
    monkeypatch.setattr(store_module, "DOUBTED_AFTER", 0.0)
    await world.start()
    world.wire.rule("HEAD", "", answer(400), times=1)
    path = world.log()
    assert (await world.result(await world.send(path), path))["success"]
    assert world.tokens.asked == 2


async def test_credentials_are_renewed_before_they_end(world: World) -> None:
    """S-250: two minutes before; not for each request."""
    soon = datetime.now(UTC) + timedelta(seconds=60)
    world.tokens.answer["expiration"] = soon.isoformat()
    await world.start()
    first = world.log(name="a.ulg")
    await world.result(await world.send(first), first)
    asked = world.tokens.asked
    assert asked >= 2
    world.tokens.answer["expiration"] = (soon + timedelta(hours=1)).isoformat()
    for name in "bcd":
        path = world.log(name=f"{name}.ulg")
        await world.result(await world.send(path), path)
    assert world.tokens.asked == asked + 1


async def test_revoked_credentials_are_a_dead_letter(world: World, small_parts: int) -> None:
    """S-271: those that stay refused when fetched anew; they are in no record."""
    await world.start()
    world.wire.rule("PUT", "partNumber=3", answer(403, "ExpiredToken"), times=99)
    path = world.log(4 * small_parts)
    with pytest.raises(ReplyError) as refused:
        await world.result(await world.send(path), path)
    assert refused.value.detail["status"] == 403
    letter = (await world.bus.dead.list("bucket"))[0]
    assert not any(secret in letter.reason + letter.detail for secret in (KEYS[1], "secretAccessKey"))
    assert world.tokens.asked == 2


@pytest.mark.parametrize("status", [500, 429])
async def test_a_token_service_that_fails_is_waited_for(world: World, status: int) -> None:
    """S-246: until it gives out credentials again."""
    world.tokens.status = status
    await world.start()
    path = world.log()
    upload = await world.send(path)
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["last_error"])
    assert f"answered {status}" in seen["last_error"]
    world.tokens.status = 200
    assert (await world.result(upload, path))["success"]


async def test_a_token_service_that_answers_nonsense_is_waited_for(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The page of a network that wants a login, or a gateway's: no log is given up for it, and it is shown nowhere."""
    right = world.tokens.answer
    world.tokens.answer = {"accessKeyId": "secret-piece"}
    await world.start()
    path = world.log()
    upload = await world.send(path)
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["last_error"])
    assert "lacks" in seen["last_error"]
    assert "secret-piece" not in caplog.text + seen["last_error"]
    world.tokens.answer = right
    assert (await world.result(upload, path))["success"]


# -- links ------------------------------------------------------------------------------------------------------------


async def test_offline_from_the_start_then_a_link(world: World, small_parts: int) -> None:
    """S-245: it records without a link; when there is one, all its logs are stored with no one touching it."""
    await world.wire.shut()
    await world.start()
    paths = [world.log(200 + number * small_parts, f"{number}.ulg") for number in range(4)]
    uploads = [await world.send(path) for path in paths]
    for upload in uploads:
        await world.until(upload, lambda one: one["state"] == "offline")
    await world.stop()
    await world.start()
    await world.until(uploads[-1], lambda one: one["state"] == "offline")
    assert world.handler is not None
    assert "cannot be reached" in world.handler.statistics()["last_error"]
    await world.wire.open()
    for upload, path in zip(uploads, paths, strict=True):
        assert world.stored((await world.result(upload, path))["s3_key"]) == path.read_bytes()


async def test_a_link_that_comes_and_goes(world: World, small_parts: int) -> None:
    """Each time it goes on where it was: hardly anything is sent twice."""
    await world.start()
    world.wire.delay = 0.01
    path = world.log(30 * small_parts)
    upload = await world.send(path)
    for share in (5, 12, 20):
        await world.until(upload, lambda one, least=share * small_parts: one["bytes"] >= least)
        await world.wire.shut()
        await asyncio.sleep(0.05)
        await world.wire.open()
    told = await world.result(upload, path)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert told["sent_bytes"] <= path.stat().st_size + 3 * 3 * small_parts


async def test_a_machine_that_does_not_know_itself_waits(world: World) -> None:
    """S-247: nothing is stored under a name that is not known."""
    world.machine = None
    await world.start()
    path = world.log()
    upload = await world.send(path)
    seen = await world.until(upload, lambda one: one["state"] == "offline")
    assert "machine id" in seen["last_error"]
    world.machine = "m7"
    assert (await world.result(upload, path))["s3_key"].startswith("m7/")
