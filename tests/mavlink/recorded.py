"""Sessions recorded with real autopilots, and the same requests put to the simulated vehicle of that kind."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import Peer
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS, PX4
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "captures"
COMMANDS = {number: entry.name.removeprefix("MAV_CMD_") for number, entry in mavlink.enums["MAV_CMD"].items()}
OPCODES = {1: "TERMINATE", 2: "RESET", 3: "LIST", 4: "OPEN", 15: "BURST"}
MISSION_ANSWERS = frozenset(
    ("MISSION_REQUEST", "MISSION_REQUEST_INT", "MISSION_ACK", "MISSION_COUNT", "MISSION_ITEM_INT")
)
SET_INTERVAL, REQUEST_MESSAGE = 511, 512
_QUIET_S = 0.15
_BEFORE_THE_LAST = 3
"""How many messages ArduPilot's session asks for until it has booted again."""
_MOST_S = 10.0


@dataclass
class Exchange:
    """One request of a session, what the real autopilot answered, and what the simulated one did."""

    request: Any
    real: list[Any] = field(default_factory=list)
    simulated: list[Any] = field(default_factory=list)


def lines(kind: str) -> Iterator[tuple[float, str, bytes]]:
    """Seconds, "up" or "down", and the datagram."""
    with gzip.open(CAPTURES / f"{kind}.jsonl.gz", "rt", encoding="ascii") as file:
        for line in file:
            at, way, text = json.loads(line)
            yield at, way, bytes.fromhex(text)


@cache
def messages(kind: str) -> list[tuple[str, Any]]:
    """The session's messages as pymavlink reads them, each with its way."""
    reader = mavlink.MAVLink(None)
    frames = ((way, data) for _, way, data in lines(kind) if data[0] == 0xFD)
    return [(way, reader.decode(bytearray(data))) for way, data in frames]


def operation(request: Any) -> str:
    """What a request is about: a command's name, a file operation, or the message's name."""
    name = str(request.get_type())
    if name == "COMMAND_LONG":
        return COMMANDS[request.command]
    if name == "FILE_TRANSFER_PROTOCOL":
        return f"FTP_{OPCODES[request.payload[3]]}"
    return name


def answers(request: Any, message: Any) -> bool:
    """Whether a message of the vehicle can be its answer to this request."""
    asked, name = request.get_type(), message.get_type()
    if asked == "COMMAND_LONG":
        wanted = int(request.param1) if request.command == REQUEST_MESSAGE else None
        return (name == "COMMAND_ACK" and message.command == request.command) or message.get_msgId() == wanted
    if asked in ("PARAM_REQUEST_READ", "PARAM_SET"):
        return name in ("PARAM_VALUE", "PARAM_ERROR") and message.param_id == request.param_id
    if asked == "PARAM_REQUEST_LIST":
        return bool(name == "PARAM_VALUE" and (message.param_index != 65535 or message.param_id == "_HASH_CHECK"))
    if asked == "FILE_TRANSFER_PROTOCOL":
        return bool(name == asked and message.payload[5] == request.payload[3])
    if asked == "TIMESYNC":
        return bool(name == asked and message.ts1 == request.ts1)
    if asked.startswith("MISSION_"):
        return name in MISSION_ANSWERS
    return name in {"LOG_REQUEST_LIST": ("LOG_ENTRY",), "LOG_REQUEST_DATA": ("LOG_DATA",)}.get(asked, ())


def recorded(kind: str) -> list[Exchange]:
    """The session's requests with the answers that they got, in order."""
    found: list[Exchange] = []
    for way, message in messages(kind):
        if way == "up" and message.get_type() != "HEARTBEAT":
            found.append(Exchange(message))
        elif way == "down":
            # an answer may come after the next request has left
            for exchange in reversed(found[-4:]):
                if answers(exchange.request, message) and not _has_all(exchange, exchange.real):
                    exchange.real.append(message)
                    break
    return found


def _has_all(exchange: Exchange, came: list[Any]) -> bool:
    """Whether nothing more can follow; the others end with the session, or with silence."""
    request = exchange.request
    asked = request.get_type()
    if asked == "COMMAND_LONG" and request.command == REQUEST_MESSAGE:
        return len(came) >= 2
    if asked == "PARAM_REQUEST_LIST":
        return bool(came) and came[-1].param_index == came[-1].param_count - 1
    if asked == "LOG_REQUEST_LIST":
        return bool(came) and len(came) >= came[-1].num_logs
    if asked == "LOG_REQUEST_DATA":
        return sum(message.count for message in came) >= request.count
    if asked == "FILE_TRANSFER_PROTOCOL" and request.payload[3] == 15:
        return bool(came) and came[-1].payload[3] == 129
    return bool(came)


