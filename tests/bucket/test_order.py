"""Several uploads: who goes first, and pausing, resuming, cancelling, deadlines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError, RequestCancelled
from petalbus.handlers.bucket import handler as handler_module
from petalbus.handlers.bucket import words
from petalbus.schemas.vocabulary import Priority, Status

from .conftest import World


async def test_an_urgent_small_one_overtakes_large_ones(world: World, small_parts: int) -> None:
    """S-245: two large ones are under way at once; a small urgent one is done long before them."""
    await world.start()
    world.wire.delay = 0.05
    large = [world.log(40 * small_parts, f"{number}.ulg") for number in range(2)]
    uploads = [await world.send(path) for path in large]
    for upload in uploads:
        await world.until(upload, lambda one: one["bytes"] > 0)
    small = world.log(name="urgent.ulg")
    urgent = await world.send(small, priority=Priority.HIGH)
    assert (await world.result(urgent, small, priority=Priority.HIGH))["success"]
    for upload in uploads:
        seen = await world.listed(upload)
        assert seen is not None
        assert seen["bytes"] < 35 * small_parts, "it waited for a large one"
    for upload, path in zip(uploads, large, strict=True):
        assert world.stored((await world.result(upload, path))["s3_key"]) == path.read_bytes()


async def test_those_that_wait_go_by_priority(world: World, small_parts: int) -> None:
    """What was asked for last and is more urgent is done first; of the same priority the older."""
    await world.start()
    world.wire.delay = 0.02
    first = world.log(30 * small_parts, "first.ulg")
    await world.send(first)
    waiting: list[tuple[str, Any]] = []
    for name, level in (("low", Priority.LOW), ("normal", Priority.NORMAL), ("high", Priority.HIGH)):
        path = world.log(6 * small_parts, f"{name}.ulg")
        waiting.append((await world.send(path, priority=level), (path, level)))
    for upload, (path, level) in waiting:
        assert (await world.result(upload, path, priority=level))["success"]
    told = (await world.bus.request(words.APP, words.UPLOADS, {}, timeout=20)).data
    ended = [one["file"].rpartition("/")[2] for one in told["ended"]]
    assert ended.index("high.ulg") < ended.index("normal.ulg") < ended.index("low.ulg")


async def test_pause_and_resume_survive_a_restart(world: World, small_parts: int) -> None:
    """One is paused and stays so in the next process; others go on. Resumed, it goes on where it was."""
    await world.start()
    world.wire.delay = 0.02
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 5 * small_parts)
    await world.bus.request(words.APP, words.PAUSE, {"id": upload}, timeout=20)
    assert (await world.until(upload, lambda one: one["state"] == "paused"))["key"]
    await world.stop()
    await world.start()
    await world.until(upload, lambda one: one["state"] == "paused")
    other = world.log(name="other.ulg")
    assert (await world.result(await world.send(other), other))["success"]
    assert (await world.listed(upload) or {})["state"] == "paused"
    await world.bus.request(words.APP, words.RESUME, {"id": upload}, timeout=20)
    told = await world.result(upload, path)
    assert told["kept_bytes"] >= 4 * small_parts
    assert world.stored(told["s3_key"]) == path.read_bytes()
    with pytest.raises(ReplyError, match="no upload 'gone'"):
        await world.bus.request(words.APP, words.PAUSE, {"id": "gone"}, timeout=20)


async def test_all_are_paused_and_resumed(world: World) -> None:
    """Also those that come later, and over a restart."""
    await world.start()
    await world.bus.request(words.APP, words.PAUSE, {}, timeout=20)
    paths = [world.log(name=f"{number}.ulg") for number in range(3)]
    uploads = [await world.send(path) for path in paths]
    for upload in uploads:
        await world.until(upload, lambda one: one["state"] == "paused")
    await world.stop()
    handler = await world.start()
    assert handler.statistics()["paused"]
    assert world.wire.requests == []
    await world.bus.request(words.APP, words.RESUME, {}, timeout=20)
    for upload, path in zip(uploads, paths, strict=True):
        assert (await world.result(upload, path))["success"]


@pytest.mark.parametrize("state", ["uploading", "paused", "offline", "waiting in the inbox"])
async def test_cancel(world: World, small_parts: int, state: str) -> None:
    """In each state: its sender is told, and nothing stays in the store or in the notes."""
    path = world.log(20 * small_parts)
    if state == "offline":
        await world.wire.shut()
    if state != "waiting in the inbox":
        await world.start()
    world.wire.delay = 0.02
    upload = await world.send(path)
    waiting = asyncio.create_task(world.result(upload, path))
    if state == "paused":
        await world.bus.request(words.APP, words.PAUSE, {"id": upload}, timeout=20)
    if state == "uploading":
        await world.until(upload, lambda one: one["bytes"] >= 3 * small_parts)
    elif state != "waiting in the inbox":
        await world.until(upload, lambda one: one["state"] == state)
    assert await world.bus.cancel(upload)
    with pytest.raises(RequestCancelled):
        await waiting
    assert await world.bus.status(upload) is Status.CANCELLED
    if state == "offline":
        await world.wire.open()
    await world.settled()
    assert world.handler is None or world.handler.statistics()["uploads"] == {}


async def test_a_deadline(world: World, small_parts: int) -> None:
    """While it waits for a link and while it is uploaded: given up in time, and told so."""
    await world.start()
    world.wire.delay = 0.1
    path = world.log(40 * small_parts)
    upload = await world.send(path, deadline=0.6)
    with pytest.raises(ReplyError) as late:
        await world.result(upload, path)
    assert (late.value.error_code, late.value.detail["status"]) == ("DEADLINE_EXPIRED", 504)
    assert await world.bus.status(upload) is Status.TIMEOUT
    await world.settled()
    await world.wire.shut()
    offline = await world.send(path, deadline=0.4)
    with pytest.raises(ReplyError, match="the store cannot be reached"):
        await world.result(offline, path)


async def test_orders_that_make_no_sense(world: World) -> None:
    """S-268, S-272: a dead letter with the field and what is wrong with it."""
    await world.start()
    path = world.log()
    for order, says in (
        ({"path": "relative.ulg"}, "path"),
        ({"path": 3}, "path"),
        ({"path": str(path), "s3_key": "m1/../m2/x.ulg"}, "Access denied"),
        ({"path": str(path), "template": "{nothing}"}, "template"),
        ({"path": str(path), "metadata": {"a": "\n"}}, "metadata"),
        ({"path": str(path), "metadata": []}, "metadata"),
    ):
        with pytest.raises(ReplyError, match=says):
            await world.bus.request(words.APP, words.UPLOAD, order, timeout=20)
    assert len(await world.bus.dead.list("bucket")) == 6
    assert world.wire.requests == []


async def test_no_other_machines_object_is_overwritten(world: World) -> None:
    """S-247, S-272: also under a key that names no machine; one's own may be."""
    await world.start()
    path = world.log()
    free = await world.result(await world.send(path, s3_key="flights/a.ulg"), path, s3_key="flights/a.ulg")
    assert free["s3_key"] == "flights/a.ulg"
    again = await world.send(path, s3_key="flights/a.ulg", metadata={"pilot": "Ada"})
    assert (await world.result(again, path, s3_key="flights/a.ulg"))["success"]
    async with world.store() as store:
        assert (await store.head("flights/a.ulg"))["Metadata"]["pilot"] == "Ada"
    world.machine = "m2"
    with pytest.raises(ReplyError, match="Access denied"):
        await world.result(await world.send(path, s3_key="flights/a.ulg"), path, s3_key="flights/a.ulg")


async def test_many_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are in our hands at a time; questions are answered meanwhile."""
    monkeypatch.setattr(handler_module, "HELD", 10)
    await world.wire.shut()
    await world.start()
    path = world.log()
    uploads = [await world.send(path) for _ in range(30)]
    await world.until(uploads[5], lambda one: one["state"] == "offline")
    told = await world.bus.request(words.APP, words.UPLOADS, {}, timeout=20, priority=Priority.HIGH)
    assert len(told.data["uploads"]) == 10
    await world.wire.open()
    for upload in uploads:
        assert (await world.result(upload, path, timeout=60))["success"]
