"""Uploads go on where they were: after kill -9, after a restart, with parts checked against the file."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import timedelta

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket import words
from petalbus.handlers.bucket.files import ULOG_MAGIC, check_file
from petalbus.handlers.bucket.transfer import options_of

from .conftest import KB, MB, World
from .wire import Act, answer, lose_answer, reset
from support.procs import ROOT, Children


async def test_a_killed_one_goes_on_in_the_next_process(world: World, children: Children) -> None:
    """S-245: parts that the store has are not sent again, and not asked for by anyone."""
    program = str(ROOT / "tests" / "bucket" / "uploader.py")
    arguments = (program, world.server.url, world.bus_name, world.wire.url, world.tokens.url, "0.05")
    child = await children.run(sys.executable, *arguments)
    await child.line("ready")
    world.wire.delay = 0.15
    path = world.log(40 * MB)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 28 * MB)  # of which two parts may be under way
    child.kill()
    await world.start()
    told = await world.result(upload, path)
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert told["attempts"] == 2
    assert told["kept_bytes"] >= 8 * MB
    await world.settled()


async def test_an_orderly_stop_keeps_the_place(world: World, small_parts: int) -> None:
    """The record stays in the inbox, its note stays, and so does its key."""
    await world.start()
    world.wire.delay = 0.02
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    before = await world.until(upload, lambda one: one["bytes"] >= 6 * small_parts)
    await world.stop()
    assert await world.unfinished()
    await world.start()
    told = await world.result(upload, path)
    assert told["s3_key"] == before["key"]
    assert told["kept_bytes"] >= 4 * small_parts
    assert world.stored(told["s3_key"]) == path.read_bytes()


async def test_parts_that_are_not_the_files_are_sent_again(world: World, small_parts: int) -> None:
    """Each part in the store is compared: size and checksum. (This store cannot replace one: then all begins anew.)"""
    path = world.log(6 * small_parts)
    key = "m1/made.ulg"
    good = path.read_bytes()
    log = check_file(path)
    async with world.store(endpoint=world.s3.url) as store:
        upload = await store.begin(key, options_of(log, "m1"))
        client = await store._connected()
        pieces = {
            1: good[:small_parts],  # right
            2: b"x" * small_parts,  # other bytes
            3: good[2 * small_parts : 3 * small_parts - 1],  # cut
            9: b"y" * 100,  # none of the file's
        }
        for number, piece in pieces.items():
            await client.upload_part(Bucket="logs", Key=key, UploadId=upload, PartNumber=number, Body=piece)
    note = {"path": str(path), "key": key, "stamp": log.stamp, "upload": upload, "part_bytes": small_parts}
    await world.bus.ask("HSET", words.notes_key(world.bus.keys), "known", json.dumps(note))
    await world.start()
    told = await world.result(await world.send(path, id="known"), path)
    assert told["s3_key"] == key
    assert told["kept_bytes"] in (0, small_parts)
    assert world.stored(key) == good
    await world.settled()


@pytest.mark.parametrize("act", [lose_answer, reset])
async def test_killed_while_it_is_completed(world: World, small_parts: int, act: Act) -> None:
    """Whether the store had done it or not: one object, the right one, and not sent twice."""
    await world.start()
    rule = world.wire.rule("POST", "uploadId", act, times=1)
    path = world.log(5 * small_parts)
    upload = await world.send(path)
    async with asyncio.timeout(10):
        await rule.happened.wait()
    await world.stop()
    await world.start()
    told = await world.result(upload, path)
    assert told["kept_bytes"] == path.stat().st_size
    assert world.stored(told["s3_key"]) == path.read_bytes()


async def test_a_store_that_does_not_let_us_list_parts(world: World, small_parts: int) -> None:
    """S-278: the documented rights (get, put, delete, list) are enough, also for going on."""
    for method, part in (("GET", "uploadId"), ("GET", "uploads"), ("DELETE", "uploadId")):
        world.wire.rule(method, part, answer(403, "AccessDenied"), times=999)
    await world.start()
    world.wire.delay = 0.02
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 6 * small_parts)
    await world.stop()
    await world.start()
    told = await world.result(upload, path)
    assert told["kept_bytes"] >= 4 * small_parts
    assert world.stored(told["s3_key"]) == path.read_bytes()


@pytest.mark.parametrize("change", ["grows", "shrinks", "other bytes", "goes"])
async def test_a_file_that_changes_is_refused(world: World, small_parts: int, change: str) -> None:
    """S-251, S-270: nothing half of it is stored, and what the store had is given up."""
    await world.start()
    world.wire.delay = 0.03
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 3 * small_parts)
    if change == "grows":
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "shrinks":
        os.truncate(path, 10 * small_parts)
    elif change == "other bytes":
        path.write_bytes(ULOG_MAGIC + b"\x01" + os.urandom(20 * small_parts - 8))
    else:
        path.unlink()
    with pytest.raises(ReplyError) as refused:
        await world.result(upload, path)
    assert refused.value.detail["status"] == 400
    assert "changed while it was" in str(refused.value)
    assert str(path) in (await world.bus.dead.list("bucket"))[0].reason
    await world.settled()
    assert [one for one in world.s3.files.rglob("*") if one.is_file()] == []


async def test_a_file_that_changed_while_nobody_uploaded(world: World, small_parts: int) -> None:
    """Between two runs as well: its first parts are of another file."""
    await world.start()
    world.wire.delay = 0.03
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 3 * small_parts)
    await world.stop()
    world.log(20 * small_parts)
    await world.start()
    with pytest.raises(ReplyError, match="changed while it was uploaded"):
        await world.result(upload, path)
    await world.settled()


async def test_what_was_left_behind_is_swept(world: World, small_parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of uploads that ended while the store was away, and old ones of this machine that nothing is noted of."""
    await world.start()
    world.wire.delay = 0.03
    path = world.log(20 * small_parts)
    upload = await world.send(path)
    await world.until(upload, lambda one: one["bytes"] >= 3 * small_parts)
    await world.wire.shut()
    assert await world.bus.cancel(upload)
    await world.until(upload, lambda one: one["state"] == "cancelled")
    log = check_file(world.log(KB, "other.ulg"))
    async with world.store(endpoint=world.s3.url) as store:
        await store.begin("m1/flight-logs/forgotten.ulg", options_of(log, "m1"))
        theirs = await store.begin("m2/flight-logs/theirs.ulg", options_of(log, "m2"))
    await world.stop()
    monkeypatch.setattr("petalbus.handlers.bucket.sweep.OLD", timedelta(hours=-1))  # then everything is old
    await world.wire.open()
    await world.start(sweep_every=0.2)
    await world.result(await world.send(log.path), log.path)
    async with asyncio.timeout(10):
        while [one.upload for one in await world.unfinished()] != [theirs]:
            await asyncio.sleep(0.05)
