"""What goes to a broker: every message is confirmed, refused with a reason, or given back to be sent again."""

from __future__ import annotations

import asyncio
import random
import signal
import struct
import time

import pytest

from petalbus.handlers.mqtt.direct.connection import RECEIVE_MAXIMUM
from petalbus.handlers.mqtt.transport import LinkLost, NotNow, Outgoing, PublishRefused

from support.broker import FORBIDDEN, PASSWORD, USER, Mosquitto
from support.mqtt_link import SECONDS, link, outgoing, send_all, until
from support.odd_broker import OddBroker, Published


async def test_3000_messages_both_ways_over_kill_9_of_the_broker(mosquitto: Mosquitto) -> None:
    """S-159, S-160, S-197: sent by one link, stored by another, the broker killed in between: order kept, none lost.

    Mosquitto confirms a message a moment before it writes it down. What it had confirmed in just that moment is the
    only thing that its kill may cost, and nobody but the broker can prevent that. And Mosquitto 2.0.11 mixes what waits
    for a reader that is more than a window behind; so ours is kept closer.
    """
    chance = random.Random(20)
    wanted = [str(n).encode() for n in range(3001)]
    confirmed: dict[bytes, float] = {}
    kills: list[float] = []
    async with (
        link(mosquitto.port, ["out"], client="reader") as reader,
        link(mosquitto.port, client="writer") as writer,
    ):
        await reader.connected()

        def reader_is_near() -> bool:
            return len(confirmed) - len(reader.store.payloads) < RECEIVE_MAXIMUM // 2

        messages = (outgoing(n) for n in range(3000))
        sending = asyncio.create_task(send_all(writer, messages, confirmed, may_go_on=reader_is_near))
        for share in (400, 1200, 2000, 2600):
            await until(lambda share=share: len(confirmed) >= share, lambda: f"{len(confirmed)} confirmed")
            await asyncio.sleep(chance.uniform(0.0, 0.05))
            kills.append(time.monotonic())
            await asyncio.to_thread(mosquitto.restart)
        again = await sending
        await send_all(writer, [outgoing(3000)])
        stored = reader.store.payloads
        await until(lambda: wanted[-1] in reader.store.payloads, lambda: f"the last one, after {len(stored)}")
        came = list(dict.fromkeys(reader.store.payloads))
        lost = set(wanted) - set(came)
        assert came == [payload for payload in wanted if payload not in lost], "first arrivals are in order"
        assert all(any(abs(confirmed[payload] - kill) < 0.5 for kill in kills) for payload in lost), lost
        assert len(lost) <= 18, lost
        assert again <= 5 * 18, "what was sent again is no more than what was under way"
        assert writer.transport.describe()["in_flight"] == 0


async def test_the_window_is_below_what_the_broker_announces(odd: OddBroker) -> None:
    """A broker that takes 5 at a time gets 3; packet ids are used again and never run out."""
    odd.announce = bytes([33]) + struct.pack("!H", 5)
    async with link(odd.port) as running:
        await running.connected()
        assert running.transport.describe()["window"] == 3
        await send_all(running, (outgoing(n) for n in range(200)))
        assert odd.most_unanswered <= 3
        assert {message.mid for message in odd.published} <= set(range(1, 301))
        assert [message.payload for message in odd.published] == [str(n).encode() for n in range(200)]


@pytest.mark.parametrize("code", [0x87, 0x90, 0x99])
async def test_a_refused_message_says_its_code(odd: OddBroker, code: int) -> None:
    """A reason code of 0x80 or more: PublishRefused with the code; the others go on."""
    odd.puback = lambda message: code if message.topic == "no" else 0x10
    async with link(odd.port) as running:
        with pytest.raises(PublishRefused, match=f"{code:#04x}") as caught:
            await running.send(outgoing(1, "no"))
        assert caught.value.code == code
        assert await running.send(outgoing(2, "yes")) == 0x10, "nobody subscribed, which is no error"


@pytest.mark.parametrize("code", [0x80, 0x83, 0x91, 0x97])
async def test_a_broker_that_does_not_take_it_just_now(odd: OddBroker, code: int) -> None:
    """Quota, or nothing that is said against the message: it may be sent again, and the connection goes on."""
    odd.puback = lambda message: code if message.topic == "full" else 0
    async with link(odd.port) as running:
        with pytest.raises(NotNow, match=f"{code:#04x}") as caught:
            await running.send(outgoing(1, "full"))
        assert (caught.value.code, caught.value.patient) == (code, code == 0x97)
        assert await running.send(outgoing(2, "yes")) == 0
        assert len(odd.greetings) == 1
        assert running.transport.describe()["put_off"] == 1


