"""Messages from the vehicle to petals: registration, filters, queues, and what a petal sees of them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink
from pymavlink.quaternion import QuaternionBase

from bus.clients import until

from support.mavlink_rig import Heard, Rig, rig
from support.procs import Children
from support.servers import RealServer


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


def attitude(roll: float = 0.0) -> Any:
    return mavlink.MAVLink_attitude_message(1, roll, 0.0, 0.0, 0.0, 0.0, 0.0)


async def test_a_petal_hears_position_and_attitude_of_the_simulated_vehicle(vehicle: Rig, children: Children) -> None:
    """S-007: keyed by number, as existing petals do, with pymavlink's message objects."""
    await vehicle.sim(children)
    proxy = await vehicle.proxy()
    position, quaternion = Heard(), Heard()
    proxy.register_handler(key=str(mavlink.MAVLINK_MSG_ID_LOCAL_POSITION_NED), fn=position)
    proxy.register_handler(key=str(mavlink.MAVLINK_MSG_ID_ATTITUDE_QUATERNION), fn=quaternion)
    began = time.monotonic()
    await position.some(12)
    await quaternion.some(12)
    assert 0.8 < time.monotonic() - began < 4.0, "both come ten times a second"
    here = position.messages[-1]
    assert isinstance(here, mavlink.MAVLink_local_position_ned_message)
    assert (here.get_type(), here.get_msgId(), here.get_srcSystem(), here.get_srcComponent()) == (
        "LOCAL_POSITION_NED",
        32,
        1,
        1,
    )
    assert here.to_dict().keys() >= {"mavpackettype", "x", "y", "z", "vx"}
    turn = quaternion.messages[-1]
    roll, pitch, _yaw = QuaternionBase([turn.q1, turn.q2, turn.q3, turn.q4]).euler
    assert abs(roll) < 0.5
    assert abs(pitch) < 0.5
    assert math.isclose(turn.q1**2 + turn.q2**2 + turn.q3**2 + turn.q4**2, 1.0, abs_tol=1e-3)


