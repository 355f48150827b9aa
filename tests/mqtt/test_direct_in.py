"""What a broker brings: in order, acknowledged when it is stored and not before, over every kind of end."""

from __future__ import annotations

import asyncio
import signal
from typing import Literal

import pytest

from petalbus.handlers.mqtt.direct import inbox
from petalbus.handlers.mqtt.transport import Incoming

from support.broker import Mosquitto
from support.mqtt_link import Store, link, outgoing, send_all, until
from support.odd_broker import OddBroker


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_600_messages_keep_their_order_and_none_is_lost_when_the_bus_goes(
    mosquitto: Mosquitto, version: Literal["5", "3.1.1"]
) -> None:
    """S-159, S-160, S-197: the receiver goes away in between, and our program is started anew: all 600, in order."""
    first, second = Store(), Store()

    async def away_for_a_while(message: Incoming) -> None:
        if len(first.messages) == 200:
            first.failing = True
            asyncio.get_running_loop().call_later(0.2, setattr, first, "failing", False)
        if len(first.messages) >= 300:
            await asyncio.sleep(0.005)

    first.before = away_for_a_while
    async with link(mosquitto.port, client="sender") as sender:
        async with link(mosquitto.port, ["in/+"], store=first, version=version) as running:
            await running.connected()
            sending = asyncio.create_task(send_all(sender, (outgoing(n, "in/1") for n in range(600))))
            await until(lambda: len(first.messages) >= 300, lambda: f"{len(first.messages)} of 300")
        stored = len(first.messages)
        async with link(mosquitto.port, ["in/+"], store=second, version=version) as running:
            await until(lambda: b"599" in second.payloads, lambda: f"{second.payloads[-3:]}")
            await sending
            assert running.transport.describe()["session_present"]
    assert len(first.messages) == stored, "nothing was stored after the end"
    both = first.payloads + second.payloads
    assert list(dict.fromkeys(both)) == [str(n).encode() for n in range(600)]
    twice = [message for message in second.messages if message.payload in first.payloads]
    assert all(message.duplicate for message in twice), "the broker had not read the last acknowledgements: it says so"
    assert len(twice) <= 64
    assert first.tries > 201, "the one that could not be stored was tried again"


async def test_a_message_is_acknowledged_only_after_it_was_stored(odd: OddBroker) -> None:
    """S-160: while the bus is away nothing is acknowledged, nothing spins, and later the order is the broker's."""
    store = Store()
    store.failing = True
    async with link(odd.port, ["in"], store=store) as running:
        await running.connected()
        for mid in range(1, 6):
            odd.deliver("in", str(mid).encode(), mid)
        await until(lambda: store.tries >= 8, lambda: f"{store.tries} tries")
        assert not odd.pubacks
        assert "the bus is away" in running.transport.describe()["not_stored"]
        tries = store.tries
        await asyncio.sleep(0.2)
        assert store.tries - tries <= 3, "no busy loop"
        assert running.transport.state.connected, "the connection goes on"
        store.failing = False
        await until(lambda: len(odd.pubacks) == 5, lambda: f"{odd.pubacks}")
    assert store.payloads == [b"1", b"2", b"3", b"4", b"5"]
    assert odd.pubacks == [1, 2, 3, 4, 5]
    assert odd.greetings[0].properties[33] == 64, "the broker is told how many we hold"


async def test_what_is_brought_again_is_recognised_by_its_id(odd: OddBroker) -> None:
    """After a lost connection: stored ones are acknowledged without being stored twice, the others keep their place."""
    store = Store()
    gate = asyncio.Event()

    async def wait_at_the_second(message: Incoming) -> None:
        if message.payload == b"2":
            await gate.wait()

    store.before = wait_at_the_second
    odd.session_present = True
    async with link(odd.port, ["in"], store=store) as running:
        await running.connected()
        odd.deliver("in", b"1", 1)
        await until(lambda: odd.pubacks == [1], lambda: f"{odd.pubacks}")
        for mid in (2, 3):
            odd.deliver("in", str(mid).encode(), mid)
        await until(lambda: running.transport.describe()["unstored"] == 2, lambda: "they are held")
        odd.drop()
        await until(lambda: len(odd.greetings) == 2, lambda: "a second connection")
        await running.connected()
        for mid in (2, 3):
            odd.deliver("in", str(mid).encode(), mid, again=True)
        odd.deliver("in", b"4", 4)
        gate.set()
        await until(lambda: len(odd.pubacks) == 4, lambda: f"{odd.pubacks}")
        assert running.transport.describe()["received_again"] == 2
    assert store.payloads == [b"1", b"2", b"3", b"4"]
    assert odd.pubacks == [1, 2, 3, 4]


