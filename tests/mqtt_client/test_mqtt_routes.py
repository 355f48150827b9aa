"""/mqtt/... over HTTP, on a real bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mqtt_client.conftest import BASE, Site
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mqtt import words
from petalbus.schemas.record import Record

from support.servers import RealServer

Start = Callable[..., Awaitable[Site]]


@pytest.fixture
async def bus(server: RealServer, bus_name: str) -> AsyncIterator[Bus]:
    async with Bus(server.url, app="petalbus", bus=bus_name) as made:
        yield made


@pytest.fixture
async def outbox(server: RealServer, bus_name: str) -> AsyncIterator[asyncio.Queue[tuple[str, Any]]]:
    """What arrives in the inboxes of the link: type and data."""
    found: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    async with (
        Bus(server.url, app=words.APP, bus=bus_name) as main,
        Bus(server.url, app=words.TELEMETRY, bus=bus_name) as telemetry,
        Bus(server.url, app=words.COMMANDS, bus=bus_name) as commands,
    ):
        for one in (main, telemetry, commands):

            @one.on(words.PUBLISH)
            async def publish(record: Record) -> None:
                found.put_nowait((str(record.recipient), record.data))

            @one.on(words.FILTERS)
            async def filters(record: Record) -> None:
                found.put_nowait((record.type, record.data))

            await one.listen()
        yield found


async def next_of(outbox: asyncio.Queue[tuple[str, Any]]) -> tuple[str, Any]:
    async with asyncio.timeout(10):
        return await outbox.get()


async def test_publishing(bus: Bus, outbox: asyncio.Queue[tuple[str, Any]], serve: Start) -> None:
    """S-169: the document's own request; success means that it is in the link's inbox. Telemetry goes its own way."""
    site = await serve(bus=lambda: bus)
    payload = {"temperature": 23.5, "humidity": 65.2, "timestamp": "2025-08-25T10:30:00Z"}
    topic = f"{BASE}/telemetry"
    answer = await site.client.post("/mqtt/publish", json={"topic": topic, "payload": payload, "qos": 1})
    assert answer.status_code == 200
    assert answer.json() == {"success": True, "status": "stored", "topic": topic, "id": answer.json()["id"]}
    assert await next_of(outbox) == ("mqtt", {"topic": topic, "payload": payload, "qos": 1, "retain": False})
    await site.client.post("/mqtt/publish", json={"topic": topic, "payload": "text", "qos": 0, "retain": True})
    told = {"topic": topic, "payload": "text", "qos": 0, "retain": True}
    assert await next_of(outbox) == ("mqtt.telemetry", told)


@pytest.mark.parametrize(
    ("body", "status", "words_in_it"),
    [
        ({"topic": "a"}, 422, "payload"),
        ({"payload": 1}, 422, "topic"),
        ({"topic": "", "payload": 1}, 422, "topic"),
        ({"topic": "a", "payload": 1, "qos": 2}, 422, "qos"),
        ({"topic": "a/+/b", "payload": 1}, 422, "wildcard"),
        ({"topic": "a/#", "payload": 1}, 422, "wildcard"),
        ({"topic": "a/b/c/d/e/f/g/h/i", "payload": 1}, 422, "9 levels; at most 8"),
        ({"topic": "x" * 257, "payload": 1}, 422, "257 bytes; at most 256"),
        ({"topic": "org/None/device/x/telemetry", "payload": 1}, 422, "None"),
        ({"topic": "a", "payload": "x" * (128 * 1024)}, 413, "131074 bytes; 131072 are allowed"),
        ({"topic": "a", "payload": "x" * (2 << 20)}, 413, "1048576 bytes at most"),
    ],
)
async def test_what_cannot_be_published(bus: Bus, serve: Start, body: Any, status: int, words_in_it: str) -> None:
    """S-169, S-198: errors that say what is wrong, and nothing is stored."""
    site = await serve(bus=lambda: bus)
    answer = await site.client.post("/mqtt/publish", json=body)
    assert answer.status_code == status
    assert words_in_it in str(answer.json())
    assert (await site.client.post("/mqtt/publish", content=b"{nonsense")).status_code == 422
    assert not [key async for key in _keys(bus) if b"inbox" in key]


async def _keys(bus: Bus) -> AsyncIterator[bytes]:
    for key in await bus.call("KEYS", f"{bus.keys.prefix}*"):
        yield key


async def test_subscribing(bus: Bus, outbox: asyncio.Queue[tuple[str, Any]], serve: Start) -> None:
    """S-170, S-171, S-173: the wish is in the hash that the link follows, and the link is told; others' wishes stay."""
    site = await serve(bus=lambda: bus)
    await bus.call("HSET", words.filters_key(bus.keys), words.filter_field("petals.camera", "weather"), 0)
    for topic, new in (("weather", True), ("org/+/device/#", True), ("weather", False)):
        answer = await site.client.post("/mqtt/subscribe", json={"topic": topic})
        assert answer.json() == {"success": True, "topic": topic, "new": new}
        assert await next_of(outbox) == (words.FILTERS, {})
    told = (await site.client.get("/mqtt/subscriptions")).json()
    assert told == {
        "topics": ["weather"],
        "patterns": ["org/+/device/#"],
        "subscribers": {"org/+/device/#": ["http"], "weather": ["http", "petals.camera"]},
        "count": 2,
    }
    assert (await site.client.post("/mqtt/unsubscribe", json={"topic": "weather"})).json()["success"] is True
    again = await site.client.post("/mqtt/unsubscribe", json={"topic": "weather"})
    assert (again.status_code, again.json()["error"]) == (404, "not_subscribed")
    assert (await site.client.get("/mqtt/subscriptions")).json()["subscribers"]["weather"] == ["petals.camera"]


