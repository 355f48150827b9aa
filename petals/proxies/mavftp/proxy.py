"""MavLinkFTPProxy: files on the vehicle. It goes through the vehicle's proxy, and is ready when that is."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Self

from petalbus.petals.models.mavlink import ULogInfo
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.mavlink.link import VehicleError

if TYPE_CHECKING:
    from petalbus.petals.proxies.mavlink.proxy import MavLinkExternalProxy

log = logging.getLogger("MavLinkFTPProxy")

ProgressCB = Callable[[float], Awaitable[None]]
"""Told which part is done, 0.0 to 1.0."""

_LIST_S: Final = 20.0
_ENTRIES_S: Final = 5.0
_DEPTH: Final = 4
_LOG: Final = ".ulg"
_LOGS: Final = (_LOG, ".ulge", ".px4log", ".bin")
"""What flight logs end with: PX4's, and ArduPilot's."""
_RESTARTED: Final = (
    "PX4's logger was stopped and started again, without the options of its startup script: it logs while armed only, "
    "and names files by number. Reboot the autopilot to have it as before"
)


class MavLinkFTPProxy(BaseProxy):
    """Lists, fetches and deletes. Without a vehicle within ``connection_timeout`` seconds each raises RuntimeError.

    Paths may lack their first slash, as existing petals write them (``fs/microsd/log``).
    """

    kind = "ftp_mavlink"

    def __init__(self, mavlink_proxy: MavLinkExternalProxy) -> None:
        super().__init__()
        self.mavlink_proxy = mavlink_proxy
        self._watching = False

    async def start(self) -> None:
        """Follow the vehicle's proxy."""
        if not self._watching:
            self._watching = True
            self.mavlink_proxy.watch(self._follow)
        self._follow()

    async def stop(self) -> None:
        """Be not ready any more."""
        self._watching = False
        self._set_ready(False, "stopped")

    async def list_ulogs(self, base: str | None = None, connection_timeout: float = 3.0) -> list[ULogInfo]:
        """All ``.ulg`` files below ``base`` (the vehicle's log folder), the newest first, with the time of each.

        The time is that which the vehicle tells of the log of the same size; 0 where none fits for certain.
        """
        await self._vehicle(connection_timeout)
        found = await self._walk(base or self.mavlink_proxy.root_sd_path, _LOG)
        times = await self._times()
        sized = [(path, size, times.get(size, 0)) for path, size in found]
        sized.sort(key=lambda one: (one[2], one[0]), reverse=True)
        return [
            ULogInfo(index=index, remote_path=path, size_bytes=size, utc=utc)
            for index, (path, size, utc) in enumerate(sized)
        ]

    async def download_ulog(
        self,
        remote_path: str,
        local_path: Path,
        completed_event: threading.Event,
        on_progress: ProgressCB | None = None,
        cancel_event: threading.Event | None = None,
        connection_timeout: float = 3.0,
        n_attempts: int = 3,
    ) -> Path:
        """Fetch a file to ``local_path``, which is given back; a further attempt goes on where the last one ended.

        ``completed_event`` is set when it is there. Raises RuntimeError when ``cancel_event`` was set before.
        """
        wanted = {"path": _absolute(remote_path)}
        size = await self._size(wanted["path"]) if on_progress is not None else 0

        async def tell(done: int) -> None:
            if on_progress is not None and size:
                await on_progress(min(1.0, done / size))

        for attempt in range(1, n_attempts + 1):
            await self._vehicle(connection_timeout)
            try:
                told = await self.mavlink_proxy.transfer("mavlink.ftp.get", wanted, callback=tell, cancel=cancel_event)
            except VehicleError as error:
                if attempt == n_attempts or error.error_code == "FTP_REFUSED":
                    raise
                log.warning("%s was not fetched, attempt %d of %d: %s", remote_path, attempt, n_attempts, error)
                continue
            if told is None:
                raise RuntimeError(f"fetching {remote_path} was cancelled")
            await asyncio.to_thread(_moved, Path(told["file"]), Path(local_path))
            await tell(size)
            completed_event.set()
            return Path(local_path)
        raise ValueError(f"n_attempts={n_attempts}: at least one attempt is needed")

    async def delete_file(self, remote_path: str, connection_timeout: float = 3.0, stop_logger: bool = True) -> None:
        """Delete a file. Raises RuntimeError when it is still there, and for a log while the vehicle is armed.

        ``stop_logger``: PX4's logger is stopped meanwhile, so that it does not hold the file. While the vehicle is
        armed the logger is left alone, for other files than logs, too.
        """
        await self._vehicle(connection_timeout)
        is_log = remote_path.lower().endswith(_LOGS)
        if is_log:
            self.mavlink_proxy.refuse_armed(f"delete {remote_path}")
        wanted = stop_logger and not self.mavlink_proxy.known_armed
        async with _LoggerStopped(self.mavlink_proxy, wanted=wanted):
            if not await self._delete(remote_path, disarmed=is_log or wanted):
                raise RuntimeError(f"{remote_path} could not be deleted, neither by the shell nor by MAVFTP")

    async def delete_all_logs(
        self,
        base: str | None = None,
        connection_timeout: float = 3.0,
        progress_callback: Callable[[int, int], Any] | None = None,
    ) -> dict[str, Any]:
        """Delete all ``.ulg`` files below ``base``, and folders that are empty then.

        ``{"total", "deleted", "failed", "files": [{"path", "size_bytes", "status", "error"}]}``, and ``"note"`` where
        the logger runs with other options now. ``progress_callback(done, total)`` may be async. Raises RuntimeError
        while the vehicle is armed; where it is armed meanwhile the rest of the logs stays ("failed").
        """
        await self._vehicle(connection_timeout)
        self.mavlink_proxy.refuse_armed("delete all logs")
        root = base or self.mavlink_proxy.root_sd_path
        found = await self._walk(root, _LOG)
        async with (stopped := _LoggerStopped(self.mavlink_proxy, wanted=bool(found))):
            errors = await self._delete_each(found, progress_callback)
            for folder in sorted({str(PurePosixPath(path).parent) for path, _ in found} - {root.rstrip("/")}):
                if not self.mavlink_proxy.known_armed:
                    await self._remove_folder(folder)
        files = [_result(path, size, error) for (path, size), error in zip(found, errors, strict=True)]
        deleted = errors.count(None)
        told = {"total": len(files), "deleted": deleted, "failed": len(files) - deleted, "files": files}
        return told | {"note": _RESTARTED} if stopped.restarted else told

    async def detect_error_logs(self, remote_path: str, connection_timeout: float = 3.0) -> dict[str, Any]:
        """The files ``fail_*.log`` in a folder: ``{"total", "files": [{"path", "size_bytes"}]}``."""
        await self._vehicle(connection_timeout)
        found = await self._error_logs(remote_path)
        return {"total": len(found), "files": [{"path": path, "size_bytes": size} for path, size in found]}

    async def clear_error_logs(self, remote_path: str, connection_timeout: float = 3.0) -> dict[str, Any]:
        """Delete the files ``fail_*.log`` in a folder: ``{"total", "deleted", "failed"}``.

        Raises RuntimeError where there are some and the vehicle is armed, for the logger is stopped meanwhile; where
        it is armed meanwhile the rest of them stays ("failed").
        """
        await self._vehicle(connection_timeout)
        found = await self._error_logs(remote_path)
        async with _LoggerStopped(self.mavlink_proxy, wanted=bool(found)):
            deleted = (await self._delete_each(found)).count(None)
        return {"total": len(found), "deleted": deleted, "failed": len(found) - deleted}

    async def list_directory(self, base: str | None = None, connection_timeout: float = 3.0) -> list[str]:
        """The names in a folder (the vehicle's log folder)."""
        await self._vehicle(connection_timeout)
        return [name for name, _ in await self._list(base or self.mavlink_proxy.root_sd_path)]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        if self._watching:
            self._set_ready(self.mavlink_proxy.is_ready, self.mavlink_proxy.reason)

    async def _vehicle(self, seconds: float) -> None:
        if not await self.mavlink_proxy.wait_until_ready(seconds):
            raise ProxyNotReady(f"MAVLink FTP connection could not be established: {self.mavlink_proxy.reason}")

    async def _list(self, path: str) -> list[tuple[str, int | None]]:
        """Names, and the sizes of files. Raises VehicleError."""
        told = await self.mavlink_proxy._ask("mavlink.ftp.list", {"path": _absolute(path)}, timeout=_LIST_S)
        return [(name, size) for name, size in told["entries"]]

    async def _walk(self, base: str, ending: str, depth: int = _DEPTH) -> list[tuple[str, int]]:
        """Files below a folder. A folder that cannot be listed is told, and left out."""
        found: list[tuple[str, int]] = []
        try:
            entries = await self._list(base)
        except VehicleError as error:
            log.warning("%s cannot be listed: %s", base, error)
            return found
        for name, size in entries:
            path = f"{base.rstrip('/')}/{name}"
            if size is not None and name.endswith(ending):
                found.append((path, size))
            elif size is None and depth > 1:
                found += await self._walk(path, ending, depth - 1)
        return found

    async def _size(self, path: str) -> int:
        folder, _, name = path.rpartition("/")
        return next((size or 0 for one, size in await self._list(folder or "/") if one == name), 0)

    async def _times(self) -> dict[int, int]:
        """Size -> time of the logs that the vehicle lists, where the size is that of one log alone."""
        try:
            entries = (await self.mavlink_proxy.get_log_entries(timeout=_ENTRIES_S)).values()
        except (TimeoutError, RuntimeError) as error:
            log.info("the vehicle does not tell the times of its logs: %s", error)
            return {}
        sizes = [one["size"] for one in entries]
        return {one["size"]: one["utc"] for one in entries if sizes.count(one["size"]) == 1}

    async def _error_logs(self, folder: str) -> list[tuple[str, int]]:
        try:
            entries = await self._list(folder)
        except VehicleError as error:
            log.warning("%s cannot be listed: %s", folder, error)
            return []
        fitting = [(name, size) for name, size in entries if name.startswith("fail_") and name.endswith(".log")]
        return [(f"{folder.rstrip('/')}/{name}", size) for name, size in fitting if size is not None]

    async def _delete_each(
        self, found: list[tuple[str, int]], progress: Callable[[int, int], Any] | None = None
    ) -> list[str | None]:
        """Delete them while the vehicle is disarmed; for each what went wrong, None: it is gone.

        The logger is stopped: once the vehicle is armed nothing may keep that from being started again.
        """
        errors: list[str | None] = []
        for number, (path, _) in enumerate(found, 1):
            try:
                gone = await self._delete(path, disarmed=True)
            except VehicleError as error:
                log.warning("%d of %d files stay: %s", len(found) - number + 1, len(found), error)
                return errors + [str(error)] * (len(found) - len(errors))
            errors.append(None if gone else "neither the shell nor MAVFTP could delete it")
            await _call(progress, number, len(found))
        return errors

    async def _delete(self, path: str, *, disarmed: bool) -> bool:
        """By the shell, which removes what MAVFTP protects; by MAVFTP where there is no shell.

        ``disarmed``: only then; raises VehicleError once the vehicle is armed.
        """
        if disarmed:
            self.mavlink_proxy.refuse_armed(f"delete {path}")
        try:
            if await self.mavlink_proxy.delete_file_via_shell(path):
                return True
        except ValueError as error:
            log.debug("not by the shell: %s", error)
        if disarmed:
            self.mavlink_proxy.refuse_armed(f"delete {path}")
        try:
            await self.mavlink_proxy._ask("mavlink.ftp.remove", {"path": _absolute(path)}, timeout=_LIST_S)
        except VehicleError as error:
            log.warning("%s cannot be deleted: %s", path, error)
            return False
        return True

    async def _remove_folder(self, path: str) -> None:
        try:
            await self.mavlink_proxy._ask("mavlink.ftp.rmdir", {"path": _absolute(path)}, timeout=_LIST_S)
        except VehicleError as error:
            log.debug("%s stays: %s", path, error)