async def test_a_broker_that_forgets_its_session_loses_nothing_that_we_hold(odd: OddBroker) -> None:
    """The session is gone after the connection: what it had brought is stored nevertheless, and its ids are free."""
    store = Store()
    store.failing = True
    async with link(odd.port, ["in"], store=store) as running:
        await running.connected()
        for mid in (1, 2):
            odd.deliver("in", str(mid).encode(), mid)
        await until(lambda: store.tries > 0, lambda: "a try")
        odd.drop()
        await until(lambda: len(odd.subscribes) == 2, lambda: "its filters are told again")
        await running.connected()
        odd.deliver("in", b"3", 1)
        store.failing = False
        await until(lambda: len(store.messages) == 3, lambda: f"{store.payloads}")
        await until(lambda: odd.pubacks == [1], lambda: f"{odd.pubacks}")
    assert store.payloads == [b"1", b"2", b"3"]


async def test_duplicates_that_are_none_of_ours_are_handed_on_as_such(odd: OddBroker) -> None:
    """S-160: what the broker brought to an earlier program comes with its mark; the ingress decides by messageId."""
    async with link(odd.port, ["in"]) as running:
        await running.connected()
        odd.deliver("in", b"1", 7, again=True)
        odd.deliver("in", b"1", 8, again=True)
        await until(lambda: len(odd.pubacks) == 2, lambda: f"{odd.pubacks}")
        assert [message.duplicate for message in running.store.messages] == [True, True]


async def test_what_comes_again_on_the_same_connection_is_one_message(odd: OddBroker) -> None:
    """S-160: AWS IoT repeats until it is acknowledged: one record, one acknowledgement, none of another one."""
    store, gate = Store(), asyncio.Event()

    async def wait(_message: Incoming) -> None:
        await gate.wait()

    store.before, odd.repeat_every = wait, 0.02
    async with link(odd.port, ["in"], store=store) as running:
        await running.connected()
        odd.deliver("in", b"1", 7)
        await until(lambda: running.transport.describe()["received_again"] >= 3, lambda: "it comes again")
        gate.set()
        await until(lambda: odd.pubacks, lambda: "it is acknowledged")
        odd.repeat_every = None
        again = running.transport.describe()["received_again"]
        odd.deliver("in", b"1", 7, again=True)  # it was on its way when our acknowledgement left
        await until(lambda: running.transport.describe()["received_again"] > again, lambda: "it is recognised")
        gate.clear()
        odd.deliver("in", b"stop", 7)
        odd.deliver("in", b"stop", 7, again=True)
        await asyncio.sleep(0.1)
        assert odd.pubacks == [7], "what the id stands for now is not stored yet"
        gate.set()
        await until(lambda: len(odd.pubacks) == 2, lambda: f"{odd.pubacks}")
        await asyncio.sleep(0.1)
    assert store.payloads == [b"1", b"stop"]
    assert odd.pubacks == [7, 7]


