"""Downloads whose clients do not read, and those into files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from io import FileIO
from pathlib import Path

import pytest

from bucket.wire import Wire, reset
from petalbus.daemon.http import bucket as routes

from .conftest import MACHINE, ULOG, World

KEY = f"{MACHINE}/d.ulg"


async def test_unread_downloads_hold_nothing_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-255, S-267: six at once, the next is told when to come again; who reads nothing is left after a while."""
    content = ULOG + os.urandom(24 << 20)
    await world.proxy.upload_file(world.log("d.ulg", content), custom_s3_key=KEY)
    monkeypatch.setattr(routes, "UNREAD_S", 3.0)
    async with contextlib.AsyncExitStack() as stack:

        async def begin() -> int:
            return (await stack.enter_async_context(world.client.stream("GET", f"/bucket/download/{KEY}"))).status_code

        assert [await begin() for _ in range(routes.DOWNLOADS_AT_ONCE)] == [200] * routes.DOWNLOADS_AT_ONCE
        busy = await world.client.get(f"/bucket/download/{KEY}")
        assert (busy.status_code, busy.headers["retry-after"], busy.json()["status"]) == (503, "5", 503)
        async with asyncio.timeout(10):
            assert (await world.proxy.head_object(KEY))["success"]
            assert (await world.proxy.list_files())["success"]
        async with asyncio.timeout(30):
            while (got := await world.client.get(f"/bucket/download/{KEY}")).status_code == 503:
                await asyncio.sleep(0.2)
        assert got.content == content


async def test_two_downloads_into_one_file(world: World, tmp_path: Path) -> None:
    """S-255: each has a file of its own until it is complete; a link stays one; nothing is left beside it."""
    content = ULOG + os.urandom(2 << 20)
    await world.proxy.upload_file(world.log("d.ulg", content), custom_s3_key=KEY)
    place = tmp_path / "down"
    place.mkdir()
    (place / "link.ulg").symlink_to("real.ulg")
    told = await asyncio.gather(*(world.proxy.download_file(KEY, place / "link.ulg") for _ in range(4)))
    assert [one["size"] for one in told] == [len(content)] * 4
    assert (place / "real.ulg").read_bytes() == content
    assert sorted(path.name for path in place.iterdir()) == ["link.ulg", "real.ulg"]


async def test_places_that_are_no_files(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-255, S-268: every call answers a dict, and what is there stays as it is."""
    await world.proxy.upload_file(world.log("d.ulg"), custom_s3_key=KEY)
    place = tmp_path / "down"
    place.mkdir()
    os.mkfifo(place / "pipe")
    for odd in (place, place / "pipe", "/dev/null", world.log() / "below.ulg", "a\0b", None, place / ("x" * 300)):
        told = await world.proxy.download_file(KEY, odd)  # type: ignore[arg-type]  # one is none
        assert (told["status"], told["success"], told["error"][:15]) == (400, False, "Download failed"), told

    class Full(FileIO):
        def write(self, *_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("petalbus.handlers.bucket.reading.FileIO", Full)
        told = await world.proxy.download_file(KEY, place / "full.ulg")
    assert (told["status"], "No space left" in told["error"]) == (507, True)
    assert [path.name for path in place.iterdir()] == ["pipe"]


async def test_a_download_into_a_file_from_a_store_that_breaks(world: World, tmp_path: Path) -> None:
    """S-255, S-267: it goes on where it broke; 503 where the store stays away."""
    content = ULOG + os.urandom(1 << 20)
    await world.proxy.upload_file(world.log("d.ulg", content), custom_s3_key=KEY)
    async with Wire(world.s3.url) as wire:
        proxy = world.made(MACHINE, endpoint=wire.url)
        await proxy.start()
        rule = wire.rule("GET", "d.ulg", lambda one: _cut(one.forward()), times=2)
        target = tmp_path / "down" / "d.ulg"
        assert (await proxy.download_file(KEY, target))["success"]
        assert (target.read_bytes() == content, rule.hits) == (True, 2)
        wire.rule("GET", "d.ulg", lambda one: _cut(one.forward()))
        wire.rule("GET", "d.ulg", reset, times=100)
        told = await proxy.download_file(KEY, target)
        assert (told["status"], told["success"]) == (503, False), told
        assert list(target.parent.iterdir()) == [target]
        await proxy.stop()


async def _cut(answer: object) -> bytes:
    return (await answer)[:400_000]  # type: ignore[misc,no-any-return]  # a coroutine of bytes