@pytest.mark.parametrize("topic", ["a/#/b", "a#", "a+/b", "+a", "org/*/x", "a\0b", "x" * 257, "org/None/x", "", 5])
async def test_what_is_no_filter(bus: Bus, serve: Start, topic: Any) -> None:
    """S-170: the rules of wildcards, with the reason."""
    site = await serve(bus=lambda: bus)
    answer = await site.client.post("/mqtt/subscribe", json={"topic": topic})
    assert answer.status_code == 422
    assert await bus.call("HLEN", words.filters_key(bus.keys)) == 0


async def test_status(bus: Bus, serve: Start) -> None:
    """S-172: the shape that existing programs read, filled from what the link tells, and more under link."""
    site = await serve(bus=lambda: bus)
    told = (await site.client.get("/mqtt/status")).json()
    assert told["status"] == "unhealthy"
    assert set(told["connection"].values()) == {False}
    link = {"connected": 1, "phase": "connected", "organization": "ORG1", "topics": f"{BASE}/command,{BASE}/response"}
    flat = [part for pair in link.items() for part in pair]
    await bus.call("HSET", words.link_key(bus.keys), *flat)
    await bus.call("HSET", words.handlers_key(bus.keys), "camera", "null")
    await bus.call("HSET", words.filters_key(bus.keys), words.filter_field("http", "weather"), 1)
    told = (await site.client.get("/mqtt/status")).json()
    assert told == {
        "status": "healthy",
        "connection": {"ts_client": True, "callback_server": True, "callback_router": True, "connected": True},
        "configuration": {"ts_client_host": "localhost", "ts_client_port": 3004, "enable_callbacks": True},
        "subscriptions": {
            "topics": [f"{BASE}/command", f"{BASE}/response", "weather"],
            "handlers": {"weather": 1, f"{BASE}/command": 1},
        },
        "device_info": {"organization_id": "ORG1", "robot_instance_id": "m1"},
        "link": {"phase": "connected", "organization": "ORG1"},
    }


async def test_without_a_bus(
    own_server: RealServer, bus_name: str, serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it runs, and while Redis is down: 503, never a success that was not stored."""
    monkeypatch.setattr("petalbus.daemon.http.mqtt._PATIENCE", 0.5)
    site = await serve(bus=lambda: None)
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/mqtt/publish", {"topic": "a", "payload": 1}),
        ("POST", "/mqtt/subscribe", {"topic": "a"}),
        ("GET", "/mqtt/status", None),
        ("GET", "/mqtt/subscriptions", None),
    ]
    for method, path, body in calls:
        answer = await site.client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]) == (503, "bus_unavailable")
        assert answer.headers["retry-after"] == "1"
    async with Bus(own_server.url, app="petalbus", bus=bus_name) as bus:
        site = await serve(bus=lambda: bus)
        own_server.kill()
        answers = await asyncio.gather(*(site.client.request(method, path, json=body) for method, path, body in calls))
        assert {answer.status_code for answer in answers} == {503}
        own_server.start()
        async with asyncio.timeout(20):
            while (await site.client.get("/mqtt/status")).status_code != 200:
                await asyncio.sleep(0.05)
