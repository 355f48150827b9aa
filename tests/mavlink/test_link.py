"""Links over real UDP sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import Peer
from petalbus.handlers.mavlink.errors import EndpointError, LinkError
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.wire.endpoint import Endpoint
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.heartbeat import beat
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.routes import SILENT_S


class Sink:
    """Keeps frames and when they came."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.batches: list[tuple[int, int]] = []
        self._news = asyncio.Event()

    def __call__(self, frames: Sequence[Frame], mono_ns: int) -> None:
        self.frames += frames
        self.batches.append((len(frames), mono_ns))
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.frames) < count:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def open_link(endpoint: str = "udpin:127.0.0.1:0", **settings: Any) -> AsyncIterator[tuple[Link, Sink]]:
    sink = Sink()
    async with Link(endpoint, on_frames=sink, **settings) as link:
        yield link, sink


def local(link: Link) -> tuple[str, int]:
    address: tuple[str, int] = link.transport.local  # type: ignore[attr-defined]
    return address


@pytest.mark.parametrize(
    ("text", "kind", "host", "port", "written"),
    [
        ("udp:0.0.0.0:14550", "udpin", "0.0.0.0", 14550, "udpin:0.0.0.0:14550"),
        ("udpin:localhost:14551", "udpin", "localhost", 14551, "udpin:localhost:14551"),
        ("udpout:192.168.1.2:14550", "udpout", "192.168.1.2", 14550, "udpout:192.168.1.2:14550"),
        ("udpin:[::1]:14550", "udpin", "::1", 14550, "udpin:[::1]:14550"),
    ],
)
def test_endpoints_as_pymavlink_writes_them(text: str, kind: str, host: str, port: int, written: str) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.kind, endpoint.host, endpoint.port) == (kind, host, port)
    assert str(endpoint) == written


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no known kind"),
        ("14550", "no known kind"),
        ("can:/dev/ttyS0:57600", "udpin:HOST:PORT"),
        ("udp:14550", "host or port is missing"),
        ("udpout:host:", "not a number"),
        ("udpout:host:0", "1 to 65535"),
        ("udpin:host:70000", "1 to 65535"),
        ("udpin:host:-1", "1 to 65535"),
    ],
)
def test_wrong_endpoints_say_what_is_right(text: str, says: str) -> None:
    with pytest.raises(EndpointError, match=says):
        Endpoint.parse(text)


async def test_a_listening_link_answers_the_peer_it_heard_and_nobody_before() -> None:
    async with open_link() as (link, sink), Peer(remote=local(link)) as peer:
        assert link.send(link.dialect.message("HEARTBEAT")) == 0
        peer.heartbeat()
        await sink.until(1)
        assert link.send(link.dialect.message("HEARTBEAT", type=6)) == 1
        await peer.until(lambda: peer.of("HEARTBEAT"))
        assert peer.of("HEARTBEAT")[0].get_srcComponent() == 140


async def test_an_address_that_sends_no_mavlink_gets_nothing() -> None:
    async with open_link() as (link, sink), Peer(remote=local(link)) as noisy, Peer(remote=local(link)) as good:
        noisy.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
        good.heartbeat()
        await sink.until(1)
        assert link.peers == [good.address]


async def test_a_message_to_a_system_goes_where_that_system_is_heard() -> None:
    """As after a reboot with another port: once the old one is silent the new one is the way."""
    async with (
        open_link() as (link, sink),
        Peer(remote=local(link), system=1) as old,
        Peer(remote=local(link), system=7) as other,
    ):
        old.heartbeat()
        other.heartbeat()
        await sink.until(2)
        message = link.dialect.message("COMMAND_LONG", target_system=7, command=400)
        assert link.send(message, system=7) == 1
        await other.until(other.commands)
        async with Peer(remote=local(link), system=1) as restarted:
            await asyncio.sleep(SILENT_S + 0.1)
            restarted.heartbeat()
            await sink.until(3)
            assert link.send(message, system=1) == 1
            await restarted.until(restarted.commands)
            assert not old.commands()
        assert link.send(link.dialect.message("HEARTBEAT")) == 3, "what has no target goes to everybody"


async def test_a_sending_link_speaks_first_and_hears_only_that_host() -> None:
    async with Peer() as peer, open_link(f"udpout:127.0.0.1:{peer.address[1]}") as (link, sink):
        assert link.send(link.dialect.message("HEARTBEAT")) == 1
        await peer.until(lambda: peer.heard)
        peer.heartbeat()
        await sink.until(1)
        assert sink.frames[0].msgid == 0


