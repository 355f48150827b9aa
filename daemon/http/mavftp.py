"""``/mavftp/...``: a look into the vehicle's folders over HTTP, and a broom for its failure logs. Loads FastAPI.

POST /mavftp/list-directory, /mavftp/clear-error-logs -> requests to the app ``vehicle`` (mavlink.ftp.*, mavlink.shell)

Programs that call these addresses look at ``success`` and not at the status: it is 200 also where the vehicle refuses.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, Field

from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.http.errors import Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger(__name__)

GetBus = Callable[[], "Bus | None"]
"""Gives a started client of the bus; None while there is none."""

VEHICLE: Final = "vehicle"
MOST_FILES: Final = 500
"""Failure logs that one call removes at most."""

_LIST_S: Final = 20.0
_REMOVE_S: Final = 10.0
_FAILURE_LOG: Final = re.compile(r"fail_.*\.log", re.DOTALL)
_SAFE: Final = re.compile(r"[\w./-]+")
"""What may stand in a line for the vehicle's shell."""


class Folder(BaseModel):
    """A folder of the vehicle, whose first slash may be missing."""

    remote_path: Annotated[str, Field(min_length=1, max_length=238)] = "/fs/microsd"
    system: Annotated[int | None, Field(ge=1, le=255, description="which vehicle; the primary one if not given")] = None

    @property
    def path(self) -> str:
        """With its first slash."""
        return "/" + self.remote_path.lstrip("/")


def mavftp_router(bus: GetBus) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/mavftp", tags=["mavftp"])

    @router.post("/list-directory", response_model=None)
    async def list_directory(folder: Folder) -> dict[str, Any]:
        """What a folder of the vehicle holds: name, size in bytes (0: a folder), whether it is a folder."""
        try:
            entries = await _Files(bus, folder).list()
        except BusError as error:
            return _failed("the directory could not be listed", error)
        contents = [[name, size or 0, size is None] for name, size in entries]
        return {"success": True, "message": f"{len(contents)} names", "directory_contents": contents}

    @router.post("/clear-error-logs", response_model=None)
    async def clear_error_logs(folder: Folder) -> dict[str, Any]:
        """Remove the files ``fail_*.log`` from a folder of the vehicle."""
        files = _Files(bus, folder)
        try:
            found = [name for name, size in await files.list() if size is not None and _FAILURE_LOG.fullmatch(name)]
        except BusError as error:
            return _failed("the error logs could not be listed", error)
        wrong = [problem for name in found[:MOST_FILES] if (problem := await files.remove(name)) is not None]
        left = max(0, len(found) - MOST_FILES)
        counts = {"total": len(found), "deleted": len(found) - left - len(wrong), "failed": left + len(wrong)}
        told = {"remote_path": folder.remote_path, **counts}
        if not counts["failed"]:
            return {"success": True, "message": f"{len(found)} error logs removed", **told}
        more = [f"{left} more are there: call again"] if left else []
        message = f"{counts['failed']} of {len(found)} error logs were not removed"
        return {"success": False, "error": "; ".join([*wrong[:10], *more]), "message": message, **told}

    return router


class _Files:
    """Asks one vehicle about one folder."""

    def __init__(self, bus: GetBus, folder: Folder) -> None:
        client = bus()
        if client is None:
            raise Refused(503, "bus_unavailable", "the bus does not run now; try again", {"Retry-After": "1"})
        self._client = client
        self._folder = folder

    async def list(self) -> list[tuple[str, int | None]]:
        """Names with the sizes of files, None for a folder. Raises BusError."""
        told = await self._ask("mavlink.ftp.list", {"path": self._folder.path}, _LIST_S)
        return [(name, size) for name, size in told["entries"]]

    async def remove(self, name: str) -> str | None:
        """Remove a file, by the shell where MAVFTP protects it; what went wrong, None: nothing."""
        path = f"{self._folder.path.rstrip('/')}/{name}"
        try:
            await self._ask("mavlink.ftp.remove", {"path": path}, _REMOVE_S)
        except BusError as error:
            if await self._remove_by_shell(path, name):
                return None
            log.warning("%s could not be removed from the vehicle: %s", path, error)
            return f"{name}: {error}"
        return None

    async def _remove_by_shell(self, path: str, name: str) -> bool:
        if not _SAFE.fullmatch(path):
            return False
        try:
            await self._ask("mavlink.shell", {"command": f"rm {path}"}, _REMOVE_S)
            return name not in dict(await self.list())
        except BusError:
            return False

    async def _ask(self, kind: str, data: dict[str, Any], timeout: float) -> dict[str, Any]:
        more = {} if self._folder.system is None else {"system": self._folder.system}
        reply = await self._client.request(VEHICLE, kind, {**data, **more}, timeout=timeout)
        told: dict[str, Any] = reply.data
        return told


def _failed(message: str, error: BusError) -> dict[str, Any]:
    return {"success": False, "error": str(error), "message": message}
