"""One order over all streams: by boot and boot clock, whatever the wall clock did (I9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.replay.history import open_history
from petalbus.daemon.replay.points import EDGE
from petalbus.daemon.replay.source import open_source
from petalbus.daemon.services.janitor import boot_keys

from support.servers import RealServer, plain_client

SECOND = 10**9
YEAR = 365 * 86_400 * 1000


class Recorder:
    """Writes a recording by hand: boots, marks, and entries with ids as a server with that wall clock gives them."""

    def __init__(self, client: redis.asyncio.Redis, bus: str) -> None:
        self.keys = Keys(bus)
        self.client = client
        self.wall = 1_800_000_000_000
        self.boot = ""
        self.streams: list[str] = []

    async def begin(self, boot: str, number: int, *, mono: float | None = None) -> None:
        """A boot begins: what the janitor notes. ``mono`` in seconds."""
        boots, marks = boot_keys(self.keys)
        self.boot = boot
        await self.client.hset(boots, boot, number)
        if mono is not None:
            await self.client.hset(marks, f"{number}|", f"{self.wall}-{int(mono * SECOND)}")
        for stream in self.streams:
            info = await self.client.xinfo_stream(stream)
            await self.client.hset(marks, f"{number}|{stream}", info["last-generated-id"])

    async def add(self, topic: str, name: str, *, mono: float | None, boot: str | None = None, **more: Any) -> None:
        """One entry; ``mono`` in seconds."""
        stream = self.keys.topic(topic)
        if stream not in self.streams:
            self.streams.append(stream)
        fields: dict[str, Any] = {"id": name, **more}
        if mono is not None and "k" in more:
            fields["m"] = int(mono * SECOND)
        elif mono is not None:
            fields |= {"boot_id": boot or self.boot, "mono": int(mono * SECOND)}
        last = 0
        if await self.client.exists(stream):
            last = int((await self.client.xinfo_stream(stream))["last-generated-id"].split(b"-")[0])
        await self.client.xadd(stream, fields, id=f"{max(self.wall, last)}-*")


@pytest.fixture
async def recorder(server: RealServer, bus_name: str) -> AsyncIterator[Recorder]:
    client = plain_client(server.url)
    yield Recorder(client, bus_name)
    await client.aclose()


@asynccontextmanager
async def order(server: RealServer, recorder: Recorder) -> AsyncIterator[list[tuple[str, int, float]]]:
    """Name, boot and seconds of every entry, in the order of replay."""
    async with open_source(server.url, bus=recorder.keys.bus, scratch=Path("/nowhere")) as source:
        history = await open_history(source, streams=(), start=EDGE, end=EDGE)
        yield [
            (dict(zip(one.fields[::2], one.fields[1::2], strict=True))[b"id"].decode(), one.boot, one.at / SECOND)
            async for one in history.records()
        ]


async def names(server: RealServer, recorder: Recorder) -> str:
    async with order(server, recorder) as found:
        return "".join(name for name, _, _ in found)


async def test_the_boot_clock_decides_between_streams(server: RealServer, recorder: Recorder) -> None:
    """I9: the wall clock jumps ten years forward and back in the middle; the order is as it happened."""
    await recorder.begin("boot-a", 0)
    await recorder.add("x", "a", mono=1)
    await recorder.add("y", "b", mono=2)
    recorder.wall += 10 * YEAR
    await recorder.add("x", "c", mono=3)
    recorder.wall -= 20 * YEAR
    await recorder.add("z", "d", mono=4)
    await recorder.add("y", "e", mono=5)
    await recorder.add("x", "f", mono=6)
    await recorder.add("z", "g", mono=7)
    assert await names(server, recorder) == "abcdefg"


async def test_a_stream_keeps_its_own_order_whatever_was_stamped(server: RealServer, recorder: Recorder) -> None:
    """Two producers stamp, and the one that stamped first is appended second."""
    await recorder.begin("boot-a", 0)
    await recorder.add("x", "a", mono=1)
    await recorder.add("x", "b", mono=5)
    await recorder.add("x", "c", mono=4)
    await recorder.add("y", "d", mono=4.5)
    await recorder.add("y", "e", mono=6)
    assert await names(server, recorder) == "adbce"


@pytest.mark.parametrize("step", [0, 60_000, -10 * YEAR])
async def test_boots_follow_one_another(server: RealServer, recorder: Recorder, step: int) -> None:
    """I9: a board without a clock battery begins its second boot in the past, and its boot clock begins anew."""
    await recorder.begin("boot-a", 0)
    await recorder.add("x", "a", mono=100)
    await recorder.add("y", "b", mono=200)
    recorder.wall += step
    await recorder.begin("boot-b", 1)
    await recorder.add("y", "c", mono=10)
    await recorder.add("new", "d", mono=11)
    await recorder.add("x", "e", mono=12)
    recorder.wall += 5_000
    await recorder.begin("boot-c", 2)
    await recorder.add("x", "f", mono=3)
    await recorder.add("new", "g", mono=4)
    async with order(server, recorder) as found:
        assert "".join(name for name, _, _ in found) == "abcdefg"
        assert [boot for _, boot, _ in found] == [0, 0, 1, 1, 1, 2, 2]


async def test_compact_frames_belong_to_the_boot_they_were_made_in(server: RealServer, recorder: Recorder) -> None:
    """Compact entries carry no boot id, and the form beside them names the last one only."""
    frame = {"k": "0", "d": "x"}
    await recorder.begin("boot-a", 0)
    await recorder.add("rx", "a", mono=100, **frame)
    await recorder.add("x", "b", mono=101)
    await recorder.add("rx", "c", mono=102, **frame)
    await recorder.begin("boot-b", 1)
    await recorder.client.hset(recorder.keys.form("rx"), "boot_id", "boot-b")
    await recorder.add("rx", "d", mono=5, **frame)
    await recorder.add("x", "e", mono=6)
    await recorder.add("rx", "f", mono=7, **frame)
    async with order(server, recorder) as found:
        assert "".join(name for name, _, _ in found) == "abcdef"
        assert [at for _, _, at in found] == [100, 101, 102, 5, 6, 7]


async def test_the_boots_of_a_compact_topic_say_whose_clock_it_was(server: RealServer, recorder: Recorder) -> None:
    """I9: the frames of another machine's program are not placed by its clock because ours declared the topic later."""
    frame = {"k": "0", "d": "x"}
    await recorder.begin("boot-a", 0)
    await recorder.add("x", "a", mono=1000)
    recorder.wall += 1000
    await recorder.add("rx", "b", mono=77, **frame)
    recorder.wall += 1000
    await recorder.add("x", "c", mono=1002)
    recorder.wall += 1000
    listed = f'[["0-1","other-pc"],["{recorder.wall}-0","boot-a"]]'
    await recorder.client.hset(recorder.keys.form("rx"), mapping={"boot_id": "boot-a", "boots": listed})
    await recorder.add("rx", "d", mono=1003.5, **frame)
    async with order(server, recorder) as found:
        assert [(name, at) for name, _, at in found] == [("a", 1000), ("b", 1001), ("c", 1002), ("d", 1003.5)]


