"""Everything that can be wrong is a state: a stable word, a sentence, a pause; never the end of the link."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import pytest

from petalbus.handlers.mqtt.direct import DirectTransport
from petalbus.handlers.mqtt.direct.errors import Failure, ended, from_error, refused
from petalbus.handlers.mqtt.options import DirectOptions
from petalbus.handlers.mqtt.transport import Identity, LinkLost, LinkState, Phase

from support.broker import PASSWORD, USER, Mosquitto
from support.mqtt_link import Running, Store, link, outgoing, until
from support.odd_broker import OddBroker
from support.servers import free_port

REFUSALS = [
    ("5", 0x84, "version"),
    ("5", 0x85, "bad-client-id"),
    ("5", 0x86, "bad-credentials"),
    ("5", 0x87, "not-authorized"),
    ("5", 0x88, "server-busy"),
    ("5", 0x89, "server-busy"),
    ("5", 0x8A, "banned"),
    ("5", 0x97, "server-busy"),
    ("5", 0x9D, "moved"),
    ("5", 0xB0, "refused-by-broker"),
    ("5", 0x01, "version"),
    ("3.1.1", 1, "version"),
    ("3.1.1", 2, "bad-client-id"),
    ("3.1.1", 3, "server-busy"),
    ("3.1.1", 4, "bad-credentials"),
    ("3.1.1", 5, "not-authorized"),
]


@pytest.mark.parametrize(("version", "code", "problem"), REFUSALS)
async def test_a_refused_greeting(odd: OddBroker, version: Literal["5", "3.1.1"], code: int, problem: str) -> None:
    """S-192: each code of CONNACK: its word and its number; the next attempt comes by itself."""
    odd.connack_codes = [code]
    async with link(odd.port, version=version) as running:
        state = await running.problem(problem)
        assert state.code == code
        assert state.reason
        assert running.transport.state.phase in (Phase.WAITING, Phase.CONNECTING, Phase.CONNECTED)
        failure = refused(code, "drone-1", five=version == "5")
        if not failure.pause:
            await running.connected()
            assert running.transport.state == LinkState(Phase.CONNECTED, None, "", 0)


async def test_a_wrong_password_and_a_wrong_client_id(mosquitto: Mosquitto, odd: OddBroker) -> None:
    """S-192: with a real broker: what to check is said; no secret is."""
    async with link(mosquitto.login_port, username=USER, password="wrong-" + PASSWORD) as running:
        state = await running.problem("not-authorized")  # mosquitto tells a stranger no more than that
        assert "policy" in state.reason
        assert PASSWORD not in str(running.transport.describe()) + repr(running.transport._options)
    odd.connack_codes = [0x85]
    async with link(odd.port, client="somebody") as running:
        assert "'somebody'" in (await running.problem("bad-client-id")).reason


async def test_a_client_id_taken_twice(mosquitto: Mosquitto) -> None:
    """Two would throw each other out for ever: it is said, and one waits for half a minute.

    Mosquitto gives no reason for it.
    """
    async with link(mosquitto.port, client="twin") as first, link(mosquitto.port, client="twin") as second:
        both = (first, second)
        await until(lambda: any(one.transport.state.problem == "client-id-taken" for one in both), lambda: "it is said")
        loser = next(one for one in both if one.transport.state.problem == "client-id-taken")
        assert "'twin'" in loser.transport.state.reason
        attempts = loser.transport.describe()["attempts"]
        assert attempts <= 12
        await until(lambda: any(one.transport.state.connected for one in both), lambda: "the other one stays")
        await asyncio.sleep(0.7)
        assert loser.transport.describe()["attempts"] == attempts


async def test_a_client_id_taken_twice_with_a_reason(odd: OddBroker) -> None:
    """AWS IoT says it with reason code 0x8E of MQTT 5: once is enough."""
    async with link(odd.port, client="twin") as running:
        await running.connected()
        odd.goodbye(0x8E)
        assert "'twin'" in (await running.problem("client-id-taken")).reason
        await asyncio.sleep(0.7)
        assert running.transport.describe()["attempts"] == 1


GOODBYES = [
    (0x87, "not-authorized", "policy"),
    (0x8B, "server-down", "shutting down"),
    (0x8D, "timeout", "too long"),
    (0x8E, "client-id-taken", "own client id"),
    (0x96, "too-fast", "rate"),
    (0x97, "server-busy", "quota"),
    (0x98, "closed-by-broker", "operator"),
    (0x83, "closed-by-broker", "0x83"),
]


@pytest.mark.parametrize(("code", "problem", "word"), GOODBYES)
async def test_a_broker_that_says_why_it_ends(odd: OddBroker, code: int, problem: str, word: str) -> None:
    """The reason code of DISCONNECT (MQTT 5) is told, with what to do."""
    async with link(odd.port) as running:
        await running.connected()
        odd.goodbye(code)
        state = await running.problem(problem)
        assert (state.code, word in state.reason) == (code, True), state


async def test_a_closed_port_and_no_busy_loop() -> None:
    """Nobody listens: it is said, and the attempts become rare: 0.2 s, then twice as long each time."""
    async with link(free_port(), retry_first=0.2, retry_most=30.0) as running:
        state = await running.problem("refused")
        assert "does the broker run" in state.reason
        await asyncio.sleep(1.0)
        assert 2 <= running.transport.describe()["attempts"] <= 5
        assert len(running.store.states) <= 12


async def test_a_client_id_does_not_come_more_often_than_aws_takes_it(odd: OddBroker) -> None:
    """One CONNECT a second. The first retry after a longer life comes at once, and so does another client id."""
    assert DirectOptions().connect_every > 1.0
    odd.connect_every = 0.4
    async with link(odd.port, connect_every=0.45, retry_first=0.01, retry_most=0.01) as running:
        for number in range(1, 4):
            await until(lambda number=number: len(odd.greetings) == number, lambda: f"{odd.greetings}")
            await running.connected()
            if number < 3:
                odd.drop()
                await running.problem("closed-by-broker")
                running.store.states.clear()
        await asyncio.sleep(0.5)
        since = time.monotonic()
        odd.drop()
        await until(lambda: len(odd.greetings) == 4, lambda: f"{odd.greetings}")
        assert odd.greetings[-1].at - since < 0.3, "it had lived for long enough"
        since = time.monotonic()
        for name, soon in (("b", True), ("drone-1", False)):
            running.transport.want({}, Identity(device="device-1", client_id=name))
            await until(lambda name=name: odd.greetings[-1].client_id == name, lambda: f"{odd.greetings}")
            await running.connected()
            assert (time.monotonic() - since < 0.3) is soon
        assert odd.too_soon == 0


async def test_an_unknown_host() -> None:
    """A name that does not exist: a state, and the loop stays free."""
    async with link(1883, host="no-such-broker.invalid") as running:
        assert "name" in (await running.problem("host-unknown")).reason


async def test_a_broker_that_does_not_answer_the_greeting(odd: OddBroker) -> None:
    """The connection stands and nothing comes: given up after the time allowed."""
    odd.silent = True
    async with link(odd.port, connect_timeout=0.2) as running:
        await running.problem("timeout")
        odd.silent = False
        await running.connected()


async def test_something_that_closes_at_once() -> None:
    """What a broker does that wants TLS, another certificate or another policy."""

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    port = free_port()
    async with await asyncio.start_server(close, "127.0.0.1", port), link(port) as running:
        assert "TLS" in (await running.problem("closed-by-broker")).reason


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x32\xff\xff\xff\xff\x7f",
        b"\x30\x03\x00\x05a",
        b"\x32\x05\x00\x01a\x00\x01",
        b"\x30\x05\x00\x01a\x01\x63",
        b"\x34\x07\x00\x01a\x00\x01\x00x",
        b"\x40\x01\x00",
        b"\x30\x06\x00\x02\xff\xfe\x00x",
        b"\xf0\x00",
    ],
)
async def test_a_malformed_packet_ends_the_connection_and_only_that(odd: OddBroker, garbage: bytes) -> None:
    """What cannot be read is said and never skipped in silence; the next connection works."""
    async with link(odd.port, ["in"]) as running:
        await running.connected()
        odd.raw(garbage)
        state = await running.problem("malformed")
        assert "does not speak MQTT" in state.reason
        await running.connected()
        await until(lambda: odd.goodbyes == [0x81], lambda: f"{odd.goodbyes}")
        odd.deliver("in", b"fine", 1)
        await until(lambda: running.store.payloads == [b"fine"], lambda: "it goes on")


async def test_nobody_is_nobody(odd: OddBroker) -> None:
    """Before the device is known nothing is attempted; then it connects at once, with another client id again."""
    transport = DirectTransport(DirectOptions(host="127.0.0.1", port=odd.port))
    running = Running(transport, Store())
    try:
        state = await running.problem("no-identity")
        assert state.phase is Phase.WAITING
        transport.want({}, Identity(organization="o", client_id="thing"))
        await asyncio.sleep(0.05)
        assert not odd.greetings
        transport.want({}, Identity(device="dev"))
        await running.connected()
        transport.want({}, Identity(organization="o2", device="dev"))
        transport.want({}, Identity(device="dev", client_id="id"))
        await until(lambda: len(odd.greetings) == 2, lambda: "the other one")
        await running.connected()
        assert [one.client_id for one in odd.greetings] == ["dev", "id"]
        assert odd.goodbyes == [0], "an orderly end"
        assert [one.clean for one in odd.greetings] == [False, False], "sessions are kept"
        assert odd.greetings[0].properties[17] == 3600
        assert odd.greetings[0].keepalive == 20
        future = transport.submit(outgoing(1))
        assert await future == 0
    finally:
        await running.stop()
    with pytest.raises(LinkLost):
        await transport.submit(outgoing(2))


async def test_a_receiver_that_fails_does_not_end_the_link(odd: OddBroker) -> None:
    """Whatever the other side raises: the link goes on."""

    class Failing(Store):
        def link_changed(self, state: LinkState) -> None:
            super().link_changed(state)
            raise RuntimeError("no")

    async with link(odd.port, store=Failing()) as running:
        await running.connected()
        assert await running.send(outgoing(1)) == 0


async def test_the_round_trip_is_measured(mosquitto: Mosquitto) -> None:
    """describe() has what statistics and metrics show."""
    async with link(mosquitto.port, ["a"], keepalive=1) as running:
        await running.connected()
        await until(lambda: running.transport.describe()["round_trip_ms"], lambda: "a ping was answered")
        await running.send(outgoing(1))
        shown = running.transport.describe()
        assert 0 < shown["round_trip_ms"] < 5000
        wanted: dict[str, Any] = {
            "phase": "connected",
            "window": 18,
            "in_flight": 0,
            "reconnects": 0,
            "acknowledged": 1,
        }
        assert {name: shown[name] for name in wanted} == wanted
        await asyncio.sleep(1.7)
        assert running.transport.describe()["attempts"] == 1, "a quiet link lives on its pings"


def test_every_failure_has_a_word_and_a_sentence() -> None:
    """No code is without one, in either packet."""
    for code in range(1, 256):
        for failure in (refused(code, "me", five=True), refused(code, "me", five=False), ended(code, "me", "said")):
            assert failure.problem
            assert len(failure.reason) > 20
            assert "{" not in failure.reason
    assert from_error(OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b"), "x:1").problem == "refused"
    assert from_error(ValueError("v"), "x:1") == Failure("internal", "an unexpected error: ValueError: v")
