"""The simulated vehicle as a whole: one link, one 50 Hz timer, and an answer to what is asked."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from petalbus.handlers.mavlink.params.values import (
    PARAM_SET_ID,
    PARAM_VALUE_ID,
    ParamValue,
    pack_param_value,
    unpack_param_set,
)
from petalbus.handlers.mavlink.sim.airframe import Airframe
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.commands import COMMAND_INT_ID, COMMAND_LONG_ID, Answer, Commands
from petalbus.handlers.mavlink.sim.disk import Disk
from petalbus.handlers.mavlink.sim.failures import PERFECT_WIRE, Failures, FaultyTransport
from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.sim.flight_log import FlightLog
from petalbus.handlers.mavlink.sim.habits import Habits
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.param_sets import ARDUPILOT_PARAMS, PX4_PARAMS, more_params
from petalbus.handlers.mavlink.sim.params import ParamServer, ParamStore
from petalbus.handlers.mavlink.sim.pilot import Pilot
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.sim.services import make_services
from petalbus.handlers.mavlink.sim.streams import Streams
from petalbus.handlers.mavlink.wire.dialect import MavMessage, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.transport import open_transport

log = logging.getLogger(__name__)

TICK_S: Final = 0.02
REBOOT_S: Final = 2.0
"""Longer than the silence by which others tell a reboot (1.5 s)."""

BOOT_S: Final = 0.6
"""How long it says after a reboot that it boots."""
_COMPONENT: Final = 1
_MOST_TICKS_MADE_UP: Final = 5
_PARAM_REQUEST_READ: Final = 20
_PARAM_REQUEST_LIST: Final = 21
_REQUEST_DATA_STREAM: Final = 66
_TIMESYNC: Final = 111
_HOME_POSITION: Final = 242
_HELLO_S: Final = 0.1
_MOST_GREETED: Final = 64


@dataclass(frozen=True, slots=True)
class SimOptions:
    """What to simulate. ``silence`` are MAV_CMD numbers that are obeyed and never acknowledged."""

    endpoint: str
    autopilot: Autopilot = PX4
    system: int = 1
    seed: int = 1
    failures: Failures = PERFECT_WIRE
    silence: frozenset[int] = frozenset()
    wrong_echo: float = 0.0
    """Share of parameter settings that are answered with another value, and not carried out."""
    reboot_after: float | None = None
    """Seconds until it reboots by itself, once."""
    quiet: bool = False
    """Send no more than heartbeats until somebody asks, as an ArduPilot does that is not set up to."""
    more_params: int = 0
    """How many parameters it has beyond its few: real vehicles have a thousand."""


Journal = Callable[[dict[str, Any]], None]


class SimVehicle:
    """Run it as ``async with SimVehicle(options) as vehicle: await vehicle.fly()``."""

    def __init__(self, options: SimOptions, *, journal: Journal | None = None) -> None:
        """``journal`` gets every command and what became of it. Raises EndpointError or ValueError."""
        self.options = options
        dialect = load_dialect()
        rng = random.Random(options.seed)  # noqa: S311 - wind, not secrets
        transport = open_transport(options.endpoint, rest=0.0)
        if options.failures.any:
            transport = FaultyTransport(transport, options.failures, seed=options.seed)
        self.link = Link(
            transport, on_frames=self._on_frames, dialect=dialect, system=options.system, component=_COMPONENT
        )
        self.dialect = dialect
        entries = PX4_PARAMS if options.autopilot is PX4 else ARDUPILOT_PARAMS
        entries += more_params(options.more_params)
        self.params = ParamServer(
            ParamStore(entries, options.autopilot.encoding),
            strict=options.autopilot is PX4,
            send=self._send_param,
            send_error=self._send_param_error,
            is_wrong=lambda: rng.random() < options.wrong_echo,
        )
        self.flight = Flight(options.autopilot, Airframe(rng), self.params.store)
        self.streams = Streams(self.flight, dialect, rng=rng, send=self._send, quiet=options.quiet)
        onboard = self._onboard(rng)
        self.missions = Missions(onboard, options.autopilot)
        self.missions.quiet = options.quiet and options.autopilot is not PX4
        self.pilot = Pilot(self.flight, self.missions, reached=self._report_reached)
        self.habits = Habits(self.flight, self.streams, dialect, system=options.system)
        self.commands = Commands(
            self.flight,
            self.streams,
            dialect,
            system=options.system,
            silent=options.silence,
            clock=self._since_boot,
            reboot=self._reboot,
            report_interval=self._report_interval,
            missions=self.missions,
        )
        self.disk = Disk(options.autopilot, seed=options.seed)
        self.services = make_services(onboard, options.autopilot, self.disk, self.params.store, self.missions)
        self.flight_log = FlightLog(options.autopilot, self.flight.airframe, self.disk, since_boot=self._since_boot)
        self._answers = {msgid: service for service in self.services for msgid in service.handles}
        self._journal = journal
        self._booted = 0.0
        self._asleep_until = 0.0
        self._reboot_at: float | None = None
        self._heard: set[tuple[int, int]] = set()
        self._hello_at = 0.0
        self._stack = AsyncExitStack()

    def _onboard(self, rng: random.Random) -> Onboard:
        return Onboard(
            dialect=self.dialect,
            system=self.options.system,
            component=_COMPONENT,
            rng=rng,
            send=self._send,
            send_payload=self._send_payload,
            since_boot=self._since_boot,
            note=self._note,
        )

    async def __aenter__(self) -> Self:
        self._booted = asyncio.get_running_loop().time()
        if self.options.reboot_after is not None:
            self._reboot_at = self._booted + self.options.reboot_after
        await self._stack.enter_async_context(self.link)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def fly(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Live, 50 times a second on a fixed monotonic plan, until ``until()`` says so (asked once a second)."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        ticks = 0
        while True:
            self._tick()
            ticks += 1
            if ticks % 50 == 0 and until():
                return
            due += TICK_S
            if loop.time() - due > _MOST_TICKS_MADE_UP * TICK_S:
                due = loop.time()  # the process stood still: go on from here, without a burst
            await asyncio.sleep(max(0.0, due - loop.time()))

    def _tick(self) -> None:
        if asyncio.get_running_loop().time() < self._asleep_until:
            return
        was_armed = self.flight.airframe.armed
        self.flight.booting = self.flight.rebooted and self._since_boot() < BOOT_S
        self.pilot.step()
        self.flight.step(TICK_S)
        if was_armed and not self.flight.airframe.armed:
            self._note({"event": "disarmed by itself"})
        self._speak()
        self._call()
        self.streams.tick(self._since_boot())
        if self._reboot_at is not None and asyncio.get_running_loop().time() >= self._reboot_at:
            self._reboot_at = None
            self._reboot()
        self.params.tick()
        self.flight_log.tick()
        for service in self.services:
            service.tick()

    def _speak(self) -> None:
        for message in self.habits.spoken(self._since_boot()):
            self._send(message)

    def _call(self) -> None:
        """Until somebody is heard, heartbeats leave ten times a second: who starts later need not wait for the next."""
        now = self._since_boot()
        if not self._heard and now >= self._hello_at:
            self._hello_at = now + _HELLO_S
            self.streams.greet(now)

    def _greet(self, frame: Frame) -> None:
        """Who is heard for the first time gets a heartbeat at once."""
        sender = frame.sysid, frame.compid
        if sender in self._heard or len(self._heard) >= _MOST_GREETED:
            return
        self._heard.add(sender)
        self.streams.greet(self._since_boot())

    def _since_boot(self) -> float:
        return asyncio.get_running_loop().time() - self._booted

    def _on_frames(self, frames: Sequence[Frame], _mono_ns: int) -> None:
        if asyncio.get_running_loop().time() < self._asleep_until:
            return
        for frame in frames:
            self._greet(frame)
            service = self._answers.get(frame.msgid)
            if service is not None:
                service.receive(frame)
            elif frame.msgid in (COMMAND_LONG_ID, COMMAND_INT_ID):
                answer = self.commands.receive(frame)
                if answer is not None:
                    self._acknowledge(answer)
            elif frame.msgid == PARAM_SET_ID:
                wanted, system, component = unpack_param_set(frame.payload)
                if self._is_for_us(system, component):
                    self.params.set(wanted, (frame.sysid, frame.compid))
            elif frame.msgid == _TIMESYNC:
                self._answer_timesync(self.dialect.fields(frame))
            elif frame.msgid == _REQUEST_DATA_STREAM:
                self._stream(self.dialect.fields(frame))
            elif frame.msgid in (_PARAM_REQUEST_READ, _PARAM_REQUEST_LIST):
                fields = self.dialect.fields(frame)
                if not self._is_for_us(fields["target_system"], fields["target_component"]):
                    continue
                if frame.msgid == _PARAM_REQUEST_LIST:
                    self._send_banner()
                    self.params.request_list()
                else:
                    self.params.read(fields["param_id"], fields["param_index"], (frame.sysid, frame.compid))

    def _answer_timesync(self, fields: dict[str, Any]) -> None:
        if fields["tc1"] == 0:
            now = int(self._since_boot() * 1e9)
            self._send(self.dialect.message("TIMESYNC", tc1=now, ts1=fields["ts1"]))

    def _stream(self, fields: dict[str, Any]) -> None:
        """REQUEST_DATA_STREAM: ArduPilot obeys, PX4 does not know it."""
        wanted = self._is_for_us(fields["target_system"], fields["target_component"])
        if wanted and self.options.autopilot is not PX4:
            rate = fields["req_message_rate"] if fields["start_stop"] else 0
            self.streams.set_group(fields["req_stream_id"], rate, self._since_boot())

    def _send_banner(self) -> None:
        if self.options.autopilot is not PX4:
            for message in self.habits.banner():
                self._send(message)

    def _report_reached(self, seq: int) -> None:
        self._note({"event": "mission item reached", "seq": seq})
        self._send(self.dialect.message("MISSION_ITEM_REACHED", seq=seq))
        self.missions.tell_current()

    def _is_for_us(self, system: int, component: int) -> bool:
        return system in (0, self.options.system) and component in (0, _COMPONENT)

    def _acknowledge(self, answer: Answer) -> None:
        command = answer.command
        self._note(
            {
                "event": "command",
                "command": self.dialect.enum_name("MAV_CMD", command.number),
                "params": [None if value != value else value for value in command.params],  # noqa: PLR0124 - NaN
                "confirmation": command.confirmation,
                "from": [command.system, command.component],
                "result": self.dialect.enum_name("MAV_RESULT", answer.result),
                "acknowledged": not answer.silent,
            }
        )
        if not answer.silent:
            self._send(
                self.dialect.message(
                    "COMMAND_ACK",
                    command=command.number,
                    result=answer.result,
                    target_system=command.system,
                    target_component=command.component,
                ),
            )
        self.commands.send_asked()
        self._speak()

    def _reboot(self) -> None:
        """Silence, then a boot clock that starts again; parameters stay."""
        now = asyncio.get_running_loop().time()
        self._note({"event": "reboot"})
        self._asleep_until = now + REBOOT_S
        self._booted = self._asleep_until
        self.flight.rebooted = True
        self._heard.clear()
        self._hello_at = 0.0
        self.flight.mode = self.flight.autopilot.first_mode
        self.habits.forget()
        self.streams.reset()
        for service in self.services:
            service.reset()

    def _report_interval(self, msgid: int, microseconds: int) -> None:
        self._send(self.dialect.message("MESSAGE_INTERVAL", message_id=msgid, interval_us=microseconds))

    def _send(self, message: MavMessage) -> None:
        if self.missions.can_check or message.get_msgId() != _HOME_POSITION:
            self.link.send(message)

    def _send_payload(self, msgid: int, payload: bytes) -> None:
        self.link.send_payload(msgid, payload)

    def _send_param(self, value: ParamValue) -> None:
        self.link.send_payload(PARAM_VALUE_ID, pack_param_value(value))

    def _send_param_error(self, name: str, error: int, asker: tuple[int, int]) -> None:
        # PX4 leaves the index of a read by name as it finds it
        fields = {"target_system": asker[0], "target_component": asker[1]}
        self._send(self.dialect.message("PARAM_ERROR", param_id=name, param_index=-1, error=error, **fields))

    def _note(self, entry: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal({"time": round(self._since_boot(), 3), **entry, "armed": self.flight.airframe.armed})
