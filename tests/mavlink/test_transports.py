"""TCP, serial ports (pseudo terminals) and several wires at once, over the real thing."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import Peer
from petalbus.handlers.mavlink.errors import EndpointError, LinkError
from petalbus.handlers.mavlink.sim.failures import Failures, FaultyTransport
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.endpoint import Endpoint, parse_endpoints
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.many import ManyTransports
from petalbus.handlers.mavlink.wire.transport import Address, open_transport

PATIENCE_S = 20.0


async def until(condition: Callable[[], Any], what: str) -> None:
    """Poll until the condition holds; ``what`` is told when it never does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not after {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.01)


class Sink:
    """Keeps the frames of a link, and how many came at once."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.batches: list[int] = []

    def __call__(self, frames: Sequence[Frame], mono_ns: int) -> None:
        self.frames += frames
        self.batches.append(len(frames))


@asynccontextmanager
async def open_link(endpoint: Any, **settings: Any) -> AsyncIterator[tuple[Link, Sink]]:
    sink = Sink()
    async with Link(endpoint, on_frames=sink, **settings) as link:
        yield link, sink


def wire(link: Link, number: int = 0) -> dict[str, Any]:
    """What the link says of one of its wires."""
    entry: dict[str, Any] = link.statistics()["wires"][number]
    return entry


def port_of(link: Link) -> int:
    port: int = link.transport.local[1]  # type: ignore[attr-defined]
    return port


def frame_of(system: int = 1, *, seq: int = 0) -> bytes:
    mav = mavlink.MAVLink(None, srcSystem=system, srcComponent=1)
    mav.seq = seq
    return bytes(mavlink.MAVLink_heartbeat_message(2, 12, 1, 0, 3, 3).pack(mav))


def heartbeat(link: Link) -> Any:
    return link.dialect.message("HEARTBEAT", type=6, system_status=4)


class Station:
    """pymavlink's own parser and packer at one end of a stream."""

    def __init__(self, system: int = 1) -> None:
        self.mav = mavlink.MAVLink(None, srcSystem=system, srcComponent=1)
        self.mav.robust_parsing = True
        self.heard: list[Any] = []

    def take(self, data: bytes) -> None:
        self.heard += [each for each in self.mav.parse_buffer(data) or () if each.get_type() != "BAD_DATA"]


# Endpoints


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("tcp:192.168.1.2:5760", "tcp:192.168.1.2:5760"),
        ("tcp:[::1]:5760", "tcp:[::1]:5760"),
        ("tcpin:0.0.0.0:5760", "tcpin:0.0.0.0:5760"),
        ("udpbcast:192.168.1.255:14550", "udpbcast:192.168.1.255:14550"),
        ("serial:/dev/ttyACM0:921600", "serial:/dev/ttyACM0:921600"),
        ("serial:/dev/ttyACM0", "serial:/dev/ttyACM0:57600"),
        ("/dev/ttyACM0", "serial:/dev/ttyACM0:57600"),
        ("/dev/ttyACM0,921600", "serial:/dev/ttyACM0:921600"),
        ("/dev/ttyUSB0:57600", "serial:/dev/ttyUSB0:57600"),
        ("/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0,115200", None),
    ],
)
def test_endpoints_of_every_kind(text: str, written: str | None) -> None:
    endpoint = Endpoint.parse(text)
    assert str(endpoint) == (written or "serial:/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0:115200")
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serial:ttyACM0:57600", "does not begin with /"),
        ("serial:", "does not begin with /"),
        ("/dev/ttyACM0:5760", "there are 1200,.* 57600,.* 921600"),
        ("/dev/ttyACM0:fast", "no baud rate"),
        ("/dev/ttyACM0,", "no baud rate"),
        ("tcp:host:0", "1 to 65535"),
        ("tcp:host", "host or port is missing"),
        ("can0:host:1", "tcpin:HOST:PORT .* serial:/dev/NAME:BAUD"),
    ],
)
def test_wrong_endpoints_say_what_is_right(text: str, says: str) -> None:
    with pytest.raises(EndpointError, match=says):
        Endpoint.parse(text)