class Replay:
    """The simulated vehicle on real UDP, and somebody who asks it what the recorded session asked."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.exchanges = recorded(kind)
        self.peer = Peer(system=250, component=190)

    async def run(self) -> None:
        """Put every request, in order. What takes a flight is waited for, as the session's maker did."""
        async with self.peer as peer:
            endpoint = f"udpout:127.0.0.1:{peer.address[1]}"
            quiet = self.kind == "ardupilot"
            async with SimVehicle(SimOptions(endpoint, autopilot=AUTOPILOTS[self.kind], quiet=quiet)) as sim:
                flying = asyncio.create_task(sim.fly(), name="sim.fly")
                try:
                    await self._put_all(sim)
                finally:
                    flying.cancel()
                    with suppress(asyncio.CancelledError):
                        await flying

    async def _put_all(self, sim: SimVehicle) -> None:
        peer = self.peer
        _card_at_the_root(sim)
        sim.missions.check_s = 0.3  # the session's questions came before PX4 had looked at the mission
        await peer.until(lambda: peer.of("HEARTBEAT"))
        peer.send(mavlink.MAVLink_heartbeat_message(6, 8, 0, 0, 4, 3))
        sim.streams.set_interval(0, 20_000.0, 0.0)  # each state of the flight shall be in a heartbeat
        disarm = "COM_DISARM_LAND" if sim.options.autopilot is PX4 else "SIM_DISARM_LAND"
        for exchange in self.exchanges:
            await self._prepare(operation(exchange.request), sim)
            sim.params.store.set_raw(disarm, b"\0\0\0?")  # 0.5 s
            await self._put(exchange)
        await self._next_heartbeat()

    async def _next_heartbeat(self) -> None:
        seen = len(self.peer.of("HEARTBEAT"))
        await self.peer.until(lambda: len(self.peer.of("HEARTBEAT")) > seen)

    async def _prepare(self, name: str, sim: SimVehicle) -> None:
        """Let the flight come to where it was when the session went on."""
        frame = sim.flight.airframe
        done = [operation(one.request) for one in self.exchanges if one.simulated]
        rebooted = name == "REQUEST_MESSAGE" and "PREFLIGHT_REBOOT_SHUTDOWN" in done
        async with asyncio.timeout(30):
            if name in ("NAV_LAND", "DO_SET_MODE") and "NAV_TAKEOFF" in done:
                while frame.height < 0.4:
                    await asyncio.sleep(0.02)
            if name == "NAV_TAKEOFF" and self.kind == "ardupilot":  # that one tells each step at once
                await self._next_heartbeat()
            if name == "LOG_REQUEST_LIST":
                while frame.armed or frame.in_air:
                    await asyncio.sleep(0.02)
            if rebooted:
                last = done.count("REQUEST_MESSAGE") == _BEFORE_THE_LAST
                while sim.flight.booting is last:
                    await asyncio.sleep(0.02)

    async def _put(self, exchange: Exchange) -> None:
        peer, request = self.peer, exchange.request
        first = len(peer.heard)

        def came() -> list[Any]:
            return [message for message in peer.heard[first:] if answers(request, message)]

        peer.send_bytes(bytes(request.get_msgbuf()))
        loop = asyncio.get_running_loop()
        end = loop.time() + _MOST_S
        quiet = loop.time() + (_QUIET_S if not exchange.real else 2.0)
        number = 0
        while loop.time() < min(end, quiet) and not _has_all(exchange, came()):
            await asyncio.sleep(0.005)
            if len(came()) != number:
                number = len(came())
                quiet = loop.time() + _QUIET_S
        exchange.simulated = came()


def _card_at_the_root(sim: SimVehicle) -> None:
    """The recorded PX4 is the one for computers: its root is the memory card's folder."""
    card, disk = "/fs/microsd", sim.disk
    disk.folders = {folder.removeprefix(card) or "/" for folder in disk.folders if folder != "/fs"}
    disk.files = {path.removeprefix(card): data for path, data in disk.files.items()}
    for log in disk.logs:
        log.path = log.path.removeprefix(card)


@cache
def replayed(kind: str) -> Replay:
    """The session once more, with the simulated vehicle; done once for all tests."""
    replay = Replay(kind)
    asyncio.run(replay.run())
    return replay
