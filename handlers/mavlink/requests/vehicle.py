"""What other programs on the bus may ask the vehicle for, beside ``command``: raw frames, any command, parameters.

mavlink.send -> frames out                mavlink.command -> acknowledgement
mavlink.param.get, .set, .list -> values  mavlink.reboot -> what was seen

Everything is registered with ``redelivery="report"``: after a crash nobody knows what left, so nothing leaves twice.
Reading parameters is the exception, it changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import HandlerError
from petalbus.handlers.mavlink.decode import CONTENT_TYPE
from petalbus.handlers.mavlink.errors import OrderInvalid
from petalbus.handlers.mavlink.flight.commands import Ack, Target
from petalbus.handlers.mavlink.flight.reboot import Reboot
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.listing import ParamLister
from petalbus.handlers.mavlink.params.transfer import ENCODING_UNKNOWN, Refusal, Transfer
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, ParamValue
from petalbus.handlers.mavlink.requests.replying import progress, teller, told
from petalbus.handlers.mavlink.requests.wanted import (
    ListParams,
    ReadParams,
    RebootVehicle,
    SendCommand,
    WriteParams,
    read_wanted,
)
from petalbus.handlers.mavlink.wire.framing import Frame, whole_frames

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.files.ftp import FtpClient
    from petalbus.handlers.mavlink.flight.vehicle import Vehicle
    from petalbus.handlers.mavlink.wire.link import Link
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

WORKERS: Final = 72
"""Handlers of the app ``vehicle`` that may run at once: they wait for the vehicle, they do not compute."""

_PARAM_OPERATIONS: Final = 6
_COMMANDS: Final = frozenset((75, 76))
_COMPLAIN_EVERY_S: Final = 10.0

Ready = Callable[["Record"], Awaitable[None]]
"""Waits until a vehicle may be there. Raises NotConnected when the handler is stopping."""


class Requests:
    """Answers the ``mavlink.*`` request records of one link."""

    def __init__(self, link: Link, vehicle: Vehicle, ftp: FtpClient, *, ready: Ready) -> None:
        self.params = ParamClient(
            lambda msgid, payload, system: link.send_payload(msgid, payload, system=system),
            vehicle,
            system=link.packer.system,
            component=link.packer.component,
        )
        self._lister = ParamLister(self.params, ftp, vehicle)
        self.forwarded = 0
        self.unsent = 0
        """Frames that found no peer."""
        self._link = link
        self._vehicle = vehicle
        self._ready = ready
        self._complained = float("-inf")

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        bus.on("mavlink.send", redelivery="report", concurrency=None)(self._send)
        bus.on("mavlink.command", redelivery="report", concurrency=_PARAM_OPERATIONS)(told(self._command))
        bus.on("mavlink.reboot", redelivery="report", concurrency=1)(told(self._reboot))
        bus.on("mavlink.param.get", concurrency=_PARAM_OPERATIONS)(told(self._read))
        bus.on("mavlink.param.set", redelivery="report", concurrency=_PARAM_OPERATIONS)(told(self._write))
        bus.on("mavlink.param.list", concurrency=_PARAM_OPERATIONS)(told(self._list))

    async def _send(self, record: Record) -> dict[str, int] | None:
        """Send frames that another program packed, in their order, under our identity."""
        data = record.data
        if not isinstance(data, bytes) or record.content_type != CONTENT_TYPE:
            problem = f"mavlink.send carries whole MAVLink frames as {CONTENT_TYPE}, not {type(data).__name__}"
            raise HandlerError(problem, error_code="MAVLINK_FRAMES_INVALID")
        try:
            frames = whole_frames(data, self._link.dialect.crc_extras)
            left = sum(self._forward(frame) for frame in frames)
        except ValueError as error:
            raise HandlerError(str(error), error_code="MAVLINK_FRAMES_INVALID") from error
        self.forwarded += left
        if left < len(frames):
            self.unsent += len(frames) - left
            self._complain(len(frames) - left)
        return {"frames": len(frames), "sent": left} if record.wants_reply else None

    def _forward(self, frame: Frame) -> int:
        definition = self._link.dialect.definition(frame.msgid)
        fields = {} if definition is None else definition.unpack(frame.payload, json_safe=False)
        system = fields.get("target_system") or None
        if frame.msgid in _COMMANDS and system is not None:
            self._vehicle.note_foreign_command(fields["command"], fields["param1"])
            self._vehicle.client.note_foreign((system, fields["target_component"], fields["command"]))
        return 1 if self._link.forward(frame, system=system) else 0

    def _complain(self, number: int) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_EVERY_S:
            self._complained = now
            log.warning("%d frames of other programs found no MAVLink peer, %d so far", number, self.unsent)

    async def _command(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(SendCommand, record.data)
        await self._ready(record)
        target = Target(self._vehicle.heard_lately().system, wanted.component)
        self._vehicle.note_foreign_command(wanted.command, (wanted.params or [0.0])[0] or 0.0)
        async with aclosing(self._vehicle.client.run(wanted.order(), target)) as acks:
            async for ack in acks:
                if ack.final:
                    return self._ack(ack)
                await progress(context, self._ack(ack))
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

    async def _reboot(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(RebootVehicle, record.data)
        await self._ready(record)

        async def tell(stage: dict[str, Any]) -> None:
            await progress(context, stage)

        seen = await Reboot(self._vehicle, wanted.order(), tell=tell).run()
        name = None if seen.ack_result is None else self._link.dialect.enum_name("MAV_RESULT", seen.ack_result)
        return {
            "ack_result": seen.ack_result,
            "ack_name": name,
            "sends": seen.sends,
            "dropped": seen.dropped,
            "returned": seen.returned,
        }

    async def _read(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(ReadParams, record.data)
        await self._ready(record)
        names = dict.fromkeys(wanted.names)
        transfer = await self.params.read(names, limits=wanted.limits(), timeout=wanted.timeout, tell=teller(context))
        return self._outcome(transfer)

    async def _write(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(WriteParams, record.data)
        try:
            items = [one.item() for one in wanted.params]
        except ValueError as error:
            raise OrderInvalid("params.type", str(error), limit="a MAV_PARAM_TYPE of at most four bytes") from None
        await self._ready(record)
        transfer = await self.params.write(
            items, limits=wanted.limits(verify=wanted.verify), timeout=wanted.timeout, tell=teller(context)
        )
        return self._outcome(transfer)

    async def _list(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(ListParams, record.data)
        await self._ready(record)
        values = await self._lister.list_all(timeout=wanted.timeout, tell=teller(context))
        encoding = await self.params.encoding()
        shown, refused = _told_values(values, encoding)
        return {"encoding": encoding, "values": shown, "refused": refused, "how": self._lister.how}

    def _outcome(self, transfer: Transfer) -> dict[str, Any]:
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
