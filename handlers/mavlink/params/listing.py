"""All parameters of a vehicle, in the quickest way that it has.

ArduPilot: one small file over MAVLink FTP. PX4: a number made of all parameters; where it is the one of the last list,
that list still holds. Everybody, and whenever those fail: the list, with its gaps filled.

PX4's number leaves out the parameters that it changes by itself (volatile ones: flight times, learnt biases; it does so
when it is disarmed). So a list is not kept for long, and not over a change of arming.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected, ParamsIncomplete
from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.client import ParamClient, Tell
from petalbus.handlers.mavlink.params.gathering import HASH
from petalbus.handlers.mavlink.params.pack import PARAM_FILE, PackedParam, ParamPack, decode_param_pack
from petalbus.handlers.mavlink.params.transfer import Limits
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, ParamValue, encode_value

log = logging.getLogger(__name__)

_FTP_BIT: Final = 32
_HASH_LIMITS: Final = Limits(window=1, resend=0.3, retries=2)
_HASH_S: Final = 1.0
_PART_FOR_FILE: Final = 0.6
"""Of the time allowed; what is left is for the list."""
_KNOWN_S: Final = 60.0
"""How long a list may be given again."""
_BURST_S: Final = 2.0
"""How long to wait for the end of a burst that nobody wants, before the file is given up."""
_LEAST_LIST_S: Final = 1.0
"""For the list, also where nothing of the time allowed is left."""


@dataclass(frozen=True, slots=True)
class _Known:
    system: int
    hash: bytes
    values: dict[str, ParamValue]
    armed: bool
    since: float

    def holds(self, system: int, told: bytes | None, *, armed: bool) -> bool:
        """Whether the vehicle has the same values still."""
        young = time.monotonic() - self.since < _KNOWN_S
        return young and (self.system, self.hash, self.armed) == (system, told, armed)


class ParamLister:
    """Lists them. ``how`` says which way the last list came: ``file``, ``known`` or ``list``."""

    def __init__(self, client: ParamClient, ftp: FtpClient, vehicle: Vehicle) -> None:
        self.how = ""
        self._client = client
        self._ftp = ftp
        self._vehicle = vehicle
        self._known: _Known | None = None

    async def list_all(self, *, timeout: float, tell: Tell | None = None) -> dict[str, ParamValue]:
        """All parameters by name, within ``timeout`` seconds. Raises NotConnected, ParamsIncomplete."""
        end = time.monotonic() + timeout
        encoding = await self._client.encoding()
        state = self._vehicle.heard_lately()
        if state.autopilot == Autopilot.ARDUPILOT and encoding is not None:
            found = await self._from_file(timeout * _PART_FOR_FILE, encoding, tell)
            if found is not None:
                return found
        told = await self._hash() if state.autopilot == Autopilot.PX4 else None
        known = self._known
        if known is not None and known.holds(state.system, told, armed=state.armed):
            self.how = "known"
            return dict(known.values)
        self.how = "list"
        begun, armed = time.monotonic(), state.armed
        values = await self._client.list_all(timeout=max(_LEAST_LIST_S, end - begun), tell=tell)
        after = None if told is None else await self._hash()
        if after is not None and after != told:  # something changed while they came: once more
            told, begun = after, time.monotonic()
            try:
                values = await self._client.list_all(timeout=max(_LEAST_LIST_S, end - begun), tell=tell)
            except ParamsIncomplete as error:
                log.info("the parameters changed while they were listed, and not all came a second time: %s", error)
                return values
            after = await self._hash()
        if after is not None and after == told:
            self._known = _Known(state.system, after, dict(values), armed, begun)
        return values

    async def _from_file(
        self, seconds: float, encoding: ParamEncoding, tell: Tell | None
    ) -> dict[str, ParamValue] | None:
        """What ArduPilot's file says; None where it cannot be had."""
        try:
            async with asyncio.timeout(seconds):
                pack = await self._read_file()
            if pack is None:
                return None
            found = _values(decode_param_pack(pack), encoding)
        except NotConnected:
            raise
        except (MavlinkError, ValueError, TimeoutError) as error:
            log.info("the parameters do not come as a file, so they are listed: %s", error)
            return None
        self.how = "file"
        self._client.learn(found.values())
        if tell is not None:
            await tell(len(found), len(found))
        return found

    async def _read_file(self) -> bytes | None:
        """The file; None where the vehicle says that it has no files. That is asked meanwhile, not before."""
        reading = asyncio.create_task(self._ftp.read(PARAM_FILE, patience=_BURST_S), name="mavlink.params.file")
        asking = asyncio.create_task(self._has_files(), name="mavlink.params.version")
        try:
            await asyncio.wait({reading, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and not await asking:
                return None
            return await reading
        finally:
            for task in (reading, asking):
                task.cancel()
            await asyncio.gather(reading, asking, return_exceptions=True)

    async def _has_files(self) -> bool:
        """Whether the vehicle may have MAVLink FTP: True also where it does not tell."""
        state = self._vehicle.heard_lately()
        if state.capabilities is None:
            await self._client.ask_version(state)
        return bool((state.capabilities or _FTP_BIT) & _FTP_BIT)

    async def _hash(self) -> bytes | None:
        """PX4's number for all parameters; None where it does not tell one."""
        transfer = await self._client.read([HASH], limits=_HASH_LIMITS, timeout=_HASH_S)
        value = transfer.values.get(HASH)
        return None if value is None else value.raw


def _values(pack: ParamPack, encoding: ParamEncoding) -> dict[str, ParamValue]:
    """As the list would have told them."""
    if len(pack.params) != pack.total:
        raise ValueError(f"the file holds {len(pack.params)} of {pack.total} parameters")
    return {
        one.name: ParamValue(one.name, _as_told(one, encoding), one.kind, place, pack.total)
        for place, one in enumerate(pack.params)
    }


def _as_told(one: PackedParam, encoding: ParamEncoding) -> bytes:
    """The four bytes of PARAM_VALUE: ArduPilot rounds an integer that no float can hold, seconds since 2016 say."""
    if encoding is ParamEncoding.C_CAST and one.kind is not ParamType.REAL32:
        return struct.pack("<f", one.value)
    return encode_value(one.value, one.kind, encoding)
