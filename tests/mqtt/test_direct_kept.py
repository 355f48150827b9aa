"""Which filters the broker's session holds is known over our restarts: what is not wanted any more is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.config import Settings
from petalbus.daemon.runtime.mqtt import MqttLink
from petalbus.handlers.mqtt.direct import DirectTransport, transport
from petalbus.handlers.mqtt.direct import kept as module
from petalbus.handlers.mqtt.direct.kept import KeptFilters, sessions_key
from petalbus.handlers.mqtt.transport import Identity

from support.broker import Mosquitto
from support.mqtt_link import Running, Store, link, outgoing, until
from support.odd_broker import OddBroker
from support.servers import RealServer


@pytest.fixture
async def bus(server: RealServer, bus_name: str) -> AsyncIterator[Bus]:
    async with Bus(server.url, app="mqtt", bus=bus_name, options=BusOptions(presence=False)) as made:
        yield made


def kept_in(bus: Bus) -> KeptFilters:
    return KeptFilters(lambda: bus, "broker:1883")


async def test_a_restart_under_another_organisation(mosquitto: Mosquitto, bus: Bus) -> None:
    """S-176, S-217: the old organisation's commands come no more, though the broker has kept the session."""
    async with link(mosquitto.port, ["org/OLD/command", "both"], kept=kept_in(bus)) as first:
        await first.connected()
    async with (
        link(mosquitto.port, ["org/NEW/command", "both"], kept=kept_in(bus)) as second,
        link(mosquitto.port, client="cloud") as cloud,
    ):
        await second.connected()
        assert second.transport.describe()["session_present"]
        for topic in ("org/OLD/command", "org/NEW/command", "both"):
            await cloud.send(outgoing(1, topic))
        await until(lambda: len(second.store.messages) >= 2, lambda: f"{second.store.messages}")
        assert [message.topic for message in second.store.messages] == ["org/NEW/command", "both"]


async def test_a_life_that_ended_while_it_subscribed(odd: OddBroker, bus: Bus) -> None:
    """What was asked for is remembered before the broker is asked; what is still wanted is asked for anew."""
    odd.session_present = True
    async with link(odd.port, ["a", "b"], kept=kept_in(bus)) as first:
        await first.connected()
        odd.suback = lambda _: odd.drop() or 1  # type: ignore[func-returns-value]  # the answer does not come
        first.transport.want({"b": 1, "c": 1}, Identity(device="device-1", client_id="drone-1"))
        await until(lambda: ["c"] in odd.subscribes, lambda: f"{odd.subscribes}")
        await first.stop()
    odd.suback = lambda _: 1
    odd.subscribes.clear()
    odd.unsubscribes.clear()
    odd.options.clear()
    async with link(odd.port, ["b"], kept=kept_in(bus)) as second:
        await until(lambda: odd.unsubscribes, lambda: "the old ones go")
        assert odd.unsubscribes == [["a", "c"]]
        assert (odd.subscribes, odd.options) == ([["b"]], [1]), "retained messages come, as at every start"
        await second.connected()
    assert await kept_in(bus).load("drone-1") == ["b"]


async def test_fifty_places_that_another_life_has_taken(odd: OddBroker, bus: Bus) -> None:
    """What is left over counts towards what a connection may have: as much as is needed goes first."""
    odd.session_present = True
    async with link(odd.port, [f"old/{n:02}" for n in range(48)], kept=kept_in(bus)) as first:
        await first.connected()
    odd.order.clear()
    async with link(odd.port, ["a", "b", "c"], kept=kept_in(bus)) as second:
        await second.connected()
        assert odd.unsubscribes[0] == ["old/00"]
        assert odd.order[:2] == ["unsubscribe", "subscribe"]
        assert sum(map(len, odd.unsubscribes)) == 48


async def test_a_bus_that_is_away_holds_nothing_up(
    odd: OddBroker, server: RealServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: the link is up without it; what is left over goes as soon as it can be asked, and nothing is forgotten."""
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.1)
    monkeypatch.setattr(transport, "_SOON", 0.05)
    odd.session_present = True
    assert await kept_in(bus).store("drone-1", ["old"])
    there: list[Bus] = []
    kept = KeptFilters(lambda: there[0] if there else None, "broker:1883")
    async with link(odd.port, ["new"], kept=kept) as running:
        await running.connected()
        await until(lambda: odd.subscribes == [["new"]], lambda: f"{odd.subscribes}")
        assert not odd.unsubscribes
        assert await kept_in(bus).load("drone-1") == ["old"], "what is not known is not overwritten"
        server.freeze()
        try:
            there.append(bus)
            odd.drop()
            await until(lambda: len(odd.greetings) == 2, lambda: f"{odd.greetings}")
            await running.connected()
        finally:
            server.thaw()
        await until(lambda: odd.unsubscribes == [["old"]], lambda: f"{odd.unsubscribes}")
    assert await kept_in(bus).load("drone-1") == ["new"]


async def test_a_session_that_is_gone_leaves_nothing(odd: OddBroker, bus: Bus) -> None:
    """The broker says that it does not remember us: there is nothing to give up."""
    await kept_in(bus).store("drone-1", ["old"])
    async with link(odd.port, ["new"], kept=kept_in(bus)) as running:
        await running.connected()
    assert not odd.unsubscribes
    assert await kept_in(bus).load("drone-1") == ["new"]


async def test_each_client_id_and_broker_has_its_own_and_few_are_kept(bus: Bus) -> None:
    """I7: bounded; what cannot be read is nothing."""
    other = KeptFilters(lambda: bus, "other:1883")
    assert await kept_in(bus).store("drone-1", ["a"])
    assert await other.store("drone-1", ["b"])
    assert (await kept_in(bus).load("drone-1"), await other.load("drone-1")) == (["a"], ["b"])
    for number in range(30):
        assert await other.store(f"n{number}", ["x"])
    assert await bus.call("HLEN", sessions_key(bus.keys)) <= 16
    assert await other.load("n29") == ["x"]
    for broken in (b"{", b"7", b'{"a": 1}'):
        await bus.call("HSET", sessions_key(bus.keys), "n1@other:1883", broken)
        assert await other.load("n1") == []


async def test_the_daemon_s_link_remembers_them(odd: OddBroker, bus: Bus, tmp_path: Path) -> None:
    """The part `mqtt` of the daemon makes its link so, with its own client of the bus."""
    settings = Settings(data=tmp_path, mqtt_url=f"mqtt://127.0.0.1:{odd.port}", mqtt_transport="direct")
    part = MqttLink(lambda _: bus, settings, ready=asyncio.Event(), installed=lambda: (), built_in={})
    made = await part._transport()
    part._bus = bus
    made.want({"a": 1}, Identity(device="device-1", client_id="drone-1"))
    assert isinstance(made, DirectTransport)
    running = Running(made, Store())
    await running.connected()
    await running.stop()
    assert await KeptFilters(lambda: bus, f"127.0.0.1:{odd.port}").load("drone-1") == ["a"]
