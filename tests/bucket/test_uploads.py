"""Uploads as records: what becomes of one, and what is told meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError

from .conftest import MB, World


async def test_a_record_becomes_an_object(world: World) -> None:
    """S-063, S-245, S-252: checked, stored under a key of its own, with the metadata that logs have."""
    await world.start()
    path = world.log()
    told = await world.result(await world.send(path), path)
    assert told["success"]
    assert told["s3_key"].startswith("m1/flight-logs/")
    assert told["url"] == told["file_url"]
    assert world.stored(told["s3_key"]) == path.read_bytes()
    async with world.store() as store:
        head = await store.head(told["s3_key"])
    assert (head["ContentType"], head["Metadata"]["original-filename"]) == ("application/x-ulog", "flight.ulg")
    assert head["Metadata"]["machine-id"] == "m1"


async def test_a_large_one_goes_in_parts_and_tells_how_far_it_is(world: World) -> None:
    """S-245: at most two progress notes a second, growing; the same bytes and checksum at the end."""
    await world.start()
    world.wire.delay = 0.4
    path = world.log(26 * MB)
    heard: list[dict[str, Any]] = []
    told = await world.result(await world.send(path), path, on_progress=lambda reply: heard.append(reply.data))
    assert world.stored(told["s3_key"]) == path.read_bytes()
    assert told["etag"]
    assert told["sent_bytes"] == path.stat().st_size
    assert [one["bytes"] for one in heard] == sorted(one["bytes"] for one in heard)
    assert 2 <= len(heard) <= 2 * told["seconds"] + 2
    assert heard[-1]["total"] == path.stat().st_size
    assert world.handler is not None
    assert world.handler.statistics()["done"] == 1


async def test_what_is_no_log_is_a_dead_letter(world: World) -> None:
    """S-251, S-268, S-269, S-270: with the documented text and status, and nothing is sent."""
    await world.start()
    bad = world.folder / "a.txt"
    bad.write_bytes(b"text")
    with pytest.raises(ReplyError) as refused:
        await world.result(await world.send(bad), bad)
    assert refused.value.detail["status"] == 400
    assert "Invalid file extension. Only .bag, .ulg files are allowed" in refused.value.detail["error"]
    letters = await world.bus.dead.list("bucket")
    assert "Invalid file extension" in letters[0].reason
    assert world.wire.requests == []
