"""A Redis proxy whose channels cannot be heard when it starts, while the server itself can be reached."""

from __future__ import annotations

import asyncio
import time

from petalbus.daemon.bus import channels
from petalbus.daemon.bus.keys import Keys
from petalbus.petals.proxies.redis import RedisProxy

from .test_redis_channels import Ear, until
from support.servers import RealServer


async def test_a_proxy_whose_channels_failed_at_its_start_comes_back(own_server: RealServer, bus_name: str) -> None:
    """S-027: it is not ready, says why, tries all of it again, and then hears what is said."""
    in_the_way = Keys(bus_name).topic(channels.TOPIC)
    own_server.command("SET", in_the_way, "no stream")
    ear = Ear()
    proxy = RedisProxy(url=own_server.url, bus=bus_name)
    proxy.subscribe("c", ear.listen)
    try:
        await proxy.start()
        assert not proxy.is_ready
        assert proxy.reason
        own_server.command("DEL", in_the_way)
        await until(lambda: proxy.is_ready, "it is ready", seconds=20.0)
        async with RedisProxy(url=own_server.url, bus=bus_name, app_id="other") as other:
            end = time.monotonic() + 20.0
            while not ear.heard:
                assert time.monotonic() < end, "nothing is heard"
                await other.publish("c", "first")
                await asyncio.sleep(0.1)
            for number in range(5):
                assert await other.publish("c", str(number)) > 0
            await until(lambda: ear.messages[-1] == "4", "all are heard")
        assert ear.messages[-5:] == [str(number) for number in range(5)]
    finally:
        await proxy.stop()


async def test_while_its_channels_fail_it_is_never_ready(own_server: RealServer, bus_name: str) -> None:
    """S-027: not for a moment of any attempt; and who subscribes meanwhile is not forgotten."""
    in_the_way = Keys(bus_name).topic(channels.TOPIC)
    own_server.command("SET", in_the_way, "no stream")
    first, late, old = Ear(), Ear(), Ear()
    proxy = RedisProxy(url=own_server.url, bus=bus_name)
    proxy.subscribe("c", first.listen)
    seen: list[bool] = []

    async def look() -> None:
        while True:
            seen.append(proxy.is_ready)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look(), name="test.look")
    try:
        await proxy.start()
        await asyncio.sleep(2.5)  # two more attempts
        looking.cancel()
        assert len(seen) > 1000
        assert not any(seen)
        await proxy.subscribe("c", late.listen)
        await proxy.subscribe("c", old.listen, start="oldest")
        own_server.command("DEL", in_the_way)
        await until(lambda: proxy.is_ready, "it is ready", seconds=20.0)
        assert await proxy.publish("c", "said") > 0
        await until(lambda: [ear.messages for ear in (first, late, old)] == [["said"]] * 3, "all hear it once")
    finally:
        looking.cancel()
        await proxy.stop()
