"""What petals learn of the link: the broker's receipt, whether the link is up, and that wishes are told again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.transport import LinkLost
from petalbus.handlers.mqtt.transport import PublishRefused as RefusedByBroker
from petalbus.petals.proxies.mqtt import MQTTProxy, NotConfirmed, PublishRefused
from petalbus.petals.proxies.mqtt.link import is_silent
from petalbus.petals.proxies.mqtt.wishes import Wishes
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Status

from .test_link import BASE, Rig, link
from support.mqtt_world import Organization
from support.servers import RealServer


@dataclass
class Both:
    """The link, with its far side in the test's hand, and a proxy as petals have it."""

    rig: Rig
    proxy: MQTTProxy

    async def until_sent(self, count: int = 1) -> None:
        await self.rig.until(lambda: len(self.rig.transport.sent) >= count, "it left")


@contextlib.asynccontextmanager
async def proxied(server: RealServer, bus_name: str) -> AsyncIterator[Both]:
    async with link(server, bus_name, options=MqttOptions()) as rig:
        proxy = MQTTProxy(url=server.url, bus=bus_name, app_id="petals.mqtt", organization=Organization())
        await proxy.start()
        try:
            yield Both(rig, proxy)
        finally:
            await proxy.stop()


@pytest.fixture
async def both(server: RealServer, bus_name: str) -> AsyncIterator[Both]:
    async with proxied(server, bus_name) as made:
        yield made


async def test_the_broker_s_receipt_can_be_awaited(both: Both) -> None:
    """S-192: the reason code, once the broker has said it; not before."""
    transport = both.rig.transport
    transport.answer = None
    transport.connect()
    waiting = asyncio.create_task(both.proxy.publish_confirmed(f"{BASE}/web/x", {"n": 1}))
    await both.until_sent()
    assert transport.sent[0].message.qos == 1
    assert not waiting.done()
    transport.sent[0].done.set_result(16)
    assert await waiting == 16


async def test_a_refusal_is_told_with_its_reason(both: Both) -> None:
    """S-192: the broker's own code, and the reason of a limit that is kept here."""
    transport = both.rig.transport
    transport.answer = None
    transport.connect()
    waiting = asyncio.create_task(both.proxy.publish_confirmed("forbidden/x", {"n": 1}))
    await both.until_sent()
    transport.sent[0].done.set_exception(RefusedByBroker("not authorized (0x87)", code=0x87))
    with pytest.raises(PublishRefused, match="not authorized") as found:
        await waiting
    assert (found.value.reason_code, found.value.error_code) == (0x87, "REFUSED_BY_BROKER")
    assert await both.rig.petal.status(found.value.message_id) is Status.FAILED
    with pytest.raises(PublishRefused, match="wildcard") as found:
        await both.proxy.publish_confirmed("a/#", {"n": 1})
    assert (found.value.reason_code, found.value.error_code) == (None, "INVALID_TOPIC")


async def test_one_that_is_not_confirmed_in_time_stays_stored(both: Both) -> None:
    """I1, I2: it leaves when that works, once; and who asks again with its id learns of it."""
    with pytest.raises(NotConfirmed, match="it is stored") as found:
        await both.proxy.publish_confirmed(f"{BASE}/web/x", {"n": 1}, timeout=0.2)
    assert isinstance(found.value, TimeoutError)
    assert found.value.stored
    again = asyncio.create_task(both.proxy.publish_confirmed(f"{BASE}/web/x", {"n": 1}, id=found.value.message_id))
    both.rig.transport.connect()
    assert await again == 0
    assert both.rig.bodies == [{"n": 1}]
    assert await both.proxy.publish_confirmed(f"{BASE}/web/x", {"n": 1}, id=found.value.message_id) == 0
    assert both.rig.bodies == [{"n": 1}], "asking once more sends nothing"


async def test_the_flag_follows_the_link_without_being_asked(both: Both) -> None:
    """S-077, C-04: within about a second, both ways."""
    assert not both.proxy.is_connected
    both.rig.transport.connect()
    loop = asyncio.get_running_loop()
    for wanted in (True, False):
        start = loop.time()
        await both.rig.until(lambda wanted=wanted: bool(both.proxy.is_connected) is wanted, "the flag follows")
        assert loop.time() - start < 3
        assert await both.proxy.is_connected() is wanted
        both.rig.transport.lose(LinkLost("cut"))
    await both.proxy.stop()
    assert not both.proxy.is_connected


async def test_health_tells_of_the_link(both: Both) -> None:
    """S-191, C-10: both names of the callback's part, and why there is no connection."""
    both.rig.transport.lose(LinkLost("cut"))
    async with asyncio.timeout(5):
        while (told := (health := await both.proxy.health_check())["link"])["problem"] != "lost":
            await asyncio.sleep(0.01)
    names = ("ts_client", "callback_server", "callback_router", "connected")
    assert health["connection"] == dict.fromkeys(names, False)
    assert (told["transport"], told["phase"], told["reason"]) == ("held", "waiting", "the test cut it")


async def test_a_link_that_was_killed_is_not_up(both: Both) -> None:
    """S-077: nobody writes that it is down; that it is silent tells."""
    both.rig.transport.connect()
    await both.rig.until(lambda: bool(both.proxy.is_connected), "it is up")
    told = dict(both.proxy._link.told)
    assert not is_silent(told)
    before = str(boot_clock_ns() - int(20e9))
    assert is_silent({"told_ns": before, "boot_id": BOOT_ID})
    assert not is_silent({"told_ns": before, "boot_id": "another"})
    both.proxy._link.told = {**told, "told_ns": before}
    assert not both.proxy.is_connected
    assert both.proxy._link.describe()["problem"] == "no-daemon"


async def test_wishes_are_told_again_and_old_ones_taken_back(both: Both) -> None:
    """S-176: what a crash of this app left behind goes; what was lost comes back."""
    bus = both.rig.petal
    key = words.filters_key(bus.keys)

    async def own() -> Wishes:
        return Wishes(both.proxy._own_bus, settled_after=0.0)

    wishes = await own()
    await wishes.add("a/b", 0)
    await wishes.add("a/b", 1)
    await bus.call("DEL", key)
    await bus.call("HSET", key, words.filter_field("petals.mqtt", "old/topic"), 1)
    await bus.call("HSET", key, words.filter_field("other", "old/topic"), 1)
    await wishes.look()
    found = dict(words.hash_items(await bus.call("HGETALL", key)))
    assert found == {b"petals.mqtt|a/b": b"1", b"other|old/topic": b"1"}
    await both.rig.until(lambda: both.rig.transport.filters.get("a/b") == 1, "the link has it")
    await wishes.remove("a/b")
    assert await bus.call("HKEYS", key) == [b"other|old/topic"]


async def test_stopping_takes_wishes_back(both: Both) -> None:
    """S-199: a graceful end unsubscribes."""

    async def callback(topic: str, message: object) -> None:
        """Hears nothing here."""

    await both.proxy.subscribe_to_topic("my/topic", callback)
    await both.rig.until(lambda: both.rig.transport.filters.get("my/topic") == 1, "the link has it")
    await both.proxy.stop()
    await both.rig.until(lambda: "my/topic" not in both.rig.transport.filters, "it is given up")