async def test_nobody_listening_is_no_error() -> None:
    """A vehicle that reboots closes its port: the link must live on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    async with open_link(f"udpout:127.0.0.1:{port}") as (link, _sink):
        for _ in range(5):
            link.send(link.dialect.message("HEARTBEAT"))
            await asyncio.sleep(0.01)
        assert link.statistics()["sent"] == 5


async def test_a_port_in_use_is_said_clearly() -> None:
    async with open_link() as (link, _sink):
        taken = f"udpin:127.0.0.1:{local(link)[1]}"
        with pytest.raises(LinkError, match="is another ground station"):
            async with open_link(taken):
                pass
    with pytest.raises(LinkError, match="cannot be resolved"):
        async with open_link("udpout:no.such.host.invalid:1"):
            pass


async def test_two_thousand_messages_in_a_burst_arrive_in_few_batches() -> None:
    """The link drains, then rests 5 ms: a busy link wakes the process at most 200 times a second."""
    async with open_link() as (link, sink), Peer(remote=local(link)) as peer:
        message = mavlink.MAVLink_attitude_message(1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        began = time.monotonic()
        for index in range(2000):
            peer.send(message)
            if index % 20 == 19:
                await asyncio.sleep(0.001)
        await sink.until(2000)
        took = time.monotonic() - began
        counters = link.statistics()["received"]
        assert counters["frames"] == 2000
        assert counters["lost"] == counters["crc_errors"] == 0
        assert len(sink.batches) <= took / 0.005 + 2


async def test_the_boot_clock_is_stamped() -> None:
    async with open_link() as (link, sink), Peer(remote=local(link)) as peer:
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        peer.heartbeat()
        await sink.until(1)
        assert before <= sink.batches[0][1] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def test_a_frame_cut_off_for_good_is_given_up_by_itself() -> None:
    """What lies behind a damaged length must come out although nothing follows."""
    async with open_link() as (link, sink), Peer(remote=local(link)) as peer:
        frame = mavlink.MAVLink_attitude_message(1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0).pack(peer.mav)
        peer.send_bytes(b"\xfd\xff\x00" + frame + b"\xfd\xff")
        await sink.until(1)
        assert sink.frames[0].raw == bytes(frame)


async def test_more_peers_than_there_is_room_for_are_refused_and_the_known_ones_kept() -> None:
    async with open_link() as (link, sink), Peer(remote=local(link)) as first:
        first.heartbeat()
        await sink.until(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            frame = mavlink.MAVLink_heartbeat_message(2, 12, 0, 0, 0, 3).pack(first.mav)
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(30)]
            try:
                for each in sockets:
                    each.sendto(frame, local(link))
                await sink.until(16)
                first.heartbeat()
                await sink.until(17)
            finally:
                for each in sockets:
                    each.close()
            assert probe.fileno() >= 0
        assert len(link.peers) == 16
        assert first.address in link.peers
        assert link.statistics()["refused_peers"] == 15


async def test_the_heartbeat_is_a_ground_stations_five_times_a_second() -> None:
    async with open_link() as (link, sink), Peer(remote=local(link)) as peer:
        peer.heartbeat()
        await sink.until(1)
        task = asyncio.create_task(beat(link), name="test.beat")
        began = time.monotonic()
        await peer.until(lambda: len(peer.of("HEARTBEAT")) >= 6)
        took = time.monotonic() - began
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        message = peer.of("HEARTBEAT")[0]
        assert (message.type, message.autopilot, message.system_status) == (6, 8, 4)
        assert (message.get_srcSystem(), message.get_srcComponent()) == (2, 140)
        assert 0.8 < took < 2.0


@pytest.fixture
def move_wall_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves time.time() by an offset."""
    real = time.time

    def move(offset: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + offset)

    return move


async def test_i9_a_step_of_the_wall_clock_changes_nothing(
    connected: Callable[..., Any], move_wall_clock: Callable[[float], None]
) -> None:
    station, peer = await connected()
    for years in (10, -10):
        move_wall_clock(years * 365.25 * 86400)
        assert station.vehicle.connected
        peer.heartbeat()
        assert station.link.send(station.link.dialect.message("HEARTBEAT"), system=1) == 1


async def test_a_fault_of_who_gets_the_frames_does_not_end_the_reading(open_peer: Callable[..., Any]) -> None:
    """I8: whatever goes wrong further up, the link goes on being read."""
    heard: list[int] = []

    def fail_first(frames: Sequence[Frame], _mono: int) -> None:
        heard.append(len(frames))
        if len(heard) < 3:
            raise KeyError("a fault")

    async with Link("udpin:127.0.0.1:0", on_frames=fail_first) as link:
        peer: Peer = await open_peer(remote=local(link))
        async with asyncio.timeout(10):
            while len(heard) < 6:
                peer.heartbeat()
                await asyncio.sleep(0.03)


async def test_a_flood_of_what_is_no_frame_holds_the_loop_up_for_moments_only(open_peer: Callable[..., Any]) -> None:
    """Looking for frames in garbage is slow; it is done in pieces, and who sends it is no peer."""
    async with open_link() as (link, sink):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as enemy:
            enemy.connect(local(link))
            for _ in range(60):
                enemy.send(b"\xfe" * 60_000)
            longest = 0.0
            end = time.monotonic() + 1.5
            while (before := time.monotonic()) < end:
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)
        peer: Peer = await open_peer(remote=local(link))
        async with asyncio.timeout(20):
            while not sink.frames:
                peer.heartbeat()
                await asyncio.sleep(0.05)
        assert longest < 0.5
        assert link.peers == [peer.address]


async def test_a_message_that_the_dialect_lacks_is_no_fault(open_station: Callable[..., Any]) -> None:
    """A small dialect, and a vehicle that says more than that."""
    vehicle_frames: list[Frame] = []
    async with Link(
        "udpin:127.0.0.1:0", on_frames=lambda frames, _mono: vehicle_frames.extend(frames), dialect="minimal"
    ) as link:
        vehicle = Vehicle(lambda *_: 1, dialect=link.dialect)
        async with Peer(remote=local(link)) as peer:
            peer.heartbeat()
            peer.send(mavlink.MAVLink_extended_sys_state_message(0, 2))
            async with asyncio.timeout(10):
                while len(vehicle_frames) < 2:
                    await asyncio.sleep(0.01)
        vehicle.on_frames(vehicle_frames)
        assert vehicle.connected
