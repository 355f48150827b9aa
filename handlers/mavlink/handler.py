"""The MAVLink handler of the daemon: frames become records, command records become commands to the vehicle.

link -> every frame -> topic mavlink.rx
app "vehicle": command, emergency_command -> fleet.py -> Vehicle.run -> COMMAND_LONG -> acknowledgement -> reply
app "vehicle": mavlink.* -> requests.py; is a vehicle there -> status.py -> topic vehicle.state
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected, OrderNotAllowed, OrderOvertaken
from petalbus.handlers.mavlink.fleet import Fleet, Unit
from petalbus.handlers.mavlink.flight.commands import ACCEPTED
from petalbus.handlers.mavlink.flight.orders import Order, Verb, comes_down, order_from_command, order_from_emergency
from petalbus.handlers.mavlink.flight.procedures import Step
from petalbus.handlers.mavlink.ingest import Ingest
from petalbus.handlers.mavlink.options import MavlinkOptions
from petalbus.handlers.mavlink.requests.files import FileRequests
from petalbus.handlers.mavlink.requests.looking import Looking
from petalbus.handlers.mavlink.requests.missions import MissionRequests
from petalbus.handlers.mavlink.requests.replying import Telling, given_at, progress
from petalbus.handlers.mavlink.requests.transfers import Transfers
from petalbus.handlers.mavlink.requests.vehicle import WORKERS, Requests
from petalbus.handlers.mavlink.status import StatePublisher, kept_primary
from petalbus.handlers.mavlink.streams import Streams
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.heartbeat import beat
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.flight.vehicle import Vehicle
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

APP: Final = "vehicle"

_FIRST_HEARTBEAT_S: Final = 2.5


class MavlinkHandler:
    """Run it as ``async with MavlinkHandler(bus, endpoint=...)`` on a bus that is connected as app ``vehicle``."""

    def __init__(
        self,
        bus: Bus,
        *,
        endpoint: str,
        options: MavlinkOptions | None = None,
    ) -> None:
        """``endpoint``: one or several, with commas. Raises EndpointError, DialectError or ValueError when a setting
        makes no sense.
        """
        self.options = options = options or MavlinkOptions()
        ours = {"system": options.source_system, "component": options.source_component}
        self.link = Link(
            endpoint,
            on_frames=self._on_frames,
            dialect=options.dialect,
            signing=options.signing,
            **ours,
        )
        self.ingest = Ingest(bus, self.link.dialect, app=APP, rates=options.rates)
        self.calls = Calls(
            lambda message, system: self.link.send(message, system=system),
            lambda msgid, payload, system: self.link.send_payload(msgid, payload, system=system),
            dialect=self.link.dialect,
            **ours,
        )
        self.fleet = Fleet(self.link, self.calls, target_system=options.target_system, times=options.times)
        self.streams = Streams(self.fleet, self.calls, options.streams)
        self.files = FileRequests(self.fleet, Transfers(options.transfers), ready=self._await_vehicle)
        self.missions = MissionRequests(self.fleet, ready=self._await_vehicle)
        self.looking = Looking(self.ingest.latest, self.fleet, self.statistics)
        self.requests = Requests(self.link, self.fleet, ready=self._await_vehicle)
        self._bus = bus
        self.failures = 0
        """Times that somebody could not look at frames."""
        self._stack = AsyncExitStack()
        self._opened = 0.0
        self._stopping = False

    @property
    def vehicle(self) -> Vehicle:
        """The primary vehicle: the one that is meant where nobody is named."""
        return self.fleet.primary.vehicle

    async def __aenter__(self) -> Self:
        # its handlers wait for the vehicle, they do not compute: a few long ones must not keep a command waiting
        self._bus.options = replace(self._bus.options, workers=max(WORKERS, self._bus.options.workers))
        self._state = StatePublisher(
            self._bus, self.fleet, constant={"dialect": self.link.dialect.name, "own": [*self.calls.own]}
        )
        self.fleet.expect(await kept_primary(self._bus))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.link)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [
                tasks.create_task(self.ingest.run(), name="mavlink.ingest"),
                tasks.create_task(self.ingest.latest.run(), name="mavlink.latest"),
                tasks.create_task(beat(self.link, hertz=self.options.heartbeat_hz), name="mavlink.heartbeat"),
                tasks.create_task(self._state.run(), name="mavlink.state"),
                tasks.create_task(self.streams.run(), name="mavlink.streams"),
            ]
            stack.callback(lambda: [task.cancel() for task in running])
            self._stack = stack.pop_all()
        self._opened = time.monotonic()
        for kind, handle in (("command", self._on_command), ("emergency_command", self._on_emergency)):
            self._bus.on(kind, redelivery="report", concurrency=None, overtakes=self._overtakes)(handle)
        self.requests.register(self._bus)
        self.looking.register(self._bus)
        self.files.register(self._bus)
        self.missions.register(self._bus)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # The handlers stay registered: a command that still comes in gets a clear refusal instead of a dead letter.
        self._stopping = True
        try:
            return await self._stack.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # the task group wraps also what the block itself raised; one error is told as it is
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            await self._state.say_gone()

    def _on_frames(self, frames: Sequence[Frame], mono_ns: int) -> None:
        self.ingest.on_frames(frames, mono_ns)  # first: what is wrong with one of the others costs no record
        for look in (
            self.fleet.on_frames,
            self.fleet.on_param_frames,
            self.calls.on_frames,
            self.streams.on_frames,
        ):
            try:
                look(frames)
            except Exception:
                self.failures += 1
                if self.failures == 1 or self.failures % 1000 == 0:
                    log.exception("frames could not be looked at, %d times so far", self.failures)

    def _overtakes(self, record: Record) -> bool | str:
        """Orders to come down wait for nobody, others for those to the same vehicle; see ``Bus.on``."""
        return comes_down(record) or self.requests.lane(record)

    async def _on_command(self, record: Record, context: Context) -> dict[str, Any]:
        """Handle ``command``; orders.py has what there is."""
        try:
            order = order_from_command(record.data, max_altitude=self.options.max_altitude)
            if order.verb is Verb.MOTOR_TEST and record.source not in self.options.operators:
                raise OrderNotAllowed(f"motor_test is for operators (mavlink_operators), and {record.source} is none")
        except MavlinkError as error:
            raise _as_reply(error, record.data, {}) from error
        return await self._carry_out(order, record, context)

    async def _on_emergency(self, record: Record, context: Context) -> dict[str, Any]:
        """Handle ``emergency_command``: land_immediately, emergency_stop."""
        try:
            order = order_from_emergency(record.data)
        except MavlinkError as error:
            raise _as_reply(error, record.data, {}) from error
        return await self._carry_out(order, record, context)

    async def _carry_out(self, order: Order, record: Record, context: Context) -> dict[str, Any]:
        unit: Unit | None = None
        try:
            await self._await_vehicle(record, order.system)
            unit = self.fleet.unit(order.system, irreversible=order.urgent)
            with self.fleet.using(unit):
                return await self._run(order, unit, record, context)
        except MavlinkError as error:
            about = {"system": order.system if unit is None else unit.system, **self.fleet.about(error)}
            raise _as_reply(error, record.data, about) from error

    async def _run(self, order: Order, unit: Unit, record: Record, context: Context) -> dict[str, Any]:
        check = partial(self._may_leave, order, record)
        telling = Telling(context)
        async with AsyncExitStack() as stack:
            stack.callback(telling.end)
            run = unit.vehicle.run(order, check=check, given=given_at(record))
            async for step in await stack.enter_async_context(aclosing(run)):
                told = {**self._told(order, step), "system": unit.system}
                if step.last:
                    return told
                if order.urgent:  # nothing that the bus does may cut it off, or keep it from being repeated
                    telling.tell(told)
                elif step.ack.final:  # a stage is over, and the next one is still to leave
                    await _tell(context, told, order, record)
                else:
                    await progress(context, told)
        raise AssertionError(f"{order.verb} ended without a last step")

    def _may_leave(self, order: Order, record: Record) -> None:
        if not order.urgent and record.expired(boot_clock_ns()):
            raise OrderOvertaken(f"{order.verb} was given up: its deadline has passed")

    async def _await_vehicle(self, record: Record, system: int | None) -> None:
        """Right after the start the first heartbeat is still to come: what waited in the inbox waits for it too."""
        if self._stopping:
            raise NotConnected("the MAVLink handler is stopping; nothing was sent")
        grace = self._opened + _FIRST_HEARTBEAT_S - time.monotonic()
        if grace > 0 and not self.fleet.was_heard(system):
            await self.fleet.wait_heard(system, grace)
            if record.expired(boot_clock_ns()):
                raise NotConnected("the deadline passed before a vehicle was heard; nothing was sent")

    def _told(self, order: Order, step: Step) -> dict[str, Any]:
        """A step as the payload of a reply."""
        accepted = step.ack.result == ACCEPTED
        told: dict[str, Any] = {
            "status": ("success" if accepted else "failed") if step.last else "in_progress",
            "command": order.verb.value,
            "stage": step.stage,
            "mavlink_command": self.link.dialect.enum_name("MAV_CMD", step.ack.command),
            "result": self.link.dialect.enum_name("MAV_RESULT", step.ack.result),
            "result_code": step.ack.result,
        }
        if step.ack.progress is not None:
            told["progress"] = step.ack.progress
        if step.ack.result_param2:
            told["result_param2"] = step.ack.result_param2
        if order.command_id is not None:
            told["command_id"] = order.command_id
        if order.unused and step.last:
            told["unused_parameters"] = list(order.unused)
        return told

    def statistics(self) -> dict[str, Any]:
        """The link's counters, the vehicles' states, and how many frames are stored, waiting and lost."""
        return {
            "link": self.link.statistics(),
            **self.fleet.statistics(),
            "streams": self.streams.describe(),
            "published": self.ingest.published,
            "waiting": self.ingest.waiting,
            "lost": self.ingest.lost,
            "left_out": self.ingest.left_out,
            "forwarded": self.requests.forwarded,
            "unsent": self.requests.unsent,
        }


async def _tell(context: Context, told: dict[str, Any], order: Order, record: Record) -> None:
    """Tell the sender how far its order is, and make sure that it may go on.

    Between two commands of one order much can have happened. Without the lease its sender was told already that the
    outcome is unknown; after the deadline nobody expects the vehicle to move any more.
    """
    try:
        ours = await context.progress(told)
    except BusError as error:
        raise OrderOvertaken(f"{order.verb} was given up after {told['stage']}: the bus is away ({error})") from error
    if not ours:
        raise OrderOvertaken(f"{order.verb} was given up after {told['stage']}: the lease on its record is lost")
    if record.expired(boot_clock_ns()):
        raise OrderOvertaken(f"{order.verb} was given up after {told['stage']}: its deadline has passed")


def _as_reply(error: MavlinkError, data: Any, about: dict[str, Any]) -> HandlerError:
    """The error as the bus replies it; the sender's own ``command_id`` comes back with it."""
    detail = about | error.detail
    if isinstance(data, dict):
        detail |= {name: data[name] for name in ("command", "action", "command_id") if name in data}
    return HandlerError(str(error), error_code=error.code, data=detail)
