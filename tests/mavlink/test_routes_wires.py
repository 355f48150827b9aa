"""Where a message for a vehicle leaves that is heard at several places, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import ARM_DISARM, Peer, obedient
from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.many import ManyTransports
from petalbus.handlers.mavlink.wire.routes import MOST_SENDERS, SILENT_S
from petalbus.handlers.mavlink.wire.signing import Signer, signing_key

DIALECT = load_dialect()
FTP_ID = 110
FORCE = 21196
CAMERA = 100
ROI_NONE = mavlink.MAV_CMD_DO_SET_ROI_NONE


class Heard:
    """The frames of a link."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def __call__(self, frames: Sequence[Frame], _mono_ns: int) -> None:
        self.frames += frames

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.frames) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def open_link(endpoint: str = "udpin:127.0.0.1:0", **settings: Any) -> AsyncIterator[tuple[Link, Heard]]:
    heard = Heard()
    async with Link(endpoint, on_frames=heard, **settings) as link:
        yield link, heard


def peer_at(link: Link, wire: int = 0, **settings: Any) -> Peer:
    transport = link.transport
    place = transport.transports[wire] if isinstance(transport, ManyTransports) else transport
    return Peer(remote=place.local, **settings)  # type: ignore[attr-defined]


def order(number: int = ROI_NONE, *, system: int = 1, component: int = 1, **more: Any) -> Any:
    to = {"target_system": system, "target_component": component}
    return DIALECT.message("COMMAND_LONG", command=number, **to, **more)


STOP = order(ARM_DISARM, param1=0, param2=FORCE)


async def test_a_companion_with_the_vehicles_system_id_gets_none_of_its_commands() -> None:
    """S-003: the emergency stop least of all."""
    async with open_link() as (link, heard), peer_at(link) as autopilot, peer_at(link, component=CAMERA) as camera:
        autopilot.heartbeat()
        await heard.until(1)
        for turn in range(3):
            camera.heartbeat(autopilot=mavlink.MAV_AUTOPILOT_INVALID)
            await heard.until(turn + 2)
            assert link.send(order(), system=1) == 1
            assert link.send_payload(FTP_ID, bytes(254), system=1) == 1
        await autopilot.until(lambda: len(autopilot.heard) == 6)
        assert not camera.heard
        assert link.send(order(component=CAMERA), system=1) == 1, "what is for the camera goes to the camera"
        await camera.until(camera.commands)
        assert link.send(STOP, system=1) == 2, "somebody there may pass it on"
        await autopilot.until(lambda: autopilot.commands(ARM_DISARM))


async def test_a_conversation_stays_on_the_wire_on_which_it_began() -> None:
    """A file's transfer would be unknown on the vehicle's other wire."""
    async with (
        open_link("udpin:127.0.0.1:0,udpin:127.0.0.2:0") as (link, heard),
        peer_at(link, 0) as first,
        peer_at(link, 1) as second,
    ):
        for turn in range(20):
            for number, peer in enumerate((first, second), 1):
                peer.heartbeat()
                await heard.until(2 * turn + number)
                assert link.send_payload(FTP_ID, bytes(254), system=1) == 1
        await first.until(lambda: len(first.heard) == 40)
        assert not second.heard


async def test_an_emergency_stop_does_not_wait_until_the_old_port_is_silent() -> None:
    """A vehicle came back with another port: the stop goes to both, and what must not be done twice to one."""
    async with open_link() as (link, heard), peer_at(link) as old:
        old.heartbeat()
        await heard.until(1)
        async with peer_at(link) as new:
            new.heartbeat()
            await heard.until(2)
            for message in (STOP, order(mavlink.MAV_CMD_DO_FLIGHTTERMINATION, param1=1)):
                assert link.send(message, system=1) == 2
            as_int = DIALECT.message("COMMAND_INT", target_system=1, command=ARM_DISARM, param2=FORCE)
            assert link.send(as_int, system=1) == 2
            await new.until(lambda: len(new.heard) == 3)
            await old.until(lambda: len(old.heard) == 3)
            for params in ({"param1": 1}, {}, {"param1": 1, "param2": FORCE}):
                assert link.send(order(ARM_DISARM, **params), system=1) == 1


