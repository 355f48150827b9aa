"""Logs that came over HTTP, on the disk until the store has them: also over restarts, and while we are offline.

<folder>/<id>/log/<name>     a log that has come whole; the id is its upload's
             /upload.json    what else the caller said
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.http.errors import Refused
from petalbus.handlers.bucket.files import ArrivingLog
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.petals.proxies.bucket.proxy import S3BucketProxy

GIB: Final = 1 << 30
_WRITE_BYTES: Final = 1 << 20
_LEFT_FREE: Final = 256 << 20
_AGAIN_S: Final = 5.0
_LOOK_S: Final = 30.0
"""Between two looks whether somebody has put back what could not be stored."""

_LIVE: Final = (Status.PENDING, Status.DELIVERED, Status.PROCESSING)
_LONG_S: Final = 300 * 86_400.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spooled:
    """A log in the folder. ``more``: how ``upload_file`` is called beside its path."""

    id: str
    path: Path
    size: int
    more: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a log could not be stored, and whom to ask whether its upload was put back."""

    error: str
    proxy: S3BucketProxy


class Spool:
    """``folder``: None for one of this process's own. ``limit``: bytes of all that waits."""

    def __init__(self, folder: Path | None = None, *, limit: int = 8 * GIB) -> None:
        self._folder = folder
        self._limit = limit
        self._waiting: dict[str, Spooled] = {}
        self._failed: dict[str, _Failed] = {}
        self._arriving = 0
        self._coming: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def describe(self) -> dict[str, Any]:
        """What waits here, and what could not be stored."""
        waiting = [
            {"upload_id": one.id, "filename": one.path.name, "size": one.size, "error": self._error(one)}
            for one in self._waiting.values()
        ]
        return {"waiting": waiting, "bytes": self._used(), "limit": self._limit}

    async def receive(
        self,
        name: str,
        data: AsyncIterator[bytes],
        *,
        size: int | None,
        room: int,
        documented: bool,
        more: dict[str, str],
    ) -> Spooled:
        """Write a log while it comes.

        ``size``: where it is known; ``room``: about how much will come. Raises FileRefused; Refused with 507, 400.
        """
        arriving = ArrivingLog(name, size=size, accept_documented=documented)
        upload = new_id()
        place: Path | None = None
        self._coming.add(upload)  # a look at what is left over must not take it for that
        try:
            await self._make_room(room)
            place = await asyncio.to_thread(self._place, upload, room)
            path = place / "log" / name
            self._arriving += room
            try:
                await self._write(path, arriving, data)
            finally:
                self._arriving -= room
            _require_whole(arriving.size, size)
            await asyncio.to_thread(_seal, place, more)
        except OSError as error:
            await self._forget(place)
            if error.errno in _FULL:
                raise _full(f"the disk is full ({error.strerror})") from error
            raise
        except BaseException:
            await self._forget(place)
            raise
        finally:
            self._coming.discard(upload)
        made = self._waiting[upload] = Spooled(upload, path, arriving.size, more)
        return made

    async def upload(self, proxy: S3BucketProxy, one: Spooled, *, patience: float) -> dict[str, Any]:
        """Have it stored, as ``upload_file`` answers. What could not be stored in ``patience`` seconds is, later."""
        try:
            told = await proxy.upload_file(one.path, upload_id=one.id, patience=patience, **_arguments(one))
        except BaseException:
            self._go_on(proxy, one)  # who asked is gone: the log is not
            raise
        if told.get("queued"):
            self._go_on(proxy, one)
        else:
            await self.discard(one)
        return told

    async def discard(self, one: Spooled) -> None:
        """It is not needed any more."""
        self._waiting.pop(one.id, None)
        self._failed.pop(one.id, None)
        await self._forget(one.path.parent.parent)

    async def resume(self, proxy: S3BucketProxy) -> None:
        """Go on with what waits since an earlier run; what had not come whole is deleted."""
        for one in await asyncio.to_thread(self._left):
            self._waiting[one.id] = one
            self._go_on(proxy, one)

    async def close(self) -> None:
        """Wait for nothing any more; what waits stays on the disk."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._waiting.clear()
        self._failed.clear()

    def _go_on(self, proxy: S3BucketProxy, one: Spooled) -> None:
        task = asyncio.create_task(self._follow(proxy, one), name=f"bucket.spool {one.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, proxy: S3BucketProxy, one: Spooled) -> None:
        while True:
            told = await proxy.upload_file(one.path, upload_id=one.id, patience=_LONG_S, **_arguments(one))
            if told.get("success"):
                log.info("%s, which came over HTTP, is stored as %s", one.path.name, told.get("s3_key"))
                await self.discard(one)
                return
            if told.get("status") == 499:  # it was cancelled
                await self.discard(one)
                return
            if told.get("status") != 503:
                self._failed[one.id] = _Failed(str(told.get("error")), proxy)
                log.error("%s, which came over HTTP, is not stored, and kept: %s", one.path, told.get("error"))
                if not await self._put_back(proxy, one):
                    return
                log.info("%s, which came over HTTP, is tried again: its upload was put back", one.path)
                self._failed.pop(one.id, None)
            await asyncio.sleep(_AGAIN_S)

    async def _put_back(self, proxy: S3BucketProxy, one: Spooled) -> bool:
        """Wait until a dead letter is an upload again; False when there is nothing to wait for any more."""
        while one.id in self._waiting:
            try:
                status = await proxy.upload_status(one.id)
            except (BusError, ServerError, TimeoutError):
                status = Status.UNKNOWN  # it is told later
            if status in _LIVE:
                return True
            if status is None:
                return False
            if status in (Status.COMPLETED, Status.CANCELLED):  # both ends came between two looks
                await self.discard(one)
                return False
            await asyncio.sleep(_LOOK_S)
        return False

    async def _write(self, path: Path, arriving: ArrivingLog, data: AsyncIterator[bytes]) -> None:
        pending: list[bytes] = []
        held = 0
        async for piece in data:
            if fit := arriving.take(piece):
                pending.append(fit)
                held += len(fit)
            if held >= _WRITE_BYTES:
                await asyncio.to_thread(_append, path, pending)
                pending, held = [], 0
        await asyncio.to_thread(_append, path, [*pending, arriving.end()], last=True)

    def _used(self) -> int:
        return self._arriving + sum(one.size for one in self._waiting.values())

    def _error(self, one: Spooled) -> str | None:
        return self._failed[one.id].error if one.id in self._failed else None

    async def _make_room(self, size: int) -> None:
        """What could not be stored goes when there is no room, the oldest first; not what was put back meanwhile."""
        for name, failed in list(self._failed.items()):
            if self._used() + size <= self._limit:
                return
            try:
                status = await failed.proxy.upload_status(name)
            except (BusError, ServerError, TimeoutError) as error:
                log.info("what could not be stored stays, as nobody knows whether it was put back: %s", error)
                return
            if status in _LIVE or name not in self._waiting or name not in self._failed:
                continue
            one = self._waiting[name]
            log.error("%s is given up: the room is needed, and it could not be stored (%s)", one.path, failed.error)
            await self.discard(one)

    def _place(self, upload: str, size: int) -> Path:
        """The place of a new log. Blocks. Raises Refused where it has no room, OSError."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="petalbus-bucket-", dir=_lasting()))
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._used() + size > self._limit:
            raise _full(f"{self._used()} bytes of logs wait for the store here; {self._limit} may")
        if shutil.disk_usage(self._folder).free - size < _LEFT_FREE:
            raise _full(f"{self._folder} has less than {size + _LEFT_FREE} bytes free")
        place = self._folder / upload
        (place / "log").mkdir(parents=True, mode=0o700)
        return place

    def _left(self) -> list[Spooled]:
        """What an earlier run left. Blocks."""
        found = []
        for place in sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else []:
            if place.name in self._coming:
                continue
            try:
                more = json.loads((place / "upload.json").read_text(encoding="utf-8"))
                (path,) = (place / "log").iterdir()
                found.append(Spooled(place.name, path, path.stat().st_size, more))
            except FileNotFoundError:
                shutil.rmtree(place, ignore_errors=True)  # it had not come whole, and nobody was told that it had
            except (OSError, ValueError) as error:
                log.error("%s is left as it is: it cannot be read now (%s)", place, error)  # noqa: TRY400  # a sentence is enough
        return found

    async def _forget(self, place: Path | None) -> None:
        if place is not None:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))


