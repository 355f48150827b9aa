"""Messages from petals to the vehicle, the connection, and questions with answers (S-034, S-037)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from bus.clients import until
from mavlink.peer import ARDUPILOT, ARM_DISARM, Peer
from petalbus import Bus
from petalbus.handlers.mavlink.wire.framing import build_frame
from petalbus.petals.proxies.context import ProxyContext
from petalbus.petals.proxies.mavlink import ExternalProxy, MavLinkExternalProxy, make

from support.mavlink_rig import Heard, Rig, rig
from support.procs import Children
from support.servers import RealServer


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


def texts(peer: Peer) -> list[str]:
    return [message.text for message in peer.of("STATUSTEXT")]


def text(number: int) -> Any:
    return mavlink.MAVLink_statustext_message(6, f"{number}".encode())


async def test_what_is_sent_leaves_in_order_under_the_links_identity(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    began = time.monotonic()
    for number in range(200):  # the peer's socket holds 256
        proxy.send("mav", text(number))
    assert time.monotonic() - began < 0.5, "it only queues"
    await peer.until(lambda: len(texts(peer)) == 200)
    assert texts(peer) == [str(number) for number in range(200)]
    assert {(one.get_srcSystem(), one.get_srcComponent()) for one in peer.of("STATUSTEXT")} == {(2, 140)}
    numbers = [one.get_seq() for one in peer.heard]
    assert numbers == [(numbers[0] + index) & 0xFF for index in range(len(numbers))], "one sequence for all senders"


async def test_from_other_threads_and_as_pymavlink_sends(vehicle: Rig) -> None:
    """`proxy.master` is what petals that know pymavlink use."""
    peer = await vehicle.scripted(system=7)
    proxy = await vehicle.proxy()
    assert (proxy.target_system, proxy.target_component) == (7, 1)
    assert (proxy.master.target_system, proxy.master.target_component) == (7, 1)

    def thread() -> None:
        proxy.master.mav.command_long_send(proxy.master.target_system, 1, 511, 0, 30, 20_000, 0, 0, 0, 0, 0)
        proxy.send("mav", proxy.master.mav.statustext_encode(6, b"from a thread"))

    await asyncio.to_thread(thread)
    await peer.until(lambda: texts(peer))
    [command] = peer.commands(511)
    assert (command.target_system, command.param1, command.param2) == (7, 30.0, 20_000.0)


async def test_bursts_at_once_and_spaced(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    proxy.send("mav", text(1), burst_count=4)
    await peer.until(lambda: texts(peer) == ["1"] * 4)
    began = time.monotonic()
    proxy.send("mav", text(2), burst_count=4, burst_interval=0.1)
    await peer.until(lambda: texts(peer)[4:] == ["2"] * 4)
    assert 0.25 < time.monotonic() - began < 2.0


async def test_what_cannot_be_packed_is_counted_and_harms_nobody(
    vehicle: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    proxy.send("mav", mavlink.MAVLink_statustext_message(6, b"x" * 5, id=-1))
    proxy.send("mav", "no message")
    proxy.send("mav", text(5))
    await peer.until(lambda: texts(peer) == ["5"])
    assert proxy.statistics()["outgoing"]["refused"] == 2
    assert "cannot be packed" in caplog.text


async def test_a_frame_of_a_dialect_that_the_link_does_not_know(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    proxy.send("mav", build_frame(77026, b"abcd", crc_extra=99, sysid=2, compid=140, seq=3))
    await peer.until(lambda: peer.of("UNKNOWN_77026"))
    raw = bytes(peer.of("UNKNOWN_77026")[0].get_msgbuf())
    assert raw == build_frame(77026, b"abcd", crc_extra=99, sysid=2, compid=140, seq=raw[4])


async def test_damaged_frames_are_refused_whole(vehicle: Rig) -> None:
    from petalbus import ReplyError

    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    good = build_frame(30, b"\1" * 28, crc_extra=39, sysid=2, compid=140, seq=3)
    bus = await proxy._own_bus()
    for data in (good + good[:-1] + b"\0", good[:-3], b"hello"):
        with pytest.raises(ReplyError, match="MAVLINK_FRAMES_INVALID"):
            await bus.request("vehicle", "mavlink.send", data, content_type="application/x-mavlink")
    with pytest.raises(ReplyError, match="MAVLINK_FRAMES_INVALID"):
        await bus.request("vehicle", "mavlink.send", {"frames": []})
    reply = await bus.request("vehicle", "mavlink.send", good * 2, content_type="application/x-mavlink")
    assert reply.data == {"frames": 2, "sent": 2}
    await peer.until(lambda: len(peer.of("ATTITUDE")) == 2)


async def test_set_points_that_could_not_leave_are_dropped_not_kept(vehicle: Rig) -> None:
    """An old set-point must not reach the vehicle when everything is back."""
    from petalbus.petals.proxies.mavlink import outgoing

    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    queue = proxy._outgoing
    queue.put(b"old")
    queue._waiting[0] = (time.monotonic() - outgoing.MAX_AGE_S - 0.1, b"old")
    proxy.send("mav", text(1))
    await peer.until(lambda: texts(peer) == ["1"])
    assert queue.refused == 1


async def test_the_queue_is_bounded(vehicle: Rig) -> None:
    await vehicle.scripted()
    proxy = await vehicle.proxy()
    for number in range(1200):
        proxy.send("mav", text(number))
    assert proxy.statistics()["outgoing"]["refused"] == 200
    await until(lambda: proxy.statistics()["outgoing"]["sent"] == 1000, "the rest left")


async def test_send_and_wait_is_listening_before_the_question_leaves(vehicle: Rig, children: Children) -> None:
    """The simulated vehicle sends what is asked for before it acknowledges."""
    await vehicle.sim(children)
    proxy = await vehicle.proxy()
    got: list[Any] = []

    def collector(message: Any) -> bool:
        got.append(message)
        return bool(message.capabilities)

    for request in (proxy.build_req_msg_long(148), proxy.build_req_msg_long("148")):
        await proxy.send_and_wait(match_key="148", request_msg=request, collector=collector, timeout=5.0)
    assert [message.get_type() for message in got] == ["AUTOPILOT_VERSION"] * 2
    clock: list[int] = []

    def take(message: Any) -> bool:
        clock.append(message.time_unix_usec)
        return True

    await proxy.send_and_wait(
        match_key="SYSTEM_TIME",
        request_msg=proxy.build_request_message_command(),
        collector=take,
        timeout=5.0,
    )
    assert abs(clock[0] / 1e6 - time.time()) < 5.0


async def test_send_and_wait_ends_by_time_by_event_and_despite_a_failing_collector(vehicle: Rig) -> None:
    peer = await vehicle.scripted()
    proxy = await vehicle.proxy()
    question = proxy.build_req_msg_long(148)
    with pytest.raises(TimeoutError, match="148"):
        await proxy.send_and_wait(match_key="148", request_msg=question, collector=bool, timeout=0.2)
    stop = threading.Event()
    waiting = asyncio.create_task(
        proxy.send_and_wait(match_key="148", request_msg=question, collector=bool, timeout=20.0, cancel_event=stop)
    )
    await peer.until(lambda: len(peer.commands(512)) == 2)
    stop.set()
    await asyncio.wait_for(waiting, 2.0)
    calls: list[int] = []

    def failing(_message: Any) -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not this one")
        return True

    waiting = asyncio.create_task(
        proxy.send_and_wait(match_key="ATTITUDE", request_msg=question, collector=failing, timeout=5.0)
    )
    await peer.until(lambda: len(peer.commands(512)) == 3)
    for roll in (1.0, 2.0):
        peer.send(mavlink.MAVLink_attitude_message(1, roll, 0.0, 0.0, 0.0, 0.0, 0.0))
    await waiting
    assert len(calls) == 2
    assert proxy.statistics()["handlers"] == [], "nobody is left behind"


async def test_from_the_loop_of_a_heavy_handler(vehicle: Rig, children: Children) -> None:
    """cpu_heavy: a proxy awaited on another loop behaves as at home."""
    await vehicle.sim(children)
    proxy = await vehicle.proxy()
    name = await asyncio.to_thread(lambda: asyncio.run(proxy.get_param("MAV_TYPE")))
    assert name["value"] == 2


async def test_not_connected_is_a_runtime_error(server: RealServer, bus_name: str) -> None:
    """S-037."""
    async with rig(server, bus_name) as vehicle:
        proxy = await vehicle.proxy(ready=False)
        assert not await proxy.wait_until_ready(0.3)
        assert not proxy.connected
        for call in (
            proxy.reboot_autopilot(),
            proxy.reboot_autopilot_confirmed(),
            proxy.get_param("MAV_TYPE"),
            proxy.get_all_params(),
            proxy.set_params_bulk_lossy({"MAV_TYPE": 1}),
            proxy.get_params_bulk_lossy(["MAV_TYPE"]),
            proxy.get_params_bulk_lossy([]),
            proxy.send_heartbeat(),
            proxy.send_and_wait(match_key="1", request_msg=None, collector=bool),
        ):
            with pytest.raises(RuntimeError, match=r"^MAVLink connection not established$"):
                await call
        with pytest.raises(RuntimeError, match=r"^MAVLink connection not established$"):
            proxy.build_reboot_command()
        assert (await proxy.format_sd_card()).status_code == "FAIL_NOT_CONNECTED"
        assert (await proxy.health_check())["status"] == "unhealthy"


async def test_ready_while_the_vehicle_is_heard(
    vehicle: Rig, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petalbus.petals.proxies.mavlink import link

    monkeypatch.setattr(link, "LOST_AFTER_S", 4.5)
    sim = await vehicle.sim(children)
    proxy = await vehicle.proxy()
    health = await proxy.health_check()
    assert health["status"] == "healthy"
    assert health["px4_heartbeat"]["seconds_since_last"] < 5.0
    sim.freeze()
    began = time.monotonic()
    await until(lambda: not proxy.is_ready, "silence is noticed", seconds=8.0)
    assert time.monotonic() - began > 2.0
    sim.thaw()
    assert await proxy.wait_until_ready(5.0)


async def test_a_handler_that_ends_says_so(server: RealServer, bus_name: str) -> None:
    async with rig(server, bus_name) as vehicle:
        await vehicle.scripted()
        proxy = MavLinkExternalProxy(url=server.url, bus=bus_name)
        await proxy.start()
        assert await proxy.wait_until_ready(5.0)
    await until(lambda: not proxy.is_ready, "the vehicle is gone", seconds=3.0)
    await proxy.stop()


async def test_a_bus_that_comes_later(own_server: RealServer, bus_name: str) -> None:
    own_server.kill()
    proxy = MavLinkExternalProxy(url=own_server.url, bus=bus_name)
    await proxy.start()
    assert not await proxy.wait_until_ready(0.3)
    own_server.start()
    async with rig(own_server, bus_name) as vehicle:
        await vehicle.scripted()
        assert await proxy.wait_until_ready(10.0), proxy.reason
        heard = Heard()
        proxy.register_handler("HEARTBEAT", heard)
        await proxy._frames_open()
        own_server.kill()
        own_server.start()
        peer = await vehicle.scripted()
        await until(lambda: peer.heartbeat() or heard.messages, "frames come again", seconds=15.0)
        await proxy.stop()


async def test_a_raw_command_casts_doubt_on_an_answer_of_its_kind(vehicle: Rig) -> None:
    """A petal's own arm command is acknowledged like ours: then the heartbeat must confirm an arm order."""
    from petalbus import ReplyError

    def answer(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG":
            peer.ack(message.command)

    peer = await vehicle.scripted(answer, autopilot=ARDUPILOT)
    proxy = await vehicle.proxy()
    proxy.master.mav.command_long_send(1, 1, ARM_DISARM, 0, 0, 0, 0, 0, 0, 0, 0)
    await peer.until(lambda: peer.commands(ARM_DISARM))
    bus: Bus = await proxy._own_bus()
    with pytest.raises(ReplyError, match="did not report to be armed"):
        await bus.request("vehicle", "command", {"command": "arm"})


async def test_the_import_path_and_the_constructor(server: RealServer) -> None:
    """S-034: the constructor's documented signature; `make` for the daemon and for a petal's process."""
    proxy = MavLinkExternalProxy("udp:127.0.0.1:14551", 57600, 2, 140, 50, 1.0, 5.0, "fs/microsd/log")
    assert isinstance(proxy, ExternalProxy)
    assert (proxy.endpoint, proxy.baud, proxy.root_sd_path) == ("udp:127.0.0.1:14551", 57600, "fs/microsd/log")

    settings = SimpleNamespace(mavlink_source_system=9)
    context = ProxyContext(url=server.url, bus="petalbus", app="daemon", data=Path(), settings=settings)
    assert make(context).source_system_id == 9
