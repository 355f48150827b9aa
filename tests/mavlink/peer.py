"""The other end of a link in tests: pymavlink's own parser and packer on a plain UDP socket, scripted by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from pymavlink.dialects.v20 import all as mavlink

ACCEPTED = mavlink.MAV_RESULT_ACCEPTED
IN_PROGRESS = mavlink.MAV_RESULT_IN_PROGRESS
ARM_DISARM = mavlink.MAV_CMD_COMPONENT_ARM_DISARM
TAKEOFF = mavlink.MAV_CMD_NAV_TAKEOFF
LAND = mavlink.MAV_CMD_NAV_LAND
SET_MODE = mavlink.MAV_CMD_DO_SET_MODE
REQUEST_MESSAGE = mavlink.MAV_CMD_REQUEST_MESSAGE
PX4 = mavlink.MAV_AUTOPILOT_PX4
ARDUPILOT = mavlink.MAV_AUTOPILOT_ARDUPILOTMEGA
ARMED = mavlink.MAV_MODE_FLAG_SAFETY_ARMED

OnMessage = Callable[["Peer", Any], None]


class Peer(asyncio.DatagramProtocol):
    """Sends from system/component to ``remote``, or to whoever was heard; keeps what it receives in ``heard``."""

    def __init__(
        self,
        *,
        remote: tuple[str, int] | None = None,
        system: int = 1,
        component: int = 1,
        on_message: OnMessage | None = None,
    ) -> None:
        self.remote = remote
        self.heard: list[Any] = []
        self.sent = 0
        self.mav = mavlink.MAVLink(None, srcSystem=system, srcComponent=component)
        self.mav.robust_parsing = True
        self.on_message = on_message
        self.transport: asyncio.DatagramTransport | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.transport is not None
        self.transport.close()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    @property
    def address(self) -> tuple[str, int]:
        assert self.transport is not None
        address: tuple[str, int] = self.transport.get_extra_info("sockname")
        return address

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.remote = self.remote or address
        for message in self.mav.parse_buffer(data) or ():
            self.heard.append(message)
            if self.on_message is not None:
                self.on_message(self, message)
        self._news.set()

    def send_bytes(self, data: bytes) -> None:
        assert self.transport is not None
        assert self.remote is not None
        self.transport.sendto(data, self.remote)
        self.sent += 1

    def send(self, message: Any, *, system: int | None = None, component: int | None = None) -> None:
        """Send a message, as another sender where one is named."""
        own = self.mav.srcSystem, self.mav.srcComponent
        self.mav.srcSystem = own[0] if system is None else system
        self.mav.srcComponent = own[1] if component is None else component
        try:
            data = message.pack(self.mav)
        finally:
            self.mav.srcSystem, self.mav.srcComponent = own
        self.mav.seq = (self.mav.seq + 1) & 0xFF
        self.send_bytes(data)

    def heartbeat(self, *, armed: bool = False, autopilot: int = PX4, custom_mode: int = 0, **sender: int) -> None:
        base_mode = 1 | (ARMED if armed else 0)
        self.send(mavlink.MAVLink_heartbeat_message(2, autopilot, base_mode, custom_mode, 3, 3), **sender)

    def position(self, *, alt: float = 500.0, relative: float = 0.0) -> None:
        fields = (1000, 473977432, 85455940, round(alt * 1000), round(relative * 1000), 0, 0, 0, 0)
        self.send(mavlink.MAVLink_global_position_int_message(*fields))

    def ack(
        self, command: int, result: int = ACCEPTED, *, progress: int = 0, to: tuple[int, int] = (2, 140), **sender: int
    ) -> None:
        self.send(mavlink.MAVLink_command_ack_message(command, result, progress, 0, *to), **sender)

    def commands(self, command: int | None = None) -> list[Any]:
        """The COMMAND_LONGs that came in."""
        return [
            message
            for message in self.heard
            if message.get_type() == "COMMAND_LONG" and command in (None, message.command)
        ]

    def of(self, name: str) -> list[Any]:
        return [message for message in self.heard if message.get_type() == name]

    async def until(self, condition: Callable[[], Any], *, timeout: float = 10.0) -> Any:
        """Wait until messages came that fulfil the condition; returns what it returned."""
        async with asyncio.timeout(timeout):
            while not (result := condition()):
                self._news.clear()
                await self._news.wait()
        return result


def truthful(peer: Peer, message: Any) -> None:
    """Accept every command, and tell a moment later whether it is armed now."""

    def beat() -> None:
        if peer.transport is not None and not peer.transport.is_closing():
            peer.heartbeat(armed=message.param1 == 1.0)

    if message.get_type() in ("COMMAND_LONG", "COMMAND_INT"):
        peer.ack(message.command)
        if message.command == ARM_DISARM:
            asyncio.get_running_loop().call_later(0.05, beat)


def obedient(peer: Peer, message: Any) -> None:
    """Accept every command."""
    if message.get_type() == "COMMAND_LONG":
        peer.ack(message.command, to=(message.get_srcSystem(), message.get_srcComponent()))
