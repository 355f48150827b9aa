"""What the client program brings: stored before it is answered, in order; put off while it cannot be stored."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from mqtt_client.conftest import BASE, Site, Taker, ingress, stored, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusUnavailable
from petalbus.daemon.http.callback_port import CallbackPort
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.server import Server
from petalbus.handlers.mqtt.client.callback_routes import callback_router
from petalbus.handlers.mqtt.client.callbacks import Callbacks
from petalbus.handlers.mqtt.options import ClientOptions
from petalbus.handlers.mqtt.transport import Incoming
from petalbus.handlers.mqtt.words import INVALID, TOPIC

from support.servers import RealServer

Start = Callable[..., Awaitable[Site]]
COMMAND = f"{BASE}/command/edge"


def command(number: int) -> dict[str, Any]:
    """A command with a number."""
    return {"messageId": f"m{number}", "command": "petal/do", "payload": {"n": number}}


@pytest.fixture
async def bus(server: RealServer, bus_name: str) -> AsyncIterator[Bus]:
    async with Bus(server.url, app="mqtt", bus=bus_name) as made:
        yield made


@pytest.fixture
def callbacks(bus: Bus) -> Callbacks:
    """They store on the bus."""
    made = Callbacks(ClientOptions())
    made.receiver = Taker(ingress(bus))
    return made


@pytest.mark.parametrize("path", ["/callback", "/mqtt-callback/callback"])
async def test_success_means_stored(bus: Bus, callbacks: Callbacks, serve: Start, path: str) -> None:
    """S-161, S-164: both addresses take a message and answer as documented; it is in the stream by then."""
    site = await serve(callbacks)
    told = {"topic": COMMAND, "payload": command(1), "timestamp": "2026-01-01T00:00:00Z", "qos": 1}
    answer = await site.client.post(path, json=told)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert await bus.call("XLEN", bus.keys.topic(TOPIC)) == 1
    record = (await stored(bus))[0]
    assert record == {"topic": COMMAND, "payload": command(1), "qos": 1, "ours": True}


async def test_a_payload_as_text_is_the_same_record(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """Some programs pass on the text of the message as it came from the broker; and text that is no JSON is text."""
    site = await serve(callbacks)
    await site.bring(COMMAND, command(1))
    assert (await site.bring(COMMAND, json.dumps(command(1)))).status_code == 200
    await site.bring("some/topic", "just text")
    assert [one["payload"] for one in await stored(bus)] == [command(1), "just text"]


async def test_order_and_repetitions(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """One connection's messages are stored in their order; one that comes twice is answered twice and stored once."""
    site = await serve(callbacks)
    for number in range(60):
        assert (await site.bring(COMMAND, command(number))).status_code == 200
        if number % 10 == 0:
            assert (await site.bring(COMMAND, command(number))).status_code == 200
    assert [one["payload"]["payload"]["n"] for one in await stored(bus)] == list(range(60))