async def test_an_acknowledgement_that_never_came_is_given_again(
    odd: OddBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that repeats long after we have acknowledged has lost that: it gets it, and nothing is stored twice."""
    monkeypatch.setattr(inbox, "_CROSSING_S", 0.0)
    async with link(odd.port, ["in"]) as running:
        await running.connected()
        for number, again in ((1, False), (2, True), (3, False)):
            odd.deliver("in", b"1", 7, again=again)
            await until(lambda number=number: len(odd.pubacks) == number, lambda: f"{odd.pubacks}")
        assert running.store.payloads == [b"1", b"1"], "without the flag it is another one with the same words"


async def test_an_id_that_is_given_twice_confirms_only_the_second(odd: OddBroker) -> None:
    """A broker that breaks the rule: both are stored, and its id is acknowledged once, after the second."""
    store, gates = Store(), {b"1": asyncio.Event(), b"2": asyncio.Event()}

    async def wait(message: Incoming) -> None:
        await gates[message.payload].wait()

    store.before = wait
    async with link(odd.port, ["in"], store=store) as running:
        await running.connected()
        odd.deliver("in", b"1", 7)
        await until(lambda: store.tries == 1, lambda: "it is in hand")
        odd.deliver("in", b"2", 7)
        await until(lambda: running.transport.describe()["unstored"] == 2, lambda: "so is the second")
        gates[b"1"].set()
        await until(lambda: store.tries == 2, lambda: f"{store.payloads}")
        await asyncio.sleep(0.05)
        assert not odd.pubacks, "the second is not stored"
        gates[b"2"].set()
        await until(lambda: odd.pubacks == [7], lambda: f"{odd.pubacks}")
    assert store.payloads == [b"1", b"2"]


async def test_a_message_too_large_is_handed_on_cut_and_the_next_is_whole(mosquitto: Mosquitto) -> None:
    """S-198: a message of 3 MB neither fills the memory nor stops the link."""
    async with link(mosquitto.port, ["in"]) as running, link(mosquitto.port, client="sender") as sender:
        await running.connected()
        await sender.send(outgoing(1, "in", expiry=60.0))
        big = outgoing(2, "in")
        await sender.send(type(big)(id="big", topic="in", payload=b"x" * 3_000_000))
        await sender.send(outgoing(3, "in"))
        await until(lambda: len(running.store.messages) == 3, lambda: f"{len(running.store.messages)}")
        sizes = [len(payload) for payload in running.store.payloads]
        assert sizes[0] == sizes[2] == 1
        assert 1_000_000 < sizes[1] < 1024 * 1024
        assert running.store.messages[0].properties == {"id": "m1"}


async def test_a_flood_of_quality_0_is_held_back_not_held(mosquitto: Mosquitto) -> None:
    """S-197: more than 128 unstored messages are never held; reading stops until they are stored."""
    store, gate, most = Store(), asyncio.Event(), 0

    async def wait(message: Incoming) -> None:
        nonlocal most
        most = max(most, running.transport.describe()["unstored"])
        await gate.wait()

    store.before = wait
    async with link(mosquitto.port, ["in"], store=store) as running, link(mosquitto.port, client="sender") as sender:
        await running.connected()
        for number in range(500):
            await sender.send(type(outgoing(0))(id=str(number), topic="in", payload=b"x" * 20_000, qos=0))
        await until(lambda: running.transport.describe()["unstored"] >= 128, lambda: "it is full")
        await asyncio.sleep(0.1)
        held = running.transport.describe()["unstored"]
        gate.set()
        await sender.send(outgoing(999, "in"))
        await until(lambda: store.payloads[-1:] == [b"999"], lambda: f"{len(store.messages)} stored")
    assert held <= 128 + 16, "one read of 256 kB may bring a few more"
    assert most <= 128 + 16


async def test_a_frozen_broker_is_noticed_and_nothing_is_lost(mosquitto: Mosquitto) -> None:
    """A broker that answers nothing for one and a half keepalive is left; what it kept comes afterwards."""
    async with link(mosquitto.port, ["in"], keepalive=1, connect_timeout=0.5) as running:
        await running.connected()
        mosquitto.signal(signal.SIGSTOP)
        try:
            state = await running.problem("timeout")
            assert "silent" in state.reason
        finally:
            mosquitto.signal(signal.SIGCONT)
        await running.connected()
        mosquitto.publish("in", "after")
        await until(lambda: running.store.payloads == [b"after"], lambda: f"{running.store.payloads}")