def test_several_endpoints_stand_with_commas_between_them() -> None:
    texts = [str(each) for each in parse_endpoints("udpin:0.0.0.0:14550, /dev/ttyACM0,921600,tcp:sitl:5760")]
    assert texts == ["udpin:0.0.0.0:14550", "serial:/dev/ttyACM0:921600", "tcp:sitl:5760"]
    with pytest.raises(EndpointError, match="twice"):
        parse_endpoints("/dev/ttyACM0,921600,/dev/ttyACM0:57600")
    with pytest.raises(EndpointError, match="no known kind"):
        parse_endpoints("udp:0.0.0.0:14550,")


# TCP


@asynccontextmanager
async def listening(port: int = 0) -> AsyncIterator[tuple[int, list[socket.socket]]]:
    """A server made of plain sockets: the port, and who connected."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen(64)
    server.setblocking(False)
    clients: list[socket.socket] = []
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        while True:
            client, _ = await loop.sock_accept(server)
            clients.append(client)

    task = asyncio.create_task(accept())
    try:
        yield server.getsockname()[1], clients
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for each in (server, *clients):
            each.close()


async def receive(sock: socket.socket, station: Station, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(station.heard) < count:
            data = await asyncio.get_running_loop().sock_recv(sock, 65536)
            assert data, "the other end closed it"
            station.take(data)


async def test_tcp_speaks_first_and_hears() -> None:
    async with listening() as (port, clients), open_link(f"tcp:127.0.0.1:{port}") as (link, sink):
        await until(lambda: link.send(heartbeat(link)) == 1, "it is connected")
        await until(lambda: clients, "the server has it")
        station = Station()
        await receive(clients[0], station, 1)
        assert station.heard[0].get_srcComponent() == 140
        clients[0].sendall(frame_of())
        await until(lambda: sink.frames, "a frame came")
        assert clients[0].getpeername() == link.peers[0][:2] or link.peers[0][-1] == 1
        assert wire(link)["state"] == "open"


async def test_tcp_waits_for_a_vehicle_that_is_not_there_yet_and_connects_again() -> None:
    async with AsyncExitStack() as stack:
        async with listening() as (port, _):
            pass
        link, sink = await stack.enter_async_context(open_link(f"tcp:127.0.0.1:{port}"))
        await until(lambda: "refused" in wire(link)["state"], "it says why nobody is there")
        assert link.send(heartbeat(link)) == 0
        for turn in range(1, 4):
            async with listening(port) as (_, clients):
                await until(lambda: clients, "it connected")
                clients[0].sendall(frame_of(seq=turn) + frame_of(seq=turn)[:10])
                await until(lambda: len(sink.frames) == turn, "the frame came")  # noqa: B023  # used at once
            await until(lambda: not link.peers, "it noticed the end")
            assert link.send(heartbeat(link)) == 0
        received = link.statistics()["received"]
        assert wire(link)["connections"] == 3
        assert received["frames"] == 3, "what is known of closed connections stays counted"
        assert received["bytes"] == 3 * (len(frame_of()) + 10), "and half a frame of one does not begin the next"


async def test_tcp_that_is_closed_again_and_again_is_asked_less_and_less_often() -> None:
    async with listening() as (port, clients), open_link(f"tcp:127.0.0.1:{port}") as (link, _):
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            while clients:
                clients.pop().close()
            await asyncio.sleep(0.01)
        assert 2 <= wire(link)["connections"] <= 3, "at 0 s, 0.5 s and 1.5 s"


async def test_tcp_with_an_unknown_host_keeps_trying_and_says_so() -> None:
    async with open_link("tcp:no.such.host.invalid:5760") as (link, _):
        await until(lambda: "not there" in wire(link)["state"], "it is told")
        assert link.send(heartbeat(link)) == 0


async def test_what_a_slow_reader_does_not_take_is_dropped_whole_and_counted() -> None:
    async with listening() as (port, clients), open_link(f"tcp:127.0.0.1:{port}") as (link, _):
        await until(lambda: clients, "it is connected")
        payload = bytes([7]) * 253
        sent = 0
        began = time.monotonic()
        while wire(link)["dropped"] < 50:
            sent += link.send_payload(mavlink.MAVLINK_MSG_ID_ENCAPSULATED_DATA, payload)
            assert sent < 100_000
        assert time.monotonic() - began < PATIENCE_S, "nothing waited"
        assert wire(link)["waiting_bytes"] <= 64 * 1024
        assert link.statistics()["unsent"] == 50
        station = Station()
        await receive(clients[0], station, sent)
        assert len(station.heard) == sent
        assert link.send_payload(mavlink.MAVLINK_MSG_ID_ENCAPSULATED_DATA, payload) == 1


async def test_a_tcp_server_serves_many_and_routes() -> None:
    async with AsyncExitStack() as stack:
        server, sink = await stack.enter_async_context(open_link("tcpin:127.0.0.1:0"))
        port = port_of(server)
        assert server.send(heartbeat(server)) == 0
        clients = [
            (await stack.enter_async_context(open_link(f"tcp:127.0.0.1:{port}", system=system)))
            for system in (11, 12, 13)
        ]
        await until(lambda: wire(server)["clients"] == 3, "all are connected")
        assert server.send(heartbeat(server)) == 3, "who only listens gets everything, too"
        for link, _ in clients:
            await until(lambda link=link: link.send(heartbeat(link)), "it is connected")  # type: ignore[misc]
        await until(lambda: len(sink.frames) == 3, "all were heard")
        command = server.dialect.message("COMMAND_LONG", target_system=12, command=400)
        assert server.send(command, system=12) == 1
        await until(lambda: len(clients[1][1].frames) == 2, "the command came")
        assert [len(each.frames) for _, each in clients] == [1, 2, 1]
        await clients[1][0].transport.close()
        await until(lambda: wire(server)["clients"] == 2, "one left")
        assert server.send(command, system=12) == 2, "its route is gone with it"


async def test_a_client_that_does_not_read_is_dropped_and_the_others_are_not() -> None:
    async with AsyncExitStack() as stack:
        server, _ = await stack.enter_async_context(open_link("tcpin:127.0.0.1:0"))
        good, got = await stack.enter_async_context(open_link(f"tcp:127.0.0.1:{port_of(server)}"))
        with socket.create_connection(("127.0.0.1", port_of(server))):
            await until(lambda: wire(server)["clients"] == 2, "both are connected")
            sent = 0
            async with asyncio.timeout(PATIENCE_S):
                while wire(server)["clients"] == 2:
                    for _ in range(50):
                        server.send_payload(mavlink.MAVLINK_MSG_ID_ENCAPSULATED_DATA, bytes([7]) * 253)
                        sent += 1
                    await until(lambda: len(got.frames) == sent, "the good one has it")  # noqa: B023  # at once
        assert wire(good)["state"] == "open"
        assert wire(server)["dropped"] > 0


async def test_the_seventeenth_client_is_turned_away_and_sixteen_reconnects_harm_nobody() -> None:
    async with open_link("tcpin:127.0.0.1:0") as (server, sink), AsyncExitStack() as stack:
        place = ("127.0.0.1", port_of(server))
        for turn in range(20):
            with socket.create_connection(place) as client:
                client.sendall(frame_of(seq=turn))
                await until(lambda: len(sink.frames) == turn + 1, "each is heard")  # noqa: B023  # used at once
        await until(lambda: not wire(server)["clients"], "all are gone")
        assert server.statistics()["refused_peers"] == 0
        clients = [stack.enter_context(socket.create_connection(place)) for _ in range(17)]
        await until(lambda: wire(server)["refused"] == 1, "one was too many")
        assert wire(server)["clients"] == 16
        clients[16].settimeout(PATIENCE_S)
        assert clients[16].recv(1) == b""


async def test_a_tcp_port_in_use_is_said_clearly() -> None:
    async with open_link("tcpin:127.0.0.1:0") as (server, _):
        with pytest.raises(LinkError, match="another program"):
            async with open_link(f"tcpin:127.0.0.1:{port_of(server)}"):
                pass


async def test_a_busy_tcp_wakes_the_process_at_most_two_hundred_times_a_second() -> None:
    async with open_link("tcpin:127.0.0.1:0") as (server, sink):
        with socket.create_connection(("127.0.0.1", port_of(server))) as client:
            began = time.monotonic()
            for index in range(2000):
                client.sendall(frame_of(seq=index % 256))
                if index % 20 == 19:
                    await asyncio.sleep(0.001)
            await until(lambda: len(sink.frames) == 2000, "all came")
            took = time.monotonic() - began
        assert len(sink.batches) <= took / 0.005 + 2
        assert server.statistics()["received"]["lost"] == 0


async def test_a_connection_may_stand_still_in_the_middle_of_a_frame() -> None:
    """As after a lost packet; UDP would give up the frame."""
    async with open_link("tcpin:127.0.0.1:0") as (server, sink):
        with socket.create_connection(("127.0.0.1", port_of(server))) as client:
            client.sendall(frame_of()[:8])
            await asyncio.sleep(0.5)
            client.sendall(frame_of()[8:])
            await until(lambda: sink.frames, "it came")
            assert server.statistics()["received"]["crc_errors"] == 0


async def test_a_frame_cut_anywhere_comes_out_whole() -> None:
    async with open_link("tcpin:127.0.0.1:0", rest=0.0) as (server, sink):
        with socket.create_connection(("127.0.0.1", port_of(server))) as client:
            data = frame_of(seq=0) + frame_of(seq=1) + frame_of(seq=2)
            for start in range(0, len(data), 7):
                client.sendall(data[start : start + 7])
                await asyncio.sleep(0.002)
            await until(lambda: len(sink.frames) == 3, "all came")


# Broadcast


async def datagram(sock: socket.socket) -> tuple[bytes, Any]:
    """The next one, on either event loop."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(BlockingIOError):
                return sock.recvfrom(2048)
            await asyncio.sleep(0.01)


