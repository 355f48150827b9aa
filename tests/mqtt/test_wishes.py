"""What apps want to hear of: a wish that is no filter breaks no other, and apps that are gone have none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.options import EgressOptions
from petalbus.handlers.mqtt.wishes import Wishes, as_filter, filter_problem

from support.servers import RealServer


@pytest.fixture
async def bus(server: RealServer, bus_name: str) -> AsyncIterator[Bus]:
    async with Bus(server.url, app=words.APP, bus=bus_name) as made:
        yield made


async def wish(bus: Bus, app: str, topic: str, qos: int = 0) -> None:
    await bus.call("HSET", words.filters_key(bus.keys), words.filter_field(app, topic), qos)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a/b", None),
        ("#", None),
        ("a/+/b/#", None),
        ("$share/group/a/#", None),
        ("", "empty"),
        ("a/#/b", "end only"),
        ("a/b#", "whole levels"),
        ("a+/b", "whole levels"),
        ("a\0b", "zero"),
        ("org/None/device", "not known"),
        ("a/" * 8 + "b", "levels"),
        ("a" * 257, "257 bytes"),
        ("a\udcff", "UTF-8"),
    ],
)
def test_what_is_a_filter(name: str, problem: str | None) -> None:
    found = filter_problem(name, EgressOptions())
    assert found is None if problem is None else problem in (found or "")


def test_a_star_stands_for_one_level() -> None:
    """S-177: as it does in patterns."""
    assert as_filter("a/*/b*") == "a/+/b*"


async def test_a_bad_wish_breaks_no_other(bus: Bus) -> None:
    """It is left out and told; the highest quality of service of a filter counts."""
    wishes = Wishes(bus, EgressOptions(), changed=lambda: None)
    await wish(bus, "one", "a/b", 0)
    await wish(bus, "two", "a/b", 1)
    await wish(bus, "two", "a/#/b")
    await wish(bus, "two", "x/*/y")
    await bus.call("HSET", words.filters_key(bus.keys), b"two|\xff", "1")
    await bus.call("HSET", words.filters_key(bus.keys), "nonsense", "many")
    assert await wishes.read() == {"a/b": 1, "x/+/y": 0}
    told = wishes.statistics()
    assert told["refused"] == {
        "a/#/b": "# stands at the end only",
        "\\udcff": "it is no text that UTF-8 can write",
        "": "it is empty, or holds a zero",
    }
    await bus.call("HDEL", words.filters_key(bus.keys), "two|a/#/b", b"two|\xff", "nonsense")
    await wishes.read()
    assert wishes.statistics()["refused_count"] == 0


async def test_wishes_of_an_app_that_is_gone_are_forgotten(server: RealServer, bus: Bus) -> None:
    """Who is present keeps them, and HTTP always; who was killed and does not come back does not."""
    looked = asyncio.Event()
    wishes = Wishes(bus, EgressOptions(), changed=looked.set, gone_after=0.6, look_every=0.05)
    options = BusOptions(heartbeat=0.05)
    async with Bus(server.url, app="here", bus=bus.keys.bus, options=options):
        await wish(bus, "here", "a/b")
        await wish(bus, words.HTTP, "e/f")
        await wish(bus, "killed", "a/b")
        await wish(bus, "killed", "c/d")
        running = asyncio.create_task(wishes.run())
        async with asyncio.timeout(10):
            await looked.wait()
        assert await bus.call("HKEYS", words.filters_key(bus.keys)) == [b"here|a/b", b"http|e/f"]
        assert wishes.forgotten == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_is_no_petal_and_gone_takes_no_commands(server: RealServer, bus: Bus) -> None:
    """Of an installed petal the commands wait; another program's end with it, when it is away for good."""
    key = words.handlers_key(bus.keys)
    for app in ("petal", "program", "here"):
        await bus.call("HSET", key, app, b"null")
    async with Bus(server.url, app="here", bus=bus.keys.bus):
        wishes = Wishes(
            bus, EgressOptions(), changed=lambda: None, installed=lambda: {"petal"}, gone_after=0.1, look_every=0.05
        )
        running = asyncio.create_task(wishes.run(), name="wishes")
        try:
            async with asyncio.timeout(10):
                while b"program" in await bus.call("HKEYS", key):
                    await asyncio.sleep(0.02)
            assert set(await bus.call("HKEYS", key)) == {b"petal", b"here"}
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
