"""The server is killed and is 4 s away while petals work: afterwards everything goes on, and nothing was lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from petalbus.daemon.bus import channels
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.services.pubsub import PubSubBridge
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.petals.base import Petal
from petalbus.petals.decorators import mqtt_action, on
from petalbus.petals.hosting import PetalHost
from petalbus.petals.proxies.mqtt import MQTTProxy
from petalbus.petals.proxies.redis import CommunicationMessage, RedisProxy
from petalbus.schemas.record import Record

from support.servers import RealServer

AWAY_SECONDS = 4.0


async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
    """The link answers for no petal here."""


class Organization:
    """Known all the time."""

    organization_id = "ORG1"
    machine_id = "m1"


class Busy(Petal):
    """A petal that uses everything: records, keys, channels, patterns, MQTT commands."""

    name = "busy"

    def __init__(self) -> None:
        super().__init__()
        self.handled = Counter[str]()
        self.channel: list[str] = []
        self.pattern: list[str] = []
        self.commands: list[str] = []

    async def startup(self) -> None:
        redis: Any = self._proxies["redis"]
        redis.subscribe("/busy/in", self.on_channel)
        redis.register_pattern_channel_callback("/busy/*", self.on_pattern)

    @on("work", redelivery="rerun", concurrency=None)
    async def work(self, record: Record) -> dict[str, Any]:
        self.handled[record.id] += 1
        redis: Any = self._proxies["redis"]
        await redis.set(f"done:{record.id}", "1")
        return {"n": record.data["n"]}

    @mqtt_action("count")
    async def count(self, topic: str, message: dict[str, Any]) -> None:
        self.commands.append(message["messageId"])

    async def on_channel(self, channel: str, message: str) -> None:
        self.channel.append(message)

    async def on_pattern(self, channel: str, message: str) -> None:
        self.pattern.append(message)


async def until(condition: Any, what: str, seconds: float = 30.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None


@dataclass
class World:
    """A petal with its proxies, the daemon's services that it needs, and those who talk to it."""

    ground: Bus
    link: Bus
    redis: RedisProxy
    other: RedisProxy
    petal: Busy


@contextlib.asynccontextmanager
async def running(service: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(service.run(), name=type(service).__name__)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def busy_world(server: RealServer, bus_name: str) -> AsyncIterator[World]:
    def connect(app: str) -> Bus:
        return Bus(server.url, app=app, bus=bus_name, options=BusOptions(presence=False))

    async def answer(message: CommunicationMessage) -> CommunicationMessage:
        told = {"sender": "other", "recipient": message.sender, "message_type": "r", "payload": {"ok": 1}}
        return CommunicationMessage(id=f"response_{message.id}", **told)

    async with contextlib.AsyncExitStack() as stack:
        ground, link = [await stack.enter_async_context(connect(app)) for app in ("ground", "mqtt")]
        await stack.enter_async_context(running(PubSubBridge(ground, patterns=["*"])))
        await stack.enter_async_context(running(CommandDispatch(link, respond=respond)))
        redis = await stack.enter_async_context(RedisProxy(url=server.url, bus=bus_name))
        other = await stack.enter_async_context(RedisProxy(url=server.url, bus=bus_name, app_id="other"))
        mqtt = MQTTProxy(url=server.url, bus=bus_name, app_id="mqtt-proxy", organization=Organization())
        await mqtt.start()
        stack.push_async_callback(mqtt.stop)
        host = PetalHost(Busy, {"redis": redis, "mqtt": mqtt}, connect)
        await host.start()
        stack.push_async_callback(host.stop)
        await mqtt._commands.settled()
        await other.register_message_handler("ask", answer)
        await other.start_listening()
        yield World(ground, link, redis, other, host.petal)


class Traffic:
    """Everything that goes on for six seconds: each kind of call, fifty times a second."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.requests: list[asyncio.Task[Record]] = []
        self.asked: list[asyncio.Task[Any]] = []
        self.published: list[asyncio.Task[int]] = []
        self.commands: list[asyncio.Task[Any]] = []

    async def run(self) -> None:
        world, start = self._world, asyncio.create_task
        for n in range(300):
            request = world.ground.request("busy", "work", {"n": n}, id=f"w{n}", timeout=30)
            self.requests.append(start(request, name=f"w{n}"))
            message = world.redis.send_message("other", "ask", {}, wait_for_reply=True, timeout=30)
            self.asked.append(start(message, name=f"a{n}"))
            self.published.append(start(world.other.publish("/busy/in", str(n)), name=f"p{n}"))
            if n % 10 == 0:
                payload = {"command": "busy/count", "messageId": f"c{n}"}
                body = {"topic": "org/ORG1/device/Instance-m1/command", "payload": payload}
                command = world.link.send("busy", "mqtt.command", body, id=f"c{n}@busy")
                self.commands.append(start(command, name=f"c{n}"))
            await asyncio.sleep(0.02)


async def test_nothing_is_lost_while_the_server_is_away(own_server: RealServer, bus_name: str) -> None:
    """S-133, I1, I2: requests, messages on channels and two-way messages in flight end well, each once and in order."""
    async with busy_world(own_server, bus_name) as world:
        petal, traffic = world.petal, Traffic(world)
        flowing = asyncio.create_task(traffic.run(), name="traffic")
        await until(lambda: len(petal.channel) > 20, "traffic flows")
        own_server.kill()
        await asyncio.sleep(AWAY_SECONDS)
        own_server.start()
        await flowing

        replies = await asyncio.gather(*traffic.requests)
        assert [reply.data["n"] for reply in replies] == list(range(300))
        answers = await asyncio.gather(*traffic.asked)
        assert all(answer is not None and answer.payload == {"ok": 1} for answer in answers)
        await asyncio.gather(*traffic.published)
        rows = await world.ground.ask("XRANGE", world.ground.keys.topic(channels.TOPIC), "-", "+")
        stored = [told[1] for _, flat in rows if (told := channels.read_items(flat)) and told[0] == "/busy/in"]
        assert len(stored) > 280, "only what was under way when the server died may be missing"
        await until(lambda: len(petal.channel) >= len(stored), "what was published has arrived")
        assert petal.channel == stored, "once each, in order"
        await until(lambda: petal.pattern == petal.channel, "patterns heard the same")
        await asyncio.gather(*traffic.commands)
        await until(lambda: len(petal.commands) == 30, "all commands were handled")
        assert len(set(petal.commands)) == 30
        assert set(petal.handled) == {f"w{n}" for n in range(300)}
        assert await world.redis.get("done:w299") == "1"

        assert await world.redis.publish("/busy/in", "after") >= 1
        await until(lambda: petal.channel[-1] == "after", "subscriptions still work")
