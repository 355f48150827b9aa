"""What other programs on the bus may ask the vehicle for, beside ``command``: raw frames, any command, parameters.

mavlink.send -> frames out                mavlink.command -> acknowledgement
mavlink.param.get, .set, .list -> values  mavlink.reboot -> what was seen

Everything is registered with ``redelivery="report"``: after a crash nobody knows what left, so nothing leaves twice.
Reading parameters is the exception, it changes nothing.
"""

from __future__ import annotations

import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import HandlerError
from petalbus.handlers.mavlink.decode import CONTENT_TYPE
from petalbus.handlers.mavlink.errors import OrderInvalid, OrderOvertaken
from petalbus.handlers.mavlink.flight.commands import Ack, Target
from petalbus.handlers.mavlink.flight.downs import Given
from petalbus.handlers.mavlink.flight.reboot import Reboot
from petalbus.handlers.mavlink.params.refusal import ENCODING_UNKNOWN, Refusal
from petalbus.handlers.mavlink.params.transfer import Transfer
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, ParamValue
from petalbus.handlers.mavlink.requests.replying import SHARED, Desk, Job, Ready, given_at
from petalbus.handlers.mavlink.requests.wanted import (
    ListParams,
    ReadParams,
    RebootVehicle,
    SendCommand,
    WriteParams,
    read_wanted,
)
from petalbus.handlers.mavlink.wire.framing import Frame, whole_frames
from petalbus.handlers.mavlink.wire.routes import is_stop, may_hold_stop
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mavlink.fleet import Fleet, Unit
    from petalbus.handlers.mavlink.wire.link import Link
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

WORKERS: Final = SHARED + 24
"""Handlers of the app ``vehicle`` that may run at once: they wait for the vehicle, they do not compute."""

_AT_ONCE: Final = 6
"""Of each kind, with one vehicle."""

_REBOOTS: Final = 4
_COMMANDS: Final = frozenset((75, 76))
_SET_MODE: Final = 11
_COMPLAIN_EVERY_S: Final = 10.0


class Requests(Desk):
    """Answers the ``mavlink.*`` request records of one link."""

    def __init__(self, link: Link, fleet: Fleet, *, ready: Ready) -> None:
        super().__init__(fleet, ready=ready)
        self.forwarded = 0
        self.unsent = 0
        """Frames that found no peer."""
        self._link = link
        self._complained = float("-inf")

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        bus.on("mavlink.send", redelivery="report", concurrency=None, overtakes=self._frames_lane)(self._send)
        command = self.answer(SendCommand, self._command, at_once=_AT_ONCE, urgent=_comes_down)
        bus.on("mavlink.command", redelivery="report", concurrency=None, overtakes=self._command_lane)(command)
        for name, handle in (
            ("reboot", self.answer(RebootVehicle, self._reboot, at_once=_REBOOTS)),
            ("param.set", self.answer(WriteParams, _write, at_once=_AT_ONCE)),
        ):
            bus.on(f"mavlink.{name}", redelivery="report", concurrency=None, overtakes=self.lane)(handle)
        for name, handle in (
            ("param.get", self.answer(ReadParams, _read, at_once=_AT_ONCE)),
            ("param.list", self.answer(ListParams, _list, at_once=_AT_ONCE)),
        ):
            bus.on(f"mavlink.{name}", concurrency=None, overtakes=self.lane)(handle)

    async def _send(self, record: Record) -> dict[str, int] | None:
        """Send frames that another program packed, in their order, under our identity."""
        data = record.data
        if not isinstance(data, bytes) or record.content_type != CONTENT_TYPE:
            problem = f"mavlink.send carries whole MAVLink frames as {CONTENT_TYPE}, not {type(data).__name__}"
            raise HandlerError(problem, error_code="MAVLINK_FRAMES_INVALID")
        try:
            frames = whole_frames(data, self._link.dialect.crc_extras)
            left, overtaken = self._forward_all(frames, given_at(record))
            unsent = len(frames) - left - len(overtaken)
        except ValueError as error:
            raise HandlerError(str(error), error_code="MAVLINK_FRAMES_INVALID") from error
        told = {"frames": len(frames), "sent": left}
        self.forwarded += left
        if unsent:
            self.unsent += unsent
            self._complain(unsent)
        if overtaken:
            raise HandlerError(str(overtaken[0]), error_code=overtaken[0].code, data=told)
        return told if record.wants_reply else None

    def _forward_all(self, frames: list[Frame], given: Given | None) -> tuple[int, list[OrderOvertaken]]:
        """How many left, and why others did not. One does not hold up the others: a stop may be among them."""
        left, overtaken = 0, list[OrderOvertaken]()
        for frame in frames:
            try:
                left += self._forward(frame, given)
            except OrderOvertaken as error:
                overtaken.append(error)
        return left, overtaken

    def _frames_lane(self, record: Record) -> bool | str:
        """Frames that are all for one vehicle keep their order with what their sender orders of it; a stop among them
        waits for nothing. See ``Bus.on``.
        """
        data = record.data
        if not isinstance(data, bytes) or (len(self.fleet.units) < 2 and not may_hold_stop(data)):
            return False
        try:
            frames = whole_frames(data, self._link.dialect.crc_extras)
        except ValueError:
            return False  # it is refused when its turn comes
        if any(frame.msgid in _COMMANDS and is_stop(frame.payload) for frame in frames):
            return True
        if len(self.fleet.units) < 2:
            return False
        targets = {self._fields(frame).get("target_system") or None for frame in frames}
        return self.fleet.lane(targets.pop()) if len(targets) == 1 else False

    def _command_lane(self, record: Record) -> bool | str:
        """What comes down waits for nothing else of its sender: one that is not answered holds up the others so long
        as its sender said.
        """
        try:
            return read_wanted(SendCommand, record.data).comes_down or self.lane(record)
        except OrderInvalid:
            return self.lane(record)  # it is refused when its turn comes

    def _fields(self, frame: Frame) -> dict[str, Any]:
        definition = self._link.dialect.definition(frame.msgid)
        return {} if definition is None else definition.unpack(frame.payload, json_safe=False)

    def _forward(self, frame: Frame, given: Given | None) -> int:
        fields = self._fields(frame)
        system = fields.get("target_system") or None
        if frame.msgid in _COMMANDS:
            self._note_command(fields, system, given)
        elif frame.msgid == _SET_MODE:
            for unit in self._meant(system):
                unit.vehicle.foreign_mode(fields["custom_mode"], given=given)
        return 1 if self._link.forward(frame, system=system) else 0

    def _note_command(self, fields: dict[str, Any], system: int | None, given: Given | None) -> None:
        """A command passes by, to one vehicle or (None) to all: their orders must know of it. Raises OrderOvertaken."""
        params = [fields.get(f"param{place}", 0.0) for place in range(1, 8)]
        if "x" in fields:  # COMMAND_INT
            params[4:] = fields["x"], fields["y"], fields["z"]
        for unit in self._meant(system):
            assert unit.system is not None
            unit.vehicle.foreign_command(fields["command"], params, given=given)()
            unit.vehicle.client.note_foreign((unit.system, fields["target_component"], fields["command"]))

    def _meant(self, system: int | None) -> list[Unit]:
        """The vehicles to which a frame goes; ``system`` None: all."""
        return [unit for unit in self.fleet.units if unit.system is not None and system in (None, unit.system)]

    def _complain(self, number: int) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_EVERY_S:
            self._complained = now
            log.warning("%d frames of other programs found no MAVLink peer, %d so far", number, self.unsent)

    async def _command(self, job: Job[SendCommand]) -> dict[str, Any]:
        wanted, vehicle = job.wanted, job.unit.vehicle
        target = Target(vehicle.heard_lately().system, wanted.component)
        order = wanted.order()
        leaving = vehicle.foreign_command(order.number, order.params, given=given_at(job.record))

        def check() -> None:
            if not wanted.stops and job.record.expired(boot_clock_ns()):
                name = self._link.dialect.enum_name("MAV_CMD", order.number)
                raise OrderOvertaken(f"{name} was given up: its deadline has passed")
            leaving()

        async with aclosing(vehicle.client.run(order, target, check=check)) as acks:
            async for ack in acks:
                if ack.final:
                    return self._ack(ack)
                await job.progress(self._ack(ack))
        raise AssertionError("a command ended without a final acknowledgement")

    def _ack(self, ack: Ack) -> dict[str, Any]:
        return {
            "command": ack.command,
            "result": self._link.dialect.enum_name("MAV_RESULT", ack.result),
            "result_code": ack.result,
            "progress": ack.progress,
            "result_param2": ack.result_param2,
            "doubtful": ack.doubtful,
        }

    async def _reboot(self, job: Job[RebootVehicle]) -> dict[str, Any]:
        seen = await Reboot(job.unit.vehicle, job.wanted.order(), tell=job.progress).run()
        name = None if seen.ack_result is None else self._link.dialect.enum_name("MAV_RESULT", seen.ack_result)
        return {
            "ack_result": seen.ack_result,
            "ack_name": name,
            "sends": seen.sends,
            "dropped": seen.dropped,
            "returned": seen.returned,
        }


