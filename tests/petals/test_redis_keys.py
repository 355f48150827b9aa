"""Keys, hashes and lists of the Redis proxy, on a real server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.redis import RedisProxy
from petalbus.petals.proxies.redis.keyvalue import MAX_VALUE_BYTES, RedisRefused

from support.servers import RealServer


@pytest.fixture
async def redis(own_server: RealServer, bus_name: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(url=own_server.url, bus=bus_name) as proxy:
        yield proxy


async def test_values(redis: RedisProxy, own_server: RealServer) -> None:
    """S-017, S-018, S-019, S-020: text and numbers, time to live, absent keys; names are used as they are."""
    assert await redis.set("text", "grüße") is True
    assert await redis.set("number", 4.5, ex=60) is True
    assert (await redis.get("text"), await redis.get("number"), await redis.get("none")) == ("grüße", "4.5", None)
    assert 0 < await redis.ttl("number") <= 60
    assert (await redis.ttl("text"), await redis.ttl("none")) == (-1, -2)
    assert own_server.command("GET", "text") == "grüße".encode()
    assert (await redis.exists("text"), await redis.exists("none")) == (True, False)
    assert await redis.expire("text", 5) is True
    assert await redis.expire("none", 5) is False
    assert await redis.delete("text", "number", "none") == 2
    assert await redis.delete() == 0
    own_server.command("SET", "bytes", b"\xff\x00ok")
    assert await redis.get("bytes") == "\ufffd\x00ok"


async def test_hashes_and_lists(redis: RedisProxy) -> None:
    """S-021, S-022, S-023, S-024, S-025, S-026."""
    assert (await redis.hset("h", "a", 1), await redis.hset("h", "a", 2), await redis.hset("h", "b", "x")) == (1, 0, 1)
    assert (await redis.hget("h", "a"), await redis.hget("h", "z")) == ("2", None)
    assert await redis.hgetall("h") == {"a": "2", "b": "x"}
    assert await redis.hgetall("none") == {}
    assert await redis.hdel("h", "a", "z") == 1
    assert await redis.rpush("l", "1", "2") == 2
    assert await redis.lpush("l", "0") == 3
    assert await redis.lrange("l", 0, -1) == ["0", "1", "2"]
    assert await redis.lrange("l", -2, -1) == ["1", "2"]
    assert (await redis.lpop("l"), await redis.rpop("l"), await redis.llen("l")) == ("0", "2", 1)
    assert await redis.ltrim("l", 1, 1) is True
    assert await redis.lpop("l") is None


async def test_scanning(redis: RedisProxy) -> None:
    """S-029: all keys that fit, each once, whatever the step."""
    await asyncio.gather(*(redis.set(f"job:{n}", "x") for n in range(300)))
    for count in (1, 10, 1000):
        assert sorted(await redis.scan_keys("job:*", count=count)) == sorted(f"job:{n}" for n in range(300))
    assert await redis.scan_keys(pattern="none:*") == []
    with pytest.raises(ValueError, match="count"):
        await redis.scan_keys(count=0)


async def test_what_is_refused_says_why(redis: RedisProxy) -> None:
    """S-003: the call, the key and the reason; nothing is stored."""
    await redis.set("text", "x")
    with pytest.raises(RedisRefused, match=r"HGET 'text'.*WRONGTYPE"):
        await redis.hget("text", "f")
    with pytest.raises(TypeError, match=r"json\.dumps"):
        await redis.set("k", {"a": 1})  # type: ignore[arg-type]  # what petals do wrong most often
    with pytest.raises(ValueError, match="ex=0"):
        await redis.set("k", "v", ex=0)
    with pytest.raises(RedisRefused, match=str(MAX_VALUE_BYTES)):
        await redis.set("k", "x" * (MAX_VALUE_BYTES + 1))
    assert await redis.get("k") is None
    with pytest.raises(ValueError, match="database 0"):
        RedisProxy(db=3)


async def test_it_becomes_ready_when_the_server_comes(own_server: RealServer, bus_name: str) -> None:
    """S-002, S-133: started while the server is away, it is not ready, says why, and is there when the server is."""
    own_server.kill()
    proxy = RedisProxy(url=own_server.url, bus=bus_name)
    starting = asyncio.create_task(proxy.start(), name="starting")
    await asyncio.sleep(0)
    with pytest.raises(ProxyNotReady):
        await proxy.get("k")
    await starting
    assert not proxy.is_ready
    assert "no server" in proxy.reason
    assert (await proxy.health_check())["status"] == "unhealthy"
    own_server.start()
    assert await proxy.wait_until_ready(15)
    await proxy.set("k", "v")
    health = await proxy.health_check()
    assert (health["status"], health["app_id"]) == ("healthy", "petal-app-manager")
    await proxy.stop()
    await proxy.stop()
    assert proxy.reason == "stopped"


async def test_calls_wait_for_a_server_that_is_away(redis: RedisProxy, own_server: RealServer) -> None:
    """S-133: a second without the server costs a second, and loses nothing."""
    await redis.set("k", "before")
    own_server.kill()
    reading = asyncio.create_task(redis.get("k"), name="reading")
    await asyncio.sleep(1.0)
    own_server.start()
    assert await reading == "before"


def test_debug_shows_what_happens() -> None:
    """S-141: by the documented name."""
    try:
        RedisProxy(app_id="my-app", debug=True)
        assert logging.getLogger("RedisProxy").level == logging.DEBUG
    finally:
        logging.getLogger("RedisProxy").setLevel(logging.NOTSET)
