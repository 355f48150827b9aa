"""The vehicles of one link: each autopilot that is heard is a unit of its own, found by its MAVLink system id.

Who names no system means the primary one: the one that was configured, else the first that was heard. Only after a
long silence another one that is heard takes its place, so that commands do not change their target between two
heartbeats.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected
from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.logs import LogClient
from petalbus.handlers.mavlink.files.shell import Shell
from petalbus.handlers.mavlink.flight.vehicle import AUTOPILOT_COMPONENT, FORGET_AFTER_S, NO_AUTOPILOT, WATCHED, Vehicle
from petalbus.handlers.mavlink.missions.client import MissionClient, MissionProgress
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.listing import ParamLister
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.flight.commands import CommandTimes
    from petalbus.handlers.mavlink.wire.link import Link

log = logging.getLogger(__name__)

MOST_UNITS: Final = 16
EXPECT_S: Final = 10.0
"""Seconds after a start in which the primary vehicle of before is waited for. Heartbeats come once a second."""

DOUBT_S: Final = 120.0
"""So long after the primary vehicle was lost beside others, an emergency stop must name the vehicle it means."""

_HEARTBEAT: Final = 0
_COMMAND_ACK: Final = 77
_LOOKED_AT: Final = WATCHED | MissionProgress.msgids


class NoSuchVehicle(NotConnected):
    """The vehicle that was named is not heard. ``heard`` are the system ids of those that are; nothing was sent."""

    def __init__(self, system: int, heard: Sequence[int]) -> None:
        self.system = system
        self.heard = list(heard)
        others = f"heard are {', '.join(map(str, heard))}" if heard else "no vehicle is heard"
        super().__init__(f"vehicle {system} is not heard on the MAVLink link ({others}); nothing was sent")

    @property
    def detail(self) -> dict[str, Any]:
        """Who was asked for, and who is there."""
        return {"system": self.system, "heard": self.heard}


class VehicleAmbiguous(NotConnected):
    """It is not clear which vehicle is meant, and a wrong guess could not be undone; nothing was sent."""

    code = "VEHICLE_AMBIGUOUS"

    def __init__(self, former: int, primary: int, heard: Sequence[int]) -> None:
        self.heard = list(heard)
        super().__init__(
            f"vehicle {former} was lost a short time ago and vehicle {primary} took its place: name the vehicle with "
            f"'system' (heard are {', '.join(map(str, heard))}); nothing was sent"
        )

    @property
    def detail(self) -> dict[str, Any]:
        """Who is there."""
        return {"heard": self.heard}


class Unit:
    """One vehicle with all that belongs to it."""

    def __init__(self, link: Link, calls: Calls, *, target: int | None, times: CommandTimes | None) -> None:
        """``target``: its system id; None: that of the first autopilot heard."""
        system, component = link.packer.system, link.packer.component
        self.vehicle = Vehicle(
            lambda message, to: link.send(message, system=to),
            dialect=link.dialect,
            system=system,
            component=component,
            target_system=target,
            times=times,
        )
        self.params = ParamClient(
            lambda msgid, payload, to: link.send_payload(msgid, payload, system=to),
            self.vehicle,
            system=system,
            component=component,
        )
        self.ftp = FtpClient(calls, self.vehicle)
        self.lister = ParamLister(self.params, self.ftp, self.vehicle)
        self.logs = LogClient(calls, self.vehicle)
        self.shell = Shell(calls, self.vehicle)
        self.missions = MissionClient(calls, self.vehicle)
        self.met = time.monotonic()
        self.users = 0
        """Orders and requests that are under way with it."""

    @property
    def system(self) -> int | None:
        """Its MAVLink system id; None while it was not heard."""
        return None if self.vehicle.state is None else self.vehicle.state.system

    @property
    def silent(self) -> float:
        """Seconds since its last heartbeat; infinite when there was none."""
        state = self.vehicle.state
        return float("inf") if state is None else time.monotonic() - state.heard

    def describe(self) -> dict[str, Any]:
        """For a person or a status record."""
        return {**self.vehicle.describe(), "mission": self.missions.progress.describe()}


class Fleet:
    """The vehicles. ``on_frames`` must see every frame of the link; 16 vehicles at most."""

    def __init__(
        self, link: Link, calls: Calls, *, target_system: int | None = None, times: CommandTimes | None = None
    ) -> None:
        """``target_system``: who is meant where nobody is named; None: the first autopilot heard."""
        self._made_of = link, calls, times
        self._dialect = link.dialect
        self._target = target_system
        self._units: dict[int, Unit] = {}  # in the order in which they were first heard
        self.primary: Unit = self._new(target_system)
        self.refused = 0
        """Heartbeats of vehicles for which there was no room."""
        self._former: Unit | None = None
        self._expected: int | None = None
        self._expects_until = 0.0
        self._gone = {"sent": 0, "stray_acks": 0}
        self._changed = asyncio.Event()

    @property
    def units(self) -> list[Unit]:
        """All of them: the primary one first (also while it was not heard yet), then as they were first heard."""
        return [self.primary, *(unit for unit in self._units.values() if unit is not self.primary)]

    @property
    def heard(self) -> list[int]:
        """The system ids of the vehicles that are connected."""
        return sorted(system for system, unit in self._units.items() if unit.vehicle.connected)

    def unit(self, system: int | None = None, *, irreversible: bool = False) -> Unit:
        """The vehicle with this system id, None: the primary one. Whether it is connected is for the caller to see.

        Raises NoSuchVehicle, and VehicleAmbiguous where nobody is named, another vehicle took the place of the primary
        one a short time ago, and what is wanted is ``irreversible``.
        """
        if system is not None:
            if system not in self._units:
                raise NoSuchVehicle(system, self.heard)
            return self._units[system]
        primary, former = self.primary, self._former
        if primary.system is None and self._target is not None and self._units:
            raise NoSuchVehicle(self._target, self.heard)
        if irreversible and self._expected is not None and time.monotonic() < self._expects_until:
            raise VehicleAmbiguous(self._expected, primary.system or 0, self.heard)
        if irreversible and former is not None and former.silent < DOUBT_S:
            assert former.system is not None
            assert primary.system is not None
            raise VehicleAmbiguous(former.system, primary.system, self.heard)
        return primary

    def expect(self, system: int | None) -> None:
        """Which vehicle was the primary one before a restart: it is that again, when it is heard soon."""
        self._expected = None if self._target is not None else system
        self._expects_until = time.monotonic() + EXPECT_S

    def _is_expected(self, system: int) -> bool:
        return system == self._expected and time.monotonic() < self._expects_until

    def about(self, error: MavlinkError) -> dict[str, Any]:
        """What an error reply says of the vehicles: where one is away, which ones are there."""
        return {"heard": self.heard} if isinstance(error, NotConnected) else {}

    def lane(self, system: Any) -> str | bool:
        """What orders for this vehicle wait for: those for the same vehicle, not for others.

        False: for the primary one, as if it were alone.
        """
        known = system if isinstance(system, int) and not isinstance(system, bool) else None
        return f"system {known}" if known not in (None, self.primary.system) else False

    @contextmanager
    def using(self, unit: Unit) -> Iterator[None]:
        """While something is under way with a vehicle it is not forgotten."""
        unit.users += 1
        try:
            yield
        finally:
            unit.users -= 1

    async def changed(self, timeout: float) -> None:
        """Wait until a frame told something about a vehicle, ``timeout`` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                await self._changed.wait()

    async def wait_heard(self, system: int | None, timeout: float) -> None:
        """Wait until that vehicle (None: the primary one) was heard, ``timeout`` seconds at most."""
        end = time.monotonic() + timeout
        while not self.was_heard(system) and (left := end - time.monotonic()) > 0:
            await self.changed(left)

    def was_heard(self, system: int | None) -> bool:
        """Whether that vehicle (None: the primary one) is known, be it connected or not."""
        return self.primary.system is not None if system is None else system in self._units

    # -- frames -------------------------------------------------------------------------------------------------------

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Look at what came; almost all frames cost a set look-up, however many vehicles there are."""
        news, wrong = False, None
        for frame in frames:
            if frame.msgid in _LOOKED_AT:
                news = True
                try:
                    self._look_at(frame)
                except Exception as error:  # noqa: BLE001  # raised below: the frames of other vehicles come first
                    wrong = error
        if news:
            self._changed.set()
            self._changed = asyncio.Event()
        if wrong is not None:
            raise wrong

    def on_param_frames(self, frames: Sequence[Frame]) -> None:
        """The same for parameters; costs nothing while none are read or set."""
        for unit in self._units.values():
            unit.params.on_frames(frames)

    def _look_at(self, frame: Frame) -> None:
        unit = self._units.get(frame.sysid)
        if unit is None:
            if frame.msgid == _COMMAND_ACK:
                unit = self.primary  # nobody waits for it; it is counted
            elif frame.msgid != _HEARTBEAT or (unit := self._meet(frame)) is None:
                return
        if frame.msgid in MissionProgress.msgids:
            unit.missions.progress.on_frame(frame)
            return
        unit.vehicle.on_frame(frame)
        if frame.msgid == _HEARTBEAT and unit is not self.primary and self._target is None:
            self._look_after_primary()

    def _meet(self, frame: Frame) -> Unit | None:
        """A heartbeat from a system that is not known: a vehicle, if an autopilot sends it and there is room."""
        if frame.compid != AUTOPILOT_COMPONENT or frame.sysid == 0:  # to 0 would mean to everybody
            return None
        if self._dialect.fields(frame)["autopilot"] == NO_AUTOPILOT:
            return None
        if self.primary.system is None and self._target in (None, frame.sysid):
            unit = self.primary
        elif self._has_room():
            unit = self._new(frame.sysid)
        else:
            self.refused += 1
            if self.refused == 1 or self.refused % 1000 == 0:
                log.warning("vehicle %d is one too many: %d are known already", frame.sysid, MOST_UNITS)
            return None
        unit.met = time.monotonic()
        self._units[frame.sysid] = unit
        if self._is_expected(frame.sysid):
            self._expected = None
            self.primary = unit
        return unit

    def _new(self, target: int | None) -> Unit:
        link, calls, times = self._made_of
        return Unit(link, calls, target=target, times=times)

    def _has_room(self) -> bool:
        """Whether one more may be taken in; forgets the one that was silent for longest, and with which nothing is
        under way.
        """
        if len(self._units) < MOST_UNITS - (self.primary.system is None):  # one place is the primary's
            return True
        idle = [unit for unit in self._units.values() if unit is not self.primary and not unit.users]
        unit = max(idle, key=lambda one: one.silent, default=None)
        if unit is None or unit.silent < FORGET_AFTER_S:
            return False
        assert unit.system is not None
        log.info("vehicle %d is forgotten: it was silent for %.0f s", unit.system, unit.silent)
        del self._units[unit.system]
        self._gone["sent"] += unit.vehicle.client.sent
        self._gone["stray_acks"] += unit.vehicle.client.stray_acks
        return True

    def _look_after_primary(self) -> None:
        """When the primary vehicle is silent for long, the first one that is still heard takes its place."""
        former = self.primary
        if former.silent < FORGET_AFTER_S:
            return
        unit = next((one for one in self._units.values() if one.vehicle.connected), None)
        if unit is None or former.vehicle.state is None:
            return
        # one that was heard beside it is another vehicle; one that came later may be what replaces it on the bench
        # (but nobody exchanges an armed one)
        beside = unit.met < former.vehicle.state.heard or former.vehicle.state.armed
        log.warning("vehicle %s is lost; vehicle %s is the primary one now", former.system, unit.system)
        self.primary = unit
        self._former = former if beside else None

    # -- for people ---------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """All vehicles, the primary one under ``vehicle`` too; and what was sent to them."""
        clients = [unit.vehicle.client for unit in self.units]
        return {
            "vehicle": self.primary.vehicle.describe(),
            "vehicles": [
                {**unit.describe(), "primary": unit is self.primary} for unit in self.units if unit.system is not None
            ],
            "mission": self.primary.missions.progress.describe(),
            "vehicles_refused": self.refused,
            "commands_sent": self._gone["sent"] + sum(client.sent for client in clients),
            "stray_acks": self._gone["stray_acks"] + sum(client.stray_acks for client in clients),
        }