async def test_what_travels_with_a_message(odd: OddBroker) -> None:
    """Its id as a user property, its expiry in seconds, retain; a whole second at least."""
    async with link(odd.port) as running:
        await running.send(outgoing(1, expiry=0.2, retain=True))
        await running.send(outgoing(2, qos=0, expiry=61.5))
        await until(lambda: len(odd.published) == 2, lambda: f"{odd.published}")
    first, second = odd.published
    assert (first.qos, first.retain, first.properties) == (1, True, {38: {"id": "m1"}, 2: 1})
    assert (second.qos, second.retain, second.properties) == (0, False, {38: {"id": "m2"}, 2: 62})


async def test_a_broker_that_never_acknowledges_is_left(odd: OddBroker) -> None:
    """It answers pings and nothing else: a state says so, and the message is given back."""
    odd.puback = lambda _: None
    async with link(odd.port, keepalive=1) as running:
        await running.connected()
        future = running.transport.submit(outgoing(1))
        state = await running.problem("no-acknowledgement")
        assert "does not acknowledge" in state.reason
        with pytest.raises(LinkLost):
            await future
        odd.puback = lambda _: 0
        assert await running.send(outgoing(1)) == 0


async def test_without_a_connection_nothing_is_taken(odd: OddBroker) -> None:
    """submit never waits: not connected is LinkLost at once; room() waits for the connection."""
    odd.connack_codes = [0x88] * 2
    async with link(odd.port) as running:
        with pytest.raises(LinkLost):
            await running.transport.submit(outgoing(1))
        async with asyncio.timeout(SECONDS):
            await running.transport.room()
        assert running.transport.state.connected


async def test_what_the_broker_cannot_take_is_refused_before_it_is_sent(odd: OddBroker) -> None:
    """S-198: the announced packet size, quality of service and retain are kept; so is what a topic may be."""
    odd.announce = bytes([39]) + struct.pack("!L", 1000) + bytes([37, 0])
    async with link(odd.port) as running:
        for message, code in (
            (Outgoing(id="a", topic="out", payload=b"x" * 1000), 0x95),
            (Outgoing(id="b", topic="out", payload=b"", retain=True), 0x9A),
            (Outgoing(id="c", topic="out", payload=b"", qos=2), 0x9B),
            (Outgoing(id="d", topic="out/#", payload=b""), 0x90),
            (Outgoing(id="e", topic="", payload=b""), 0x90),
            (Outgoing(id="f", topic="x" * 70_000, payload=b""), 0x90),
        ):
            with pytest.raises(PublishRefused) as caught:
                await running.send(message)
            assert caught.value.code == code, caught.value
        assert await running.send(outgoing(1)) == 0
        assert [message.topic for message in odd.published] == ["out"]


async def test_mosquittos_access_list(mosquitto: Mosquitto) -> None:
    """A forbidden topic of a real broker: its reason code, and the allowed ones work."""
    async with link(mosquitto.login_port, username=USER, password=PASSWORD) as running:
        assert await running.send(outgoing(1, "allowed/x")) in (0, 0x10)
        with pytest.raises(PublishRefused) as caught:
            await running.send(outgoing(1, FORBIDDEN))
        assert caught.value.code == 0x87


async def test_a_frozen_broker_fills_a_bounded_buffer(mosquitto: Mosquitto) -> None:
    """S-197: quality 0 has no acknowledgement; the write buffer bounds it, and room() waits."""
    async with link(mosquitto.port, write_buffer=64 * 1024) as running:
        await running.connected()
        mosquitto.signal(signal.SIGSTOP)
        try:
            given = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    while True:
                        await running.transport.room()
                        await running.transport.submit(
                            Outgoing(id=str(given), topic="out", payload=b"x" * 16_000, qos=0)
                        )
                        given += 1
            transport = running.transport._connection
            assert transport is not None
            assert transport._transport is not None
            assert transport._transport.get_write_buffer_size() < 128 * 1024
        finally:
            mosquitto.signal(signal.SIGCONT)
        assert await running.send(outgoing(1)) in (0, 0x10)


async def test_the_end_is_orderly(odd: OddBroker) -> None:
    """S-199: what is under way is acknowledged first, then DISCONNECT; a broker that keeps silent delays it little."""

    def late(message: Published) -> int | None:
        return 0

    odd.puback = late
    async with link(odd.port) as running:
        await running.connected()
        future = running.transport.submit(outgoing(1))
        await running.stop()
        assert await future == 0
        assert odd.goodbyes == [0]
    odd.puback = lambda _: None
    async with link(odd.port) as running:
        await running.connected()
        future = running.transport.submit(outgoing(1))
        await running.stop()
        with pytest.raises(LinkLost):
            await future
        assert odd.goodbyes == [0, 0]
    assert len(asyncio.all_tasks()) <= 3, asyncio.all_tasks()