async def test_many_at_once(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """All at the same time over many connections: each that is answered with success is stored, none twice."""
    site = await serve(callbacks)
    answers = await asyncio.gather(*(site.bring(COMMAND, command(number)) for number in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(one["payload"]["payload"]["n"] for one in await stored(bus)) == list(range(100))


async def test_while_the_bus_is_down(own_server: RealServer, bus_name: str, serve: Start) -> None:
    """Redis killed: 503 with Retry-After, and no success; back again: all are taken, none lost, in order."""
    async with Bus(own_server.url, app="mqtt", bus=bus_name) as bus:
        callbacks = Callbacks(ClientOptions(), patience=1.0)
        callbacks.receiver = Taker(ingress(bus))
        site = await serve(callbacks)
        answered: list[int] = []
        assert (await site.bring(COMMAND, command(0))).status_code == 200
        answered.append(0)
        own_server.kill()
        answer = await site.bring(COMMAND, command(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"] == "not_stored"
        assert "send it again" in answer.json()["detail"]

        async def bring() -> None:
            for number in range(1, 30):
                while (await site.bring(COMMAND, command(number))).status_code != 200:
                    await asyncio.sleep(0.05)
                answered.append(number)

        bringing = asyncio.create_task(bring())
        await asyncio.sleep(0.2)
        assert answered == [0]
        own_server.start()
        await asyncio.wait_for(bringing, 30)
        assert [one["payload"]["payload"]["n"] for one in await stored(bus)] == list(range(30)) == answered


async def test_none_overtakes_one_that_is_put_off() -> None:
    """Those that waited behind one that could not be stored are put off with it: their order stays."""
    taken: list[bytes] = []
    gate, failing = asyncio.Event(), True

    class Moody(Taker):
        async def received(self, message: Incoming) -> None:
            await gate.wait()
            if failing:
                raise BusUnavailable("not now")
            taken.append(message.payload)

    callbacks = Callbacks(ClientOptions())
    callbacks.receiver = Moody()
    first = [asyncio.create_task(take(callbacks, number)) for number in range(3)]
    await asyncio.sleep(0)
    gate.set()
    assert [reply.status for reply in await asyncio.gather(*first)] == [503] * 3
    failing = False
    assert (await take(callbacks, 3)).status == 200
    assert taken == [b"3"]


async def take(callbacks: Callbacks, payload: Any, *, peer: str | None = "127.0.0.1", secret: str | None = None) -> Any:
    """One callback without a server."""

    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps({"topic": "a/b", "payload": payload}).encode()

    return await callbacks.take(pieces(), peer=peer, secret=secret)


async def test_without_a_link_nothing_is_taken(serve: Start) -> None:
    """Before the link runs, and after: 503."""
    callbacks = Callbacks(ClientOptions())
    site = await serve(callbacks)
    answer = await site.bring(COMMAND, command(1))
    assert (answer.status_code, answer.json()["error"]) == (503, "link_not_running")
    assert (await site.client.get("/mqtt-callback/health")).json()["status"] == "unavailable"


async def test_a_store_that_hangs_is_given_up_in_time() -> None:
    """Redis frozen: every one that waits is put off within its patience, not one after the other."""

    class Stuck(Taker):
        async def received(self, message: Incoming) -> None:
            await asyncio.Event().wait()

    callbacks = Callbacks(ClientOptions(), patience=0.2)
    callbacks.receiver = Stuck()
    async with asyncio.timeout(2):
        replies = await asyncio.gather(*(take(callbacks, number) for number in range(300)))
    assert {reply.status for reply in replies} == {503}
    assert sum(reply.body["error"] == "too_many_waiting" for reply in replies) == 300 - 256


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (b"{nonsense", 400, "no JSON"),
        (b"", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[1]", 400, "it must be an object"),
        (b'{"payload": {}}', 400, "topic is missing"),
        (b'{"topic": 5, "payload": {}}', 400, "topic is missing"),
        (b'{"topic": "a/+/b", "payload": {}}', 400, "not one that a message can have"),
        (b'{"topic": "some/topic"}', 400, "payload is missing"),
        (b'{"topic": "some/topic", "payload": "' + b"x" * 600_000 + b'"}', 413, "more than 524288 bytes"),
        (b"[" * 5000, 400, "no JSON"),
    ],
)
async def test_what_is_no_message(
    bus: Bus, callbacks: Callbacks, serve: Start, raw: bytes, status: int, reason: str
) -> None:
    """S-194: a clear error, it is kept in mqtt.invalid with the reason, and the next one is taken."""
    site = await serve(callbacks)
    answer = await site.client.post("/callback", content=raw)
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    kept = await stored(bus, INVALID)
    assert len(kept) == 1
    assert reason in kept[0]["reason"]
    assert kept[0]["topic"] == ("some/topic" if b"some/topic" in raw else "a/+/b" if b"a/+" in raw else "")
    assert (await site.bring(COMMAND, command(1))).status_code == 200
    assert callbacks.statistics() == {"stored": 1, "invalid": 1, "refused": 0, "put_off": 0}


async def test_a_command_that_is_none_is_kept_too(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """S-194: a message that is whole, on a command topic, and no command: kept as invalid, and done with."""
    site = await serve(callbacks)
    assert (await site.bring(COMMAND, {"messageId": "m1"})).status_code == 200
    assert "command" in (await stored(bus, INVALID))[0]["reason"]


async def test_who_may_bring_messages() -> None:
    """Only this computer, unless there is a secret; with one, only who knows it: who brings a message commands us."""
    open_here = Callbacks(ClientOptions())
    open_here.receiver = Taker()
    for peer in ("127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"):
        assert (await take(open_here, 1, peer=peer)).status == 200
    for peer in ("192.168.1.7", "::ffff:192.168.1.7", "fe80::1%eth0", "", None, "localhost.evil.example"):
        assert (await take(open_here, 1, peer=peer)).status == 403
    assert open_here.statistics()["refused"] == 6
    locked = Callbacks(ClientOptions(secret="s3cret"))
    locked.receiver = Taker()
    assert (await take(locked, 1, peer="192.168.1.7", secret="s3cret")).status == 200
    for secret in (None, "", "s3cre", "s3cret ", "ß"):
        refused = await take(locked, 1, secret=secret)
        assert (refused.status, refused.body["error"]) == (403, "callback_refused")


async def test_the_secret_over_http(serve: Start) -> None:
    """In a header, or in the address that we register."""
    callbacks = Callbacks(ClientOptions(secret="a b&ü"))
    callbacks.receiver = Taker()
    site = await serve(callbacks)
    assert (await site.bring(COMMAND, 1)).status_code == 403
    told = {"topic": COMMAND, "payload": 1}
    assert (await site.client.post("/callback", json=told, params={"secret": "a b&ü"})).status_code == 200
    callbacks = Callbacks(ClientOptions(secret="plain"))
    callbacks.receiver = Taker()
    site = await serve(callbacks)
    assert (await site.bring(COMMAND, 1, headers={"X-PetalBus-Secret": "plain"})).status_code == 200


async def test_health_and_stats(callbacks: Callbacks, serve: Start) -> None:
    """S-195: both addresses of the health page, and the counts, in the documented shape."""
    callbacks.subscriptions, callbacks.handlers = lambda: 3, lambda: 2
    site = await serve(callbacks)
    for path in ("/callback/health", "/mqtt-callback/health"):
        told = (await site.client.get(path)).json()
        assert told.keys() == {"status", "timestamp", "subscriptions"}
        assert (told["status"], told["subscriptions"]) == ("healthy", 3)
    assert (await site.client.get("/mqtt-callback/stats")).json() == {"subscriptions": 3, "handlers": 2}
    described = (await site.client.get("/openapi.json")).json()
    assert {"/callback", "/mqtt-callback/callback", "/callback/health", "/mqtt-callback/stats"} <= set(
        described["paths"]
    )


def nodelay(server: Server) -> set[int]:
    """TCP_NODELAY of the connections that are open."""
    open_now = [one.transport.get_extra_info("socket") for one in server._uvicorn.server_state.connections]
    assert open_now
    return {end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in open_now}


async def test_a_port_of_its_own_without_nagle(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """S-161, S-165, S-193: the callbacks also on their own port, guarded alike; TCP_NODELAY is set on both."""
    site = await serve(callbacks)
    port = CallbackPort(
        "127.0.0.1", 0, lambda: callback_router(callbacks), options=HttpOptions(port=0), names=("client.lan",)
    )
    await port.start()
    assert port.url is not None
    try:
        assert port.url != site.url
        async with httpx.AsyncClient(base_url=port.url, timeout=10, trust_env=False) as own:
            told = {"topic": COMMAND, "payload": command(1)}
            assert (await own.post("/callback", json=told)).json() == {"status": "success"}
            assert (await own.post("/callback", json=told, headers={"Host": "client.lan:3005"})).status_code == 200
            assert (await own.post("/callback", json=told, headers={"Host": "evil.example"})).status_code == 403
            assert (await own.post("/callback", json=told, headers={"Origin": "http://evil"})).status_code == 403
            assert port._server is not None
            assert nodelay(port._server) == {1}
            await site.bring(COMMAND, command(2))
            assert nodelay(site.server) == {1}
            taken = CallbackPort(
                "127.0.0.1", int(port.url.rpartition(":")[2]), lambda: callback_router(callbacks), options=port.options
            )
            with pytest.raises(OSError, match="cannot listen"):
                await taken.start()
    finally:
        await port.stop(timeout=1)
    assert [one["payload"]["messageId"] for one in await stored(bus)] == ["m1", "m2"]


async def test_a_body_that_stops_in_the_middle(callbacks: Callbacks, serve: Start) -> None:
    """The client program is killed while it sends: nothing is stored, nothing hangs, the next one is taken."""
    site = await serve(callbacks)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rpartition(":")[2]))
    writer.write(b'POST /callback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"topic": "a')
    await writer.drain()
    writer.transport.abort()
    assert (await site.bring(COMMAND, command(1))).status_code == 200
    await until(lambda: callbacks.statistics()["stored"] == 1)
    assert callbacks.statistics()["invalid"] == 0
    del reader


async def test_what_is_nested_too_deeply_is_kept(bus: Bus, callbacks: Callbacks, serve: Start) -> None:
    """I8: more levels can be read than written. A program that repeats what got no answer would repeat it for ever."""
    site = await serve(callbacks)
    for levels in (200, 254, 300, 1000, 2000):
        raw = b'{"topic": "%s", "payload": %s0%s}' % (COMMAND.encode(), b"[" * levels, b"]" * levels)
        answer = await site.client.post("/callback", content=raw)
        assert answer.status_code in (200, 400), levels
        assert await bus.call("XLEN", bus.keys.topic(TOPIC)) == 0
    assert await bus.call("XLEN", bus.keys.topic(INVALID)) == 5
    assert (await site.bring(COMMAND, command(1))).status_code == 200


async def test_a_fault_of_ours_is_kept_and_not_put_off(callbacks: Callbacks) -> None:
    """It would end alike every time, with all others behind it."""
    kept: list[tuple[str, str]] = []

    class Faulty(Taker):
        async def received(self, message: Incoming) -> None:
            raise ZeroDivisionError("of ours")

        async def invalid(self, topic: str, raw: bytes, reason: str) -> None:
            kept.append((topic, reason))

    callbacks.receiver = Faulty()
    reply = await take(callbacks, 1)
    assert (reply.status, kept[0][0], "of ours" in kept[0][1]) == (400, "a/b", True)
