"""Keys that are made of a file's name and the time: two logs may make the same one, and both are kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from petalbus.handlers.bucket import names
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.names import DOCUMENTED_TEMPLATE, make_key
from petalbus.handlers.bucket.transfer import options_of, put
from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import MACHINE, World
from .wire import Exchange, answer, lose_answer, reset

KEY = "flight_logs/m1/20250727_143022_log001.ulg"


class Clock(datetime):
    """One that stands still, as after each boot without a battery."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # no subclass of it is needed
        """Always the same."""
        return datetime(2025, 7, 27, 14, 30, 22, tzinfo=tz or UTC)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "datetime", Clock)


def logs(world: World, *sizes: int) -> list[Path]:
    """Logs of one name, each in a session's folder."""
    made = []
    for number, size in enumerate(sizes):
        folder = world.folder / f"sess{number:03}"
        folder.mkdir()
        made.append(world.log(size, "log001.ulg").rename(folder / "log001.ulg"))
    return made


def kept(world: World) -> list[bytes]:
    """What the store has."""
    return sorted(path.read_bytes() for path in world.s3.files.rglob("*.ulg"))


async def store(world: World, path: Path) -> dict[str, Any]:
    """Upload it, as the documented layout has it."""
    upload = await world.send(path, template=DOCUMENTED_TEMPLATE)
    return await world.result(upload, path, template=DOCUMENTED_TEMPLATE)


@pytest.mark.parametrize("at_once", [True, False])
async def test_logs_of_one_name_and_second_are_objects_of_their_own(
    world: World, small_parts: int, at_once: bool
) -> None:
    """S-245, S-252, S-259: one does not replace the other, small or in parts; the first has the documented key."""
    await world.start()
    paths = logs(world, 200, 300, 3 * small_parts, 4 * small_parts)
    if at_once:
        told = await asyncio.gather(*(store(world, path) for path in paths))
    else:
        told = [await store(world, path) for path in paths]
        assert told[0]["s3_key"] == KEY
    for one, path in zip(told, paths, strict=True):
        assert world.stored(one["s3_key"]) == path.read_bytes()
    assert kept(world) == sorted(path.read_bytes() for path in paths)
    assert sum(one["s3_key"] == KEY for one in told) == 1
    assert all(one["s3_key"].startswith("flight_logs/m1/20250727_143022_") for one in told)
    await world.settled()


@pytest.mark.parametrize("large", [True, False])
async def test_a_lost_answer_is_no_other_log(world: World, small_parts: int, large: bool) -> None:
    """S-245: a repetition knows the object that it has stored itself, also in the next process."""
    await world.start(first_wait=30)
    (path,) = logs(world, 3 * small_parts if large else 200)
    rule = world.wire.rule("POST" if large else "PUT", "uploadId" if large else "log001", lose_answer, times=3)
    upload = await world.send(path, template=DOCUMENTED_TEMPLATE)
    await world.until(upload, lambda one: one["state"] == "offline")  # the library has tried again by itself
    rule.times = rule.hits
    await world.stop()
    await world.start()
    told = await world.result(upload, path, template=DOCUMENTED_TEMPLATE)
    assert told["s3_key"] == KEY
    assert kept(world) == [path.read_bytes()]


async def test_another_process_is_faster(world: World, small_parts: int) -> None:
    """S-252: what came while our parts went stays, and ours is stored beside it; nothing is left of the first try."""
    await world.start()
    (ours,) = logs(world, 4 * small_parts)
    theirs = check_file(world.log(300, "b.ulg"))
    async with world.store(endpoint=world.s3.url) as other:

        async def meanwhile(exchange: Exchange) -> bytes:
            await put(other, theirs, KEY, options_of(theirs, "m1"))
            return await exchange.forward()

        world.wire.rule("PUT", "partNumber=3", meanwhile)
        told = await store(world, ours)
    assert told["s3_key"] != KEY
    assert world.stored(KEY) == theirs.path.read_bytes()
    assert world.stored(told["s3_key"]) == ours.read_bytes()
    await world.settled()


async def test_a_store_that_does_not_let_us_look(world: World) -> None:
    """S-258: it says that something is there, and not what: then ours has another key."""
    await world.start()
    world.wire.rule("HEAD", "", answer(403), times=99)
    world.wire.rule("PUT", "20250727_143022_log001", answer(412, "PreconditionFailed"), times=99)
    (path,) = logs(world, 200)
    told = await store(world, path)
    assert told["s3_key"] != KEY
    assert kept(world) == [path.read_bytes()]


async def test_a_template_without_a_machine(world: World) -> None:
    """S-247, S-259: another machine's log of that name and second is not replaced, and ours is no dead letter."""
    await world.start()
    theirs = check_file(world.log(300, "b.ulg"))
    async with world.store(endpoint=world.s3.url) as other:
        await put(other, theirs, "flights/20250727_143022_log001.ulg", options_of(theirs, "m2"))
        await put(other, theirs, "station/a.ulg", options_of(theirs, "station"))
    (path,) = logs(world, 200)
    told = await world.result(await world.send(path, template="flights/{stamp}_{name}"), path)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert world.stored("flights/20250727_143022_log001.ulg") == theirs.path.read_bytes()
    for template in ("station/{stamp}_{name}", "m2/{stamp}_{name}"):
        refused = await world.send(path, template=template)
        seen = await world.until(refused, lambda one: one["state"] == "failed")
        assert seen["last_error"].startswith("Access denied")


async def test_a_template_that_makes_one_key_for_all(world: World) -> None:
    """S-259: a record's own template without a time and a name replaces nothing: it is refused."""
    await world.start()
    paths = logs(world, 200, 300)
    gone = world.wire.rule("PUT", "", reset, times=3)
    first = await world.send(paths[0], template="{machine}/log.ulg")
    await asyncio.wait_for(gone.happened.wait(), 20)
    second = await world.send(paths[1], template="{machine}/log.ulg")
    told = await world.until(second, lambda one: one["state"] == "failed")
    assert "one key for all logs" in told["last_error"]
    await world.until(first, lambda one: one["state"] == "done")
    assert kept(world) == [paths[0].read_bytes()]


async def test_a_proxy_without_a_daemon(world: World) -> None:
    """S-259: the same where a petal's process stores the logs itself."""
    proxy = S3BucketProxy(
        world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE, key_template=DOCUMENTED_TEMPLATE
    )
    await proxy.start()
    paths = logs(world, 200, 300)
    told = [await proxy.upload_file(path) for path in paths]
    assert told[0]["s3_key"] == KEY
    for one, path in zip(told, paths, strict=True):
        assert world.stored(one["s3_key"]) == path.read_bytes()
    await proxy.stop()


def test_apart() -> None:
    """S-259: the time stays where programs look for it."""
    told = {"machine": "m1", "name": "a.ulg", "prefix": "flight_logs/"}
    made = make_key(DOCUMENTED_TEMPLATE, **told, apart=True)
    assert made.startswith("flight_logs/m1/20250727_143022_")
    assert made.endswith("_a.ulg")
    assert len(made) == len("flight_logs/m1/20250727_143022_12345678_a.ulg")
    assert make_key("{machine}/{name}", **told, apart=True) != make_key("{machine}/{name}", **told, apart=True)