async def test_by_name_by_number_and_everything(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    named, numbered, twice, everything = Heard(), Heard(), Heard(), Heard()
    proxy.register_handler("ATTITUDE", named)
    proxy.register_handler("30", numbered)
    proxy.register_handler("30", twice)
    proxy.register_handler("mav", everything)
    await proxy._frames_open()
    peer.send(attitude(0.25))
    peer.position(alt=700.0)
    for heard in (named, numbered, twice):
        assert [message.roll for message in await heard.some()] == [0.25]
    await everything.some(2)
    assert [message.get_type() for message in everything.messages] == ["ATTITUDE", "GLOBAL_POSITION_INT"]
    assert everything.messages[0] is named.messages[0], "decoded once for all of them"


async def test_an_unknown_message_is_handed_over_as_pymavlink_does(vehicle: Rig) -> None:
    from petalbus.handlers.mavlink.wire.framing import build_frame

    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    heard = Heard()
    proxy.register_handler("77026", heard)
    await proxy._frames_open()
    for seq in (1, 2):
        peer.send_bytes(build_frame(77026, b"abc", crc_extra=17, sysid=1, compid=1, seq=seq))
    assert (await heard.some())[0].get_type() == "UNKNOWN_77026"


async def test_a_handler_that_is_not_async_is_refused() -> None:
    from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

    proxy = MavLinkExternalProxy()
    with pytest.raises(TypeError, match="async def"):
        proxy.register_handler("ATTITUDE", lambda _message: None)  # type: ignore[arg-type,return-value]  # the point
    with pytest.raises(ValueError, match="queue_length"):
        proxy.register_handler("ATTITUDE", Heard(), queue_length=0)


async def test_unregistered_handlers_are_called_no_more(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    gone, stays = Heard(), Heard()
    proxy.register_handler("ATTITUDE", gone)
    proxy.register_handler("ATTITUDE", stays)
    await proxy._frames_open()
    peer.send(attitude())
    await gone.some()
    proxy.unregister_handler("ATTITUDE", gone)
    proxy.unregister_handler("ATTITUDE", gone)  # twice is no error
    peer.send(attitude())
    await stays.some(2)
    assert len(gone.messages) == 1


async def test_a_slow_handler_delays_nobody_and_drops_its_oldest(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    quick, seen = Heard(), []
    release = asyncio.Event()

    async def slow(message: Any) -> None:
        seen.append(round(message.roll))
        await release.wait()

    proxy.register_handler("ATTITUDE", slow, queue_length=3)
    proxy.register_handler("ATTITUDE", quick)
    await proxy._frames_open()
    peer.send(attitude(0))
    await quick.some(1)
    await until(lambda: seen == [0], "the slow one has begun")
    for number in range(1, 11):
        peer.send(attitude(number))
    await quick.some(11, timeout=5.0)
    release.set()
    await until(lambda: len(seen) == 4, "what waited is handled")
    assert seen == [0, 8, 9, 10]
    assert [one["dropped"] for one in proxy.statistics()["handlers"]] == [7, 0]


async def test_repetitions_are_left_out_for_the_interval(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    filtered, briefly, everything = Heard(), Heard(), Heard()
    proxy.register_handler("ATTITUDE", filtered, duplicate_filter_interval=30.0)
    proxy.register_handler("ATTITUDE", briefly, duplicate_filter_interval=0.0)
    proxy.register_handler("ATTITUDE", everything)
    await proxy._frames_open()
    for roll in (1, 1, 2, 2, 2, 1):
        peer.send(attitude(roll))
    peer.send(attitude(1), system=9)  # the same content from somebody else is no repetition
    await everything.some(7)
    await until(lambda: len(filtered.messages) == 4, "each change is told")
    assert [round(message.roll) for message in filtered.messages] == [1, 2, 1, 1]
    assert len(briefly.messages) == 7


async def test_a_failing_handler_goes_on_being_called(vehicle: Rig, caplog: pytest.LogCaptureFixture) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    calls = []

    async def failing(message: Any) -> None:
        calls.append(message)
        raise ValueError("a petal's fault")

    proxy.register_handler("ATTITUDE", failing)
    await proxy._frames_open()
    for _ in range(3):
        peer.send(attitude())
    await until(lambda: len(calls) == 3, "called three times")
    assert proxy.statistics()["handlers"][0]["failed"] == 3
    assert len([one for one in caplog.records if one.exc_info]) == 1, "told once, not for each message"


async def test_registered_from_another_thread_and_heavy(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    threads: list[str] = []
    alive = Heard()

    async def heavy(message: Any) -> None:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)  # noqa: ASYNC251  # the point: it computes

    def register() -> None:
        proxy.register_handler("ATTITUDE", heavy, cpu_heavy=True)
        proxy.register_handler("GLOBAL_POSITION_INT", alive)

    await asyncio.to_thread(register)
    await until(lambda: len(proxy._handlers) == 2, "registered")
    await proxy._frames_open()
    peer.send(attitude())
    peer.position()
    await alive.some(timeout=2.0)
    await until(lambda: len(threads) == 1, "the heavy one ran")
    assert threads[0].startswith("petal-heavy")


async def test_registered_before_the_start(server: RealServer, bus_name: str) -> None:
    from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

    async with rig(server, bus_name) as vehicle:
        peer = await vehicle.scripted()
        proxy = MavLinkExternalProxy(url=server.url, bus=bus_name)
        heard = Heard()
        proxy.register_handler("ATTITUDE", heard)
        await proxy.start()
        try:
            await until(lambda: proxy._frames is not None and proxy._opening is None, "reading")
            peer.send(attitude())
            await heard.some()
        finally:
            await proxy.stop()
        await proxy.start()  # a proxy can be started again; its handlers are still there
        try:
            await until(lambda: proxy._frames is not None and proxy._opening is None, "reading again")
            peer.send(attitude())
            await heard.some(2)
        finally:
            await proxy.stop()


async def test_nothing_is_kept_on_the_server_for_a_reader(vehicle: Rig) -> None:
    """No group: a petal that is gone holds no history back."""
    await vehicle.scripted()
    proxy = await vehicle.proxy()
    heard = Heard()
    proxy.register_handler("mav", heard)
    await proxy._frames_open()
    groups = await (await proxy._own_bus()).call("XINFO", "GROUPS", f"{{{vehicle.bus_name}}}:topic:mavlink.rx")
    assert groups == []
    proxy.unregister_handler("mav", heard)
    assert proxy._linger is not None, "the reading ends when nobody wants it for a while"