async def test_a_broadcast_goes_to_all_and_an_order_to_one() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as vehicle:
        vehicle.bind(("127.255.255.255", 0))
        vehicle.setblocking(False)
        port = vehicle.getsockname()[1]
        async with open_link(f"udpbcast:127.255.255.255:{port}") as (link, sink), Peer(system=5) as other:
            assert link.send(heartbeat(link)) == 1
            _, address = await datagram(vehicle)
            other.remote = ("127.0.0.1", address[1])
            other.heartbeat()
            await until(lambda: sink.frames, "it answered")
            assert link.send(link.dialect.message("COMMAND_LONG", target_system=5), system=5) == 1
            await other.until(other.commands)
            assert link.send(heartbeat(link)) == 1
            data, _ = await datagram(vehicle)
            assert Frame.from_raw(data).msgid == 0


# Serial ports


class Cable:
    """A pseudo terminal: ``path`` is the serial port, and here is the vehicle's end of it."""

    def __init__(self) -> None:
        self.end, port = pty.openpty()
        self.path = os.ttyname(port)
        os.close(port)
        os.set_blocking(self.end, False)
        self.station = Station()

    def write(self, data: bytes) -> None:
        assert os.write(self.end, data) == len(data)

    def read(self) -> list[Any]:
        """All that was heard so far."""
        with suppress(BlockingIOError):
            while True:
                try:
                    self.station.take(os.read(self.end, 4096))
                except OSError as error:
                    if error.errno != errno.EIO:  # nobody has the other end open
                        raise
                    break
        return self.station.heard

    def cut(self) -> None:
        if self.end >= 0:
            os.close(self.end)
            self.end = -1


