"""Subscribing to channels: at once, late, from the past, while the server is away, and from within a callback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusError
from petalbus.petals.owner import acting_for, tasks_of
from petalbus.petals.proxies.redis import RedisProxy
from petalbus.petals.proxies.redis import pubsub as module

from .test_redis_channels import Ear, until
from support.servers import RealServer


@pytest.fixture
async def redis(own_server: RealServer, bus_name: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(url=own_server.url, bus=bus_name) as proxy:
        yield proxy


async def test_a_subscription_that_nobody_awaited_holds_for_what_is_published_next(redis: RedisProxy) -> None:
    """S-027: as existing petals call it."""
    ear = Ear()
    redis.subscribe("c", ear.listen)
    for number in range(20):
        await redis.publish("c", str(number))
    await until(lambda: len(ear.heard) == 20, "all are heard")
    assert ear.messages == [str(number) for number in range(20)]


async def test_the_whole_past_comes_and_none_of_it_is_dropped(redis: RedisProxy, bus_name: str) -> None:
    """A callback slower than reading: it is read as fast as it is taken, and what comes meanwhile waits its turn."""
    number = 3 * module.MAX_WAITING
    async with RedisProxy(url=redis._url, bus=bus_name, app_id="other") as other:
        for first in range(0, number, 100):
            await asyncio.gather(*(other.publish("c", str(n)) for n in range(first, first + 100)))
        heard: list[str] = []

        async def slow(_channel: str, message: str) -> None:
            heard.append(message)
            if len(heard) % 20 == 0:
                await asyncio.sleep(0.002)

        redis.subscribe("c", slow, start="oldest")
        await until(lambda: len(heard) > 10, "it has begun")
        for n in range(number, number + 50):
            await other.publish("c", str(n))
        await until(lambda: len(heard) == number + 50, "all have come", seconds=30)
    assert sorted(map(int, heard)) == list(range(number + 50))
    assert heard[-50:] == [str(n) for n in range(number, number + 50)]


async def test_who_subscribes_while_the_server_is_away_gets_the_past_when_it_is_back(
    own_server: RealServer, redis: RedisProxy, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-133: also where the attempt was given up; no call has to be repeated."""
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.1)
    async with Bus(own_server.url, app="other", bus=bus_name):
        for n in range(5):
            await redis.publish("c", str(n))
        await asyncio.to_thread(own_server.kill)
        ear = Ear()
        with pytest.raises(BusError):
            await redis.subscribe("c", ear.listen, start="oldest")
        await asyncio.to_thread(own_server.start)
        await until(lambda: len(ear.heard) == 5, "the past has come", seconds=20)
        await redis.publish("c", "5")
        await until(lambda: ear.messages == [str(n) for n in range(6)], "and the present")


async def test_a_callback_may_end_itself_and_goes_on(redis: RedisProxy) -> None:
    steps: list[str] = []

    async def once(channel: str, _message: str) -> None:
        steps.append("called")
        await redis.unsubscribe(channel, once)
        await asyncio.sleep(0.01)
        steps.append("went on")

    await redis.subscribe("c", once)
    await redis.publish("c", "1")
    await until(lambda: "went on" in steps, "it goes on")
    await redis.publish("c", "2")
    await asyncio.sleep(0.1)
    assert steps == ["called", "went on"]


async def test_a_subscription_whose_waiter_is_cancelled_holds(
    redis: RedisProxy, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear()
    waiting = asyncio.ensure_future(asyncio.wait_for(redis.subscribe("c", ear.listen), 5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await redis.publish("c", "1")
    await until(lambda: ear.messages == ["1"], "it is heard")
    assert not [record for record in caplog.records if "InvalidStateError" in record.getMessage()]


@pytest.mark.parametrize("start", ["garbage", "", "1-", "-", "1-2-3"])
def test_a_start_that_is_no_place_is_refused_at_once(start: str) -> None:
    with pytest.raises(ValueError, match="stream id"):
        RedisProxy().subscribe("c", Ear().listen, start=start)


async def test_what_a_proxy_begins_because_a_petal_was_first_is_not_the_petals(redis: RedisProxy) -> None:
    """The connections are for everybody: they must not end with the petal that asked first."""

    class First:
        async def on_message(self, channel: str, message: str) -> None: ...

    petal = First()
    with acting_for(petal):
        await redis.subscribe("c", petal.on_message)
        own = asyncio.create_task(asyncio.sleep(5), name="own")
    assert tasks_of(petal) == {own}
    own.cancel()
