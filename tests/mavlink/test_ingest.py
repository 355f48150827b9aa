"""Frames on the bus: rates, the latest of each kind, and subscribers that want some messages only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from bus.clients import until
from mavlink.peer import Peer
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.decode import decode
from petalbus.handlers.mavlink.errors import DialectError
from petalbus.handlers.mavlink.handler import MavlinkHandler
from petalbus.handlers.mavlink.ingest import read_rates
from petalbus.handlers.mavlink.options import MavlinkOptions
from petalbus.handlers.mavlink.wire.framing import Frame

from support.servers import RealServer

Open = Callable[..., Any]


@pytest.fixture
async def open_vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Open]:
    """``handler, peer, bus = await open_vehicle(rates=...)``: a handler that has heard its vehicle."""
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> tuple[MavlinkHandler, Peer, Bus]:
            bus = await stack.enter_async_context(Bus(server.url, app="vehicle", bus=bus_name))
            handler = MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0", options=MavlinkOptions(**settings))
            await stack.enter_async_context(handler)
            peer = await stack.enter_async_context(Peer(remote=handler.link.transport.local))  # type: ignore[attr-defined]
            peer.heartbeat()
            assert await handler.vehicle.wait_connected(5.0)
            return handler, peer, bus

        yield open_one


def attitude(peer: Peer, roll: float, **sender: int) -> None:
    peer.send(mavlink.MAVLink_attitude_message(1000, roll, 0.0, 0.0, 0.0, 0.0, 0.0), **sender)


async def test_a_subscriber_gets_the_messages_that_it_wants(open_vehicle: Open) -> None:
    """By name, or as the whole type; what it does not want is no burden that comes back."""
    handler, peer, bus = await open_vehicle()
    async with (
        bus.subscribe("mavlink.rx", name="one", messages=["ATTITUDE"]) as some,
        bus.subscribe("mavlink.rx", name="two", messages=["mavlink.ATTITUDE", "HEARTBEAT"]) as more,
    ):
        for number in range(50):
            attitude(peer, number / 100)
            peer.position()
        peer.heartbeat()
        rolls = []
        async for record in some:
            assert record.type == "mavlink.ATTITUDE"
            rolls.append(decode(record)["roll"])
            if len(rolls) == 50:
                break
        assert rolls == pytest.approx([number / 100 for number in range(50)])
        kinds = []
        async for record in more:
            kinds.append(record.type)
            if record.type == "mavlink.HEARTBEAT":
                break
        assert set(kinds) == {"mavlink.ATTITUDE", "mavlink.HEARTBEAT"}
    await until(lambda: handler.ingest.waiting == 0, "all are stored")
    pending = await bus.call("XPENDING", bus.keys.topic("mavlink.rx"), "vehicle.one")
    assert pending[0] <= 3, "the last one and the two behind it; what was not wanted before is acknowledged"


async def test_a_record_of_another_form_is_chosen_by_its_type(open_vehicle: Open) -> None:
    _, _, bus = await open_vehicle()
    async with bus.subscribe("telemetry", messages=["wanted"]) as records:
        for kind in ("other", "wanted", "other", "wanted"):
            await bus.publish("telemetry", kind, {"kind": kind})
        got = [(await anext(aiter(records))).type]
    assert got == ["wanted"]


async def test_a_rate_keeps_the_rest_out_of_the_topic_and_nowhere_else(open_vehicle: Open) -> None:
    """Each sender has a rate of its own; a rate of 0 keeps a message out; the vehicle's state is fresh all the same."""
    handler, peer, bus = await open_vehicle(rates={"ATTITUDE": 10.0, "33": 0.0})
    for number in range(100):
        attitude(peer, number / 100)
        attitude(peer, number / 100, system=1, component=7)
        peer.position(relative=number)
        await asyncio.sleep(0.01)
    await until(lambda: handler.ingest.waiting == 0 and handler.link.statistics()["received"]["frames"] >= 301, "all")
    rows = await bus.call("XRANGE", bus.keys.topic("mavlink.rx"), "-", "+")
    frames = [Frame.from_raw(fields[5]) for _, fields in rows]
    for component in (1, 7):
        stored = [frame for frame in frames if (frame.msgid, frame.compid) == (30, component)]
        assert 8 <= len(stored) <= 20, len(stored)
    assert not [frame for frame in frames if frame.msgid == 33]
    assert handler.ingest.left_out + handler.ingest.published == 301
    latest = handler.ingest.latest.told(["GLOBAL_POSITION_INT"])
    assert latest["1/1/GLOBAL_POSITION_INT"]["message"]["relative_alt"] == 99_000


async def test_the_latest_of_each_kind_is_there_for_who_comes_late(open_vehicle: Open) -> None:
    handler, peer, bus = await open_vehicle()
    for number in range(20):
        attitude(peer, number / 100)
    attitude(peer, 0.5, system=1, component=7)

    async def stored() -> Any:
        return await bus.call("HGET", bus.keys.state("mavlink"), "1/7/ATTITUDE")

    await until(stored, "it is stored")
    value = await bus.call("HGET", bus.keys.state("mavlink"), "1/1/ATTITUDE")
    assert handler.link.dialect.fields(Frame.from_raw(value[8:]))["roll"] == pytest.approx(0.19)
    told = handler.ingest.latest.told(["ATTITUDE"], system=1)
    assert {key: one["message"]["roll"] for key, one in told.items()} == pytest.approx(
        {"1/1/ATTITUDE": 0.19, "1/7/ATTITUDE": 0.5}
    )
    assert told["1/1/ATTITUDE"]["mono"] == int.from_bytes(value[:8], "little")


def test_rates_are_read() -> None:
    assert read_rates("ATTITUDE=10, RAW_IMU = 0;33=2.5,") == {"ATTITUDE": 10.0, "RAW_IMU": 0.0, "33": 2.5}
    assert read_rates("") == {}
    for text in ("ATTITUDE", "=3", "ATTITUDE=-1", "ATTITUDE=fast", "ATTITUDE=nan"):
        with pytest.raises(ValueError, match="MESSAGE=RATE"):
            read_rates(text)


async def test_a_rate_of_an_unknown_message_is_refused(server: RealServer, bus_name: str) -> None:
    async with Bus(server.url, app="vehicle", bus=bus_name) as bus:
        with pytest.raises(DialectError, match="ALTITUDES"):
            MavlinkHandler(bus, endpoint="udpin:127.0.0.1:0", options=MavlinkOptions(rates={"ALTITUDES": 1.0}))