@pytest.fixture
def make_cable() -> Iterator[Callable[[], Cable]]:
    cables: list[Cable] = []

    def make() -> Cable:
        cables.append(Cable())
        return cables[-1]

    yield make
    for each in cables:
        each.cut()


async def test_a_serial_port_carries_frames_both_ways(make_cable: Callable[[], Cable]) -> None:
    cable = make_cable()
    async with open_link(f"serial:{cable.path}:115200") as (link, sink):
        await until(lambda: link.send(heartbeat(link)) == 1, "it is open")
        await until(cable.read, "the vehicle hears us before it spoke")
        for index in range(50):
            cable.write(frame_of(seq=index))
        await until(lambda: len(sink.frames) == 50, "all came")
        assert link.statistics()["received"]["crc_errors"] == 0
        assert wire(link)["state"] == "open"
    assert link.transport.describe()[0]["state"] == "closed"


async def test_every_byte_passes_a_serial_port_unchanged(make_cable: Callable[[], Cable]) -> None:
    """A terminal would swallow or translate some: CR, XON, XOFF, interrupt, end of file."""
    cable = make_cable()
    payload = bytes(range(1, 254))
    async with open_link(f"{cable.path},921600") as (link, sink):
        await until(lambda: wire(link)["state"] == "open", "it is open")
        assert link.send_payload(mavlink.MAVLINK_MSG_ID_ENCAPSULATED_DATA, payload) == 1
        await until(cable.read, "it came")
        assert bytes(cable.read()[0].get_msgbuf())[10:-2] == payload
        cable.write(bytes(cable.read()[0].get_msgbuf()))
        await until(lambda: sink.frames, "it came back")
        assert sink.frames[0].payload == payload