async def test_records_of_other_machines_are_placed_by_when_they_arrived(
    server: RealServer, recorder: Recorder
) -> None:
    """A ground station stamps its own boot clock, which says nothing here."""
    await recorder.begin("boot-a", 0)
    await recorder.add("x", "a", mono=1000)
    recorder.wall += 1000
    await recorder.add("ground", "b", mono=77, boot="ground-pc")
    recorder.wall += 1000
    await recorder.add("x", "c", mono=1002)
    recorder.wall += 1000
    await recorder.add("raw", "d", mono=None)
    recorder.wall += 1000
    await recorder.add("x", "e", mono=1004)
    async with order(server, recorder) as found:
        assert "".join(name for name, _, _ in found) == "abcde"
        assert [at for _, _, at in found] == [1000, 1001, 1002, 1003, 1004]


async def test_after_a_reboot_they_are_placed_by_the_boots_mark(server: RealServer, recorder: Recorder) -> None:
    """The mark says how the server's clock and the boot clock lay when the boot began."""
    await recorder.begin("boot-a", 0, mono=500)
    await recorder.add("ground", "a", mono=77, boot="ground-pc")
    recorder.wall += 1000
    await recorder.add("x", "b", mono=501)
    recorder.wall -= YEAR
    await recorder.begin("boot-b", 1, mono=20)
    recorder.wall += 1000
    await recorder.add("y", "c", mono=21)
    recorder.wall += 1000
    await recorder.add("far", "d", mono=3, boot="ground-pc")
    recorder.wall += 1000
    await recorder.add("y", "e", mono=23)
    assert await names(server, recorder) == "abcde"


async def test_one_boot_needs_no_marks(server: RealServer, recorder: Recorder) -> None:
    """Where all streams begin in one boot its clock decides, also within one millisecond of stream ids."""
    recorder.boot = "boot-a"
    await recorder.add("z", "a", mono=1.0000)
    await recorder.add("y", "b", mono=1.0001)
    await recorder.add("z", "c", mono=1.0002)
    await recorder.add("x", "d", mono=1.0003)
    assert await names(server, recorder) == "abcd"


async def test_without_any_marks_stream_ids_decide(server: RealServer, recorder: Recorder) -> None:
    for number, name in enumerate("abcdef"):
        recorder.wall += 10
        await recorder.add("xyz"[number % 3], name, mono=None)
    assert await names(server, recorder) == "abcdef"