def _comes_down(wanted: SendCommand) -> bool:
    return wanted.comes_down


async def _read(job: Job[ReadParams]) -> dict[str, Any]:
    wanted = job.wanted
    names = dict.fromkeys(wanted.names)
    return _outcome(await job.unit.params.read(names, limits=wanted.limits(), timeout=wanted.timeout, tell=job.tell))


async def _write(job: Job[WriteParams]) -> dict[str, Any]:
    wanted = job.wanted
    try:
        items = [one.item() for one in wanted.params]
    except ValueError as error:
        raise OrderInvalid("params.type", str(error), limit="a MAV_PARAM_TYPE of at most four bytes") from None
    limits = wanted.limits(verify=wanted.verify)
    return _outcome(await job.unit.params.write(items, limits=limits, timeout=wanted.timeout, tell=job.tell))


async def _list(job: Job[ListParams]) -> dict[str, Any]:
    lister = job.unit.lister
    values = await lister.list_all(timeout=job.wanted.timeout, tell=job.tell)
    encoding = await job.unit.params.encoding()
    shown, refused = _told_values(values, encoding)
    return {"encoding": encoding, "values": shown, "refused": refused, "how": lister.how}


def _outcome(transfer: Transfer) -> dict[str, Any]:
    encoding = transfer.encoding  # not asked for: the vehicle may be gone, and what it has done is done
    shown, refused = _told_values({str(key): value for key, value in transfer.values.items()}, encoding)
    refused |= {str(key): _told_refusal(refusal) for key, refusal in transfer.refusals.items()}
    return {"encoding": encoding, "values": shown, "refused": refused, "sent": transfer.sent}


def _told_values(
    values: dict[str, ParamValue], encoding: ParamEncoding | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values as they travel: their four bytes, because neither NaN nor an integer's bytes survive JSON as a number."""
    told: dict[str, Any] = {}
    refused: dict[str, Any] = {}
    for name, value in values.items():
        if encoding is None and value.param_type != ParamType.REAL32:
            refused[name] = _told_refusal(ENCODING_UNKNOWN)
        else:
            told[name] = [value.raw.hex(), value.param_type, value.total, value.position]
    return told, refused


def _told_refusal(refusal: Refusal) -> dict[str, Any]:
    return {"code": refusal.code, "reason": refusal.reason, "error": refusal.error}