async def test_a_serial_port_that_vanishes_is_opened_again_when_it_is_back(
    make_cable: Callable[[], Cable], tmp_path: Path
) -> None:
    """As udev does it: the name is a link to whatever the device is called this time."""
    name = tmp_path / "autopilot"
    async with open_link(f"serial:{name}:57600") as (link, sink):
        await until(lambda: "not there" in wire(link)["state"], "there is nothing yet")
        for turn in range(1, 3):
            cable = make_cable()
            name.symlink_to(cable.path)
            await until(lambda: wire(link)["state"] == "open", "it was found")
            cable.write(frame_of(seq=turn) + b"\xfd\xff")
            await until(lambda: len(sink.frames) == turn, "the frame came")  # noqa: B023  # used at once
            assert link.send(heartbeat(link), system=1) == 1
            await until(cable.read, "it is heard")
            name.unlink()
            cable.cut()
            await until(lambda: "lost" in wire(link)["state"], "its end was noticed")
            assert link.send(heartbeat(link), system=1) == 0
            assert not link.peers
        assert wire(link)["connections"] == 2


async def test_a_serial_port_is_ours_alone(make_cable: Callable[[], Cable]) -> None:
    cable = make_cable()
    async with open_link(f"{cable.path},57600") as (first, _):
        await until(lambda: wire(first)["state"] == "open", "it is open")
        async with open_link(f"{cable.path},57600") as (second, _):
            await until(lambda: "another program uses it" in wire(second)["state"], "it is told why not")
    async with open_link(f"{cable.path},57600") as (third, _):
        await until(lambda: wire(third)["state"] == "open", "it is free again")


async def test_a_serial_port_that_takes_nothing_keeps_a_second_of_frames_and_cuts_none(
    make_cable: Callable[[], Cable],
) -> None:
    cable = make_cable()
    async with open_link(f"{cable.path},57600") as (link, _):
        await until(lambda: wire(link)["state"] == "open", "it is open")
        sent = 0
        while wire(link)["dropped"] < 20:
            sent += link.send_payload(mavlink.MAVLINK_MSG_ID_ENCAPSULATED_DATA, bytes([7]) * 253)
            assert sent < 10_000
        assert 0 < wire(link)["waiting_bytes"] <= 5760
        await until(lambda: len(cable.read()) == sent, "every frame that was taken came, whole")
        assert link.send(heartbeat(link)) == 1


async def test_what_is_no_serial_port_is_said(tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.write_bytes(b"")
    async with open_link(f"serial:{plain}:57600") as (link, _):
        await until(lambda: "not there" in wire(link)["state"], "it is told")


async def test_closing_while_a_port_opens_leaves_nothing_open(make_cable: Callable[[], Cable]) -> None:
    cable = make_cable()
    for _ in range(10):
        async with open_link(f"{cable.path},57600"):
            await asyncio.sleep(0)

    def holders() -> int:
        found = 0
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found += str(each.readlink()) == cable.path
        return found

    await until(lambda: holders() == 0, "no descriptor is left")


# The simulated vehicle


@asynccontextmanager
async def flying(endpoint: str) -> AsyncIterator[None]:
    async with SimVehicle(SimOptions(endpoint=endpoint)) as sim:
        task = asyncio.create_task(sim.fly())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def ask_the_vehicle(endpoint: str) -> None:
    async with open_link(endpoint) as (link, sink):
        await until(lambda: any(frame.sysid == 1 for frame in sink.frames), "a vehicle is there")
        version = mavlink.MAVLINK_MSG_ID_AUTOPILOT_VERSION
        request = mavlink.MAV_CMD_REQUEST_MESSAGE
        link.send(link.dialect.message("COMMAND_LONG", target_system=1, command=request, param1=version), system=1)
        await until(lambda: any(frame.msgid == version for frame in sink.frames), "it answers")
        received = link.statistics()["received"]
        assert received["crc_errors"] == received["lost"] == received["skipped_bytes"] == 0


async def test_a_vehicle_over_tcp_whichever_side_connects() -> None:
    async with listening() as (port, _):
        pass
    async with flying(f"tcpin:127.0.0.1:{port}"):
        await ask_the_vehicle(f"tcp:127.0.0.1:{port}")
    async with flying(f"tcp:127.0.0.1:{port}"):
        await ask_the_vehicle(f"tcpin:127.0.0.1:{port}")


async def test_a_vehicle_over_a_serial_cable(make_cable: Callable[[], Cable]) -> None:
    ours, its = make_cable(), make_cable()

    async def carry(source: Cable, target: Cable) -> None:
        while True:
            with suppress(OSError):  # nothing is there, or nobody has opened the port yet
                os.write(target.end, os.read(source.end, 4096))
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(carry(*ends)) for ends in ((ours, its), (its, ours))]
    async with flying(f"{its.path},921600"):
        await ask_the_vehicle(f"{ours.path},921600")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Several wires