class _LoggerStopped:
    """PX4's logger is stopped inside of the block, and started again after it. A vehicle without a shell has none."""

    def __init__(self, vehicle: MavLinkExternalProxy, *, wanted: bool) -> None:
        self._vehicle = vehicle
        self._wanted = wanted
        self._stopped = False
        self.restarted = False
        """Whether it was stopped, and runs again."""

    async def __aenter__(self) -> Self:
        if self._wanted:
            await self._stop()
        return self

    async def _stop(self) -> None:
        self._vehicle.refuse_armed("stop the logger")  # nothing was typed, and nothing in the block may be done
        self._stopped = True  # from here on it may be
        try:
            await self._vehicle.stop_px4_logging(settle_time=0.5)
        except TimeoutError as error:  # the line did not run
            self._stopped = False
            log.info("the logger was not stopped: %s", error)
        except VehicleError as error:
            log.warning("whether the logger was stopped is not known: %s", error)
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_error: object) -> None:
        if not self._stopped:
            return
        try:
            await self._vehicle.start_px4_logging(settle_time=0.5)
            self.restarted = True
            log.warning("%s", _RESTARTED)
        except (TimeoutError, RuntimeError) as error:
            # the flight goes on without a log: nobody must overlook that
            log.critical("PX4's logger was stopped and could not be started again: %s", error)


def _result(path: str, size: int, error: str | None) -> dict[str, Any]:
    """What ``delete_all_logs`` tells of one file."""
    told = {"path": path, "size_bytes": size, "status": "deleted" if error is None else "failed"}
    return told if error is None else told | {"error": error}


async def _call(callback: Callable[[int, int], Any] | None, done: int, total: int) -> None:
    if callback is None:
        return
    try:
        answer = callback(done, total)
        if inspect.isawaitable(answer):
            await answer
    except Exception as error:  # noqa: BLE001  # a petal's own fault must not leave the work half done
        log.warning("the progress callback failed: %s: %s", type(error).__name__, error)


def _moved(source: Path, target: Path) -> None:
    """Move a file that may be on another disk: it appears at its place when it is complete."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
        source.unlink()


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"