def _arguments(one: Spooled) -> dict[str, Any]:
    return {name: one.more[name] for name in ("custom_filename", "custom_s3_key") if one.more.get(name)}


def _require_whole(came: int, size: int | None) -> None:
    if size is not None and came != size:
        raise Refused(400, "incomplete", f"{came} of {size} bytes came: send it again")


def _append(path: Path, pieces: list[bytes], *, last: bool = False) -> None:
    """Write them, and leave room on the disk for others. Blocks."""
    with path.open("ab") as file:
        file.writelines(pieces)
        disk = os.fstatvfs(file.fileno())
        if disk.f_bavail * disk.f_frsize < _LEFT_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if last:
            file.flush()
            os.fsync(file.fileno())


def _seal(place: Path, more: dict[str, str]) -> None:
    """Make it durable: from now on it is a log that is to be stored. Blocks."""
    part = place / "upload.json.part"
    with part.open("w", encoding="utf-8") as file:
        json.dump(more, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(place / "upload.json")
    for folder in (place / "log", place, place.parent):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _lasting() -> str | None:
    """A folder for temporary files on a disk: the usual one may be in memory."""
    return None if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK) else "/var/tmp"  # noqa: S108  # asked for


def _full(text: str) -> Refused:
    return Refused(507, "no_room", f"the log cannot be taken: {text}", {"Retry-After": "60"})