async def test_several_wires_are_one_link(make_cable: Callable[[], Cable]) -> None:
    cable = make_cable()
    async with listening() as (port, clients):
        endpoint = f"udpin:127.0.0.1:0,{cable.path},57600,tcp:127.0.0.1:{port}"
        async with open_link(endpoint) as (link, sink):
            many = link.transport
            assert isinstance(many, ManyTransports)
            local = many.transports[0].local  # type: ignore[attr-defined]
            await until(lambda: link.send(heartbeat(link)) == 2, "the port and the connection are open")
            async with Peer(remote=local, system=3) as peer:
                peer.heartbeat()
                await until(lambda: len(sink.frames) == 1, "UDP came")
                assert link.send(heartbeat(link)) == 3
                await peer.until(lambda: peer.of("HEARTBEAT"))
                cable.write(frame_of(1))
                clients[0].sendall(frame_of(2))
                await until(lambda: len(sink.frames) == 3, "all wires came")
                before = len(cable.read())
                for system in (3, 1, 2):
                    message = link.dialect.message("COMMAND_LONG", target_system=system)
                    assert link.send(message, system=system) == 1
                await peer.until(peer.commands)
                await until(lambda: len(cable.read()) > before, "the serial vehicle has its command")
                assert [each.target_system for each in cable.read() if each.get_type() == "COMMAND_LONG"] == [1]
                assert sorted(address[0] for address in link.peers) == [0, 1, 2]
                cable.cut()
                await until(lambda: "lost" in wire(link, 1)["state"], "the cable is cut")
                message = link.dialect.message("COMMAND_LONG", target_system=1)
                assert link.send(message, system=1) == 2, "it may be on another wire"
        assert [entry["state"] for entry in many.describe()] == ["closed"] * 3


async def test_when_one_wire_cannot_be_opened_none_stays_open() -> None:
    async with open_link("udpin:127.0.0.1:0") as (link, _):
        taken = port_of(link)
        transport = open_transport(f"udpin:127.0.0.1:0,udpin:127.0.0.1:{taken}")
        assert isinstance(transport, ManyTransports)
        with pytest.raises(LinkError, match="is another ground station"):
            async with open_link(transport):
                pass
        assert [entry["state"] for entry in transport.describe()] == ["closed", "closed"]


async def test_a_bad_wire_passes_on_what_kind_it_is() -> None:
    async with open_link("tcpin:127.0.0.1:0") as (server, sink):
        inner = open_transport(f"udpin:127.0.0.1:0,tcp:127.0.0.1:{port_of(server)}")
        bad = FaultyTransport(inner, Failures(delay=0.01), seed=1)
        kinds: list[tuple[Address, bool]] = []
        async with open_link(bad) as (link, heard):
            await until(lambda: link.send(heartbeat(link)) == 1, "it is connected")
            await until(lambda: sink.frames, "it came late, but it came")
            assert server.send(heartbeat(server)) == 1
            await until(lambda: heard.frames, "and the answer, too")
            kinds = [(address, bad.is_datagram(address)) for address in link.peers]
            await server.transport.close()
            await until(lambda: not link.peers, "the end is told, too")
        assert [(address[0], kind) for address, kind in kinds] == [(1, False)]
