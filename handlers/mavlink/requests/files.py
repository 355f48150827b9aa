"""Files of the vehicle, for other programs on the bus: by MAVLink FTP, flight logs, and the shell.

mavlink.ftp.list, .get, .put, .remove, .mkdir, .rmdir, .rename, .crc
mavlink.log.list, .get, .erase
mavlink.shell

What only reads may be run again by who takes over after a crash; it goes on where it was. Nothing else is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from petalbus.handlers.mavlink.requests.replying import Desk, Job, Ready
from petalbus.handlers.mavlink.requests.transfers import Transfers
from petalbus.handlers.mavlink.requests.wanted import Wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mavlink.fleet import Fleet

_AT_ONCE: Final = 4
"""Of each kind, with one vehicle."""

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


class FileRequests(Desk):
    """Answers them."""

    def __init__(self, fleet: Fleet, transfers: Transfers, *, ready: Ready) -> None:
        super().__init__(fleet, ready=ready)
        self._transfers = transfers

    def register(self, bus: Bus) -> None:
        """Handle the records on ``bus``."""
        reading = {
            "ftp.list": self.answer(OnePath, _list, at_once=_AT_ONCE),
            "ftp.get": self.answer(OnePath, self._get, at_once=_AT_ONCE),
            "ftp.crc": self.answer(OnePath, _crc, at_once=_AT_ONCE),
            "log.list": self.answer(ListLogs, _list_logs, at_once=_AT_ONCE),
            "log.get": self.answer(GetLog, self._get_log, at_once=_AT_ONCE),
        }
        changing = {
            "ftp.put": self.answer(PutFile, self._put, at_once=_AT_ONCE),
            "ftp.remove": self.answer(OnePath, _remove, at_once=_AT_ONCE),
            "ftp.rename": self.answer(Rename, _rename, at_once=_AT_ONCE),
            "ftp.mkdir": self.answer(OnePath, _make_folder, at_once=_AT_ONCE),
            "ftp.rmdir": self.answer(OnePath, _remove_folder, at_once=_AT_ONCE),
            "log.erase": self.answer(EraseLogs, _erase_logs, at_once=_AT_ONCE),
            "shell": self.answer(RunCommand, _run, at_once=_AT_ONCE),
        }
        for name, handle in reading.items():
            bus.on(f"mavlink.{name}", concurrency=None, overtakes=self.lane)(handle)
        for name, handle in changing.items():
            bus.on(f"mavlink.{name}", redelivery="report", concurrency=None, overtakes=self.lane)(handle)

    async def _get(self, job: Job[OnePath]) -> dict[str, Any]:
        path = job.wanted.path
        place = await self._transfers.place("ftp", f"{job.unit.system} {path}")
        await job.unit.ftp.download(path, place, tell=job.tell)
        return {"path": path, "file": str(place)}

    async def _put(self, job: Job[PutFile]) -> dict[str, Any]:
        file = await self._transfers.given(job.wanted.file)
        await job.unit.ftp.upload(file, job.wanted.path, tell=job.tell)
        return {"path": job.wanted.path}

    async def _get_log(self, job: Job[GetLog]) -> dict[str, Any]:
        wanted = job.wanted
        place = await self._transfers.place("log", f"{job.unit.system} {wanted.id}")
        info = await job.unit.logs.download_to(
            wanted.id, place, size=wanted.size, tell=job.tell, timeout=wanted.timeout
        )
        return {"id": info.id, "size": info.size, "time_utc": info.time_utc, "file": str(place)}


async def _list(job: Job[OnePath]) -> dict[str, Any]:
    entries = await job.unit.ftp.list_folder(job.wanted.path)
    return {"path": job.wanted.path, "entries": [[entry.name, entry.size] for entry in entries]}


async def _crc(job: Job[OnePath]) -> dict[str, Any]:
    return {"path": job.wanted.path, "crc32": await job.unit.ftp.crc32(job.wanted.path)}


async def _remove(job: Job[OnePath]) -> dict[str, Any]:
    await job.unit.ftp.remove(job.wanted.path)
    return {"path": job.wanted.path}


async def _make_folder(job: Job[OnePath]) -> dict[str, Any]:
    await job.unit.ftp.make_folder(job.wanted.path)
    return {"path": job.wanted.path}


async def _remove_folder(job: Job[OnePath]) -> dict[str, Any]:
    await job.unit.ftp.remove_folder(job.wanted.path)
    return {"path": job.wanted.path}


async def _rename(job: Job[Rename]) -> dict[str, Any]:
    await job.unit.ftp.rename(job.wanted.old, job.wanted.new)
    return {"old": job.wanted.old, "new": job.wanted.new}


async def _list_logs(job: Job[ListLogs]) -> dict[str, Any]:
    logs = await job.unit.logs.list_logs(timeout=job.wanted.timeout)
    return {"logs": [{"id": one.id, "size": one.size, "time_utc": one.time_utc} for one in logs]}


async def _erase_logs(job: Job[EraseLogs]) -> dict[str, Any]:
    left = await job.unit.logs.erase_all(timeout=job.wanted.timeout)
    return {"left": [{"id": one.id, "size": one.size} for one in left]}


async def _run(job: Job[RunCommand]) -> dict[str, Any]:
    wanted, shell = job.wanted, job.unit.shell
    output = await shell.run(wanted.command, settle=wanted.settle, timeout=wanted.timeout)
    return {"output": output, "complete": shell.complete}