async def test_a_wire_that_closes_is_no_way_from_then_on() -> None:
    frame = build_frame(0, bytes(8) + b"\x03", crc_extra=DIALECT.crc_extras[0], sysid=1, compid=1, seq=0)
    async with open_link("tcpin:127.0.0.1:0") as (link, heard):
        place = link.transport.local  # type: ignore[attr-defined]
        with socket.create_connection(place) as spare, socket.create_connection(place) as other:
            for number, each in enumerate((spare, other), 1):
                each.settimeout(20)
                each.sendall(frame)
                await heard.until(number)
            assert link.send(order(), system=1) == 1
            await asyncio.to_thread(spare.recv, 1000)
            spare.close()
            async with asyncio.timeout(20):
                while len(link.peers) > 1:
                    await asyncio.sleep(0.005)
            assert link.send(order(), system=1) == 1
            assert await asyncio.to_thread(other.recv, 1000)


async def test_who_has_no_key_is_no_way_not_even_for_a_stop() -> None:
    """Neither with unsigned frames nor with repeated ones."""
    key = signing_key("a secret between us")
    async with (
        open_link(signing=Signer(key)) as (link, heard),
        peer_at(link) as vehicle,
        peer_at(link) as forger,
    ):
        vehicle.mav.signing.secret_key = key
        vehicle.mav.signing.sign_outgoing = True
        vehicle.mav.signing.timestamp = Signer(key).timestamp
        vehicle.heartbeat()
        await heard.until(1)
        await asyncio.sleep(SILENT_S + 0.1)
        forger.send_bytes(heard.frames[0].raw)
        forger.heartbeat()
        async with asyncio.timeout(20):
            while link.statistics()["signing"]["unsigned"] < 1:
                await asyncio.sleep(0.005)
        assert link.send(order(), system=1) == 1
        assert link.send(STOP, system=1) == 1
        await vehicle.until(lambda: len(vehicle.commands()) == 2)
        assert not forger.heard


async def test_a_copy_of_the_vehicles_stream_does_not_keep_the_way() -> None:
    """It is heard like the vehicle, with all its answers, but what is sent there goes nowhere."""
    async with open_link() as (link, heard), peer_at(link) as copy, peer_at(link, on_message=obedient) as vehicle:
        copy.heartbeat()
        await heard.until(1)
        assert link.send(order(), system=1) == 1
        vehicle.heartbeat()
        await heard.until(2)
        async with asyncio.timeout(20):
            while not vehicle.commands():
                copy.heartbeat()
                vehicle.heartbeat()
                await asyncio.sleep(0.1)
                assert link.send(order(), system=1) == 1
        lost = len(copy.commands())
        for _ in range(5):
            copy.heartbeat()
            vehicle.heartbeat()
            await asyncio.sleep(0.02)
            assert link.send(order(), system=1) == 1
        await vehicle.until(lambda: len(vehicle.commands()) >= 6)
        assert len(copy.commands()) == lost


async def test_senders_that_nobody_has_take_no_memory_and_no_way() -> None:
    async with open_link() as (link, heard), peer_at(link) as vehicle, peer_at(link) as noise:
        sent = 0
        for system in range(2, 34):
            vehicle.heartbeat()
            for component in range(1, 255):
                noise.heartbeat(system=system, component=component)
            noise.heartbeat()  # it says that it is the vehicle, too
            sent += 256
            await heard.until(sent)
        held = link._routes.heard_at(noise.address)
        assert len(held) <= MOST_SENDERS
        assert bytes((33, 254)) in held, "the newest stay"
        assert link.send(order(), system=1) == 1
        await vehicle.until(vehicle.commands)
        assert not noise.heard
