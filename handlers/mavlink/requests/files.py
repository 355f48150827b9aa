"""Files of the vehicle, for other programs on the bus: by MAVLink FTP, flight logs, and the shell.

mavlink.ftp.list, .get, .put, .remove, .mkdir, .rmdir, .rename, .crc
mavlink.log.list, .get, .erase
mavlink.shell

What only reads may be run again by who takes over after a crash; it goes on where it was. Nothing else is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.files.logs import LogClient
from petalbus.handlers.mavlink.files.shell import Shell
from petalbus.handlers.mavlink.requests.replying import teller, told
from petalbus.handlers.mavlink.requests.transfers import Transfers
from petalbus.handlers.mavlink.requests.wanted import Wanted, read_wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.flight.vehicle import Vehicle
    from petalbus.handlers.mavlink.wire.calls import Calls
    from petalbus.schemas.record import Record

_AT_ONCE: Final = 2

RemotePath = Annotated[str, Field(min_length=1, max_length=239)]


class OnePath(Wanted):
    """``mavlink.ftp.list``, ``.get``, ``.remove``, ``.mkdir``, ``.rmdir`` and ``.crc``."""

    path: RemotePath


class PutFile(Wanted):
    """``mavlink.ftp.put``: ``file`` is a name in the folder for transfers."""

    path: RemotePath
    file: Annotated[str, Field(min_length=1, max_length=255)]


class Rename(Wanted):
    """``mavlink.ftp.rename``."""

    old: RemotePath
    new: RemotePath


class ListLogs(Wanted):
    """``mavlink.log.list``."""

    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0


class GetLog(Wanted):
    """``mavlink.log.get``: ``timeout`` is how long it may be quiet (s), ``size`` how many bytes of it are wanted."""

    id: Annotated[int, Field(ge=0, le=65535)]
    size: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0, le=600)] = 10.0


class EraseLogs(Wanted):
    """``mavlink.log.erase``."""

    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0


class RunCommand(Wanted):
    """``mavlink.shell``: ``settle`` and ``timeout`` as ``Shell.run`` takes them."""

    command: Annotated[str, Field(min_length=1, max_length=1024)]
    settle: Annotated[float, Field(gt=0, le=60)] = 0.5
    timeout: Annotated[float, Field(gt=0, le=600)] = 3.0


class FileRequests:
    """Answers them for one vehicle."""

    def __init__(self, calls: Calls, vehicle: Vehicle, transfers: Transfers) -> None:
        self.ftp = FtpClient(calls, vehicle)
        self.logs = LogClient(calls, vehicle)
        self.shell = Shell(calls, vehicle)
        self._transfers = transfers

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        reading = {"ftp.list": self._list, "ftp.get": self._get, "ftp.crc": self._crc}
        reading |= {"log.list": self._list_logs, "log.get": self._get_log}
        changing = {"ftp.put": self._put, "ftp.remove": self._remove, "ftp.rename": self._rename}
        changing |= {"ftp.mkdir": self._make_folder, "ftp.rmdir": self._remove_folder}
        changing |= {"log.erase": self._erase_logs, "shell": self._run}
        for name, work in reading.items():
            bus.on(f"mavlink.{name}", concurrency=_AT_ONCE)(told(work))
        for name, work in changing.items():
            bus.on(f"mavlink.{name}", redelivery="report", concurrency=_AT_ONCE)(told(work))

    # -- files --------------------------------------------------------------------------------------------------------

    async def _list(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        entries = await self.ftp.list_folder(wanted.path)
        return {"path": wanted.path, "entries": [[entry.name, entry.size] for entry in entries]}

    async def _get(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        place = await self._transfers.place("ftp", wanted.path)
        await self.ftp.download(wanted.path, place, tell=teller(context))
        return {"path": wanted.path, "file": str(place)}

    async def _crc(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        return {"path": wanted.path, "crc32": await self.ftp.crc32(wanted.path)}

    async def _put(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(PutFile, record.data)
        file = await self._transfers.given(wanted.file)
        await self.ftp.upload(file, wanted.path, tell=teller(context))
        return {"path": wanted.path}

    async def _remove(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        await self.ftp.remove(wanted.path)
        return {"path": wanted.path}

    async def _make_folder(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        await self.ftp.make_folder(wanted.path)
        return {"path": wanted.path}

    async def _remove_folder(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(OnePath, record.data)
        await self.ftp.remove_folder(wanted.path)
        return {"path": wanted.path}

    async def _rename(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(Rename, record.data)
        await self.ftp.rename(wanted.old, wanted.new)
        return {"old": wanted.old, "new": wanted.new}

    # -- logs and shell -----------------------------------------------------------------------------------------------

    async def _list_logs(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(ListLogs, record.data)
        logs = await self.logs.list_logs(timeout=wanted.timeout)
        return {"logs": [{"id": one.id, "size": one.size, "time_utc": one.time_utc} for one in logs]}

    async def _get_log(self, record: Record, context: Context) -> dict[str, Any]:
        wanted = read_wanted(GetLog, record.data)
        place = await self._transfers.place("log", str(wanted.id))
        info = await self.logs.download_to(
            wanted.id, place, size=wanted.size, tell=teller(context), timeout=wanted.timeout
        )
        return {"id": info.id, "size": info.size, "time_utc": info.time_utc, "file": str(place)}

    async def _erase_logs(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(EraseLogs, record.data)
        left = await self.logs.erase_all(timeout=wanted.timeout)
        return {"left": [{"id": one.id, "size": one.size} for one in left]}

    async def _run(self, record: Record, _context: Context) -> dict[str, Any]:
        wanted = read_wanted(RunCommand, record.data)
        output = await self.shell.run(wanted.command, settle=wanted.settle, timeout=wanted.timeout)
        return {"output": output, "complete": self.shell.complete}
