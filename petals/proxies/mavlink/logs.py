"""Flight logs over the log messages, and PX4's shell. The work is done by the MAVLink handler, beside the link."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petalbus.petals.proxies.mavlink.link import VehicleError, VehicleLink

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

log = logging.getLogger("MavLinkExternalProxy")

LONGEST_TRANSFER_S: Final = 3600.0
_LOOK_S: Final = 0.05
_ANSWER_S: Final = 0.25
_SHELL_SILENT: Final = frozenset(("SHELL_UNAVAILABLE", "SHELL_UNCONFIRMED"))
_SHELL_COMPLAINS: Final = ("no such", "error", "failed", "invalid", "not empty", "not found")

Received = Callable[[int], Awaitable[Any]]
"""Told how many bytes have come."""


class FlightLogs(VehicleLink):
    """Logs by LOG_REQUEST_DATA, which every autopilot knows, and lines typed into PX4's shell."""

    async def get_log_entries(
        self,
        *,
        msg_id: str = "118",  # noqa: ARG002  # existing petals name it; there is one message that it can be
        request_msg: Any = None,  # noqa: ARG002  # as above: the handler makes the request
        timeout: float = 8.0,
        stale_timeout: float = 2.0,  # noqa: ARG002  # the handler finds out how long silence may last
    ) -> dict[int, dict[str, int]]:
        """The logs on the vehicle: ``{id: {"size": bytes, "utc": seconds since 1970}}``; empty when there are none.

        ``timeout``: how long it may take at all (s). Raises TimeoutError when it did not come whole. ``stale_timeout``
        changes nothing: PX4 looks through its whole card before it says anything, and how long it is worth to wait for
        what is lost is measured.
        """
        try:
            async with asyncio.timeout(timeout):
                wanted = {"timeout": max(0.1, timeout - _ANSWER_S)}
                told = await self._ask("mavlink.log.list", wanted, timeout=timeout)
        except VehicleError as error:
            raise TimeoutError(str(error)) from error
        return {one["id"]: {"size": one["size"], "utc": one["time_utc"]} for one in told["logs"]}

    async def download_log(
        self,
        *,
        log_id: int,
        completed_event: threading.Event,
        timeout: float = 60.0,
        buffer: bytearray | None = None,
        callback: Received | None = None,
        end_of_buffer_timeout: float = 10.0,
        size_bytes: int | None = None,
    ) -> bytes:
        """Fetch a log, within ``timeout`` seconds. Like ``download_log_buffered``."""
        async with asyncio.timeout(timeout):
            return await self._download(
                log_id, completed_event, size=size_bytes, quiet=end_of_buffer_timeout, into=buffer, callback=callback
            )

    async def download_log_buffered(
        self,
        *,
        log_id: int,
        completed_event: threading.Event,
        size_bytes: int | None = None,
        timeout: float = 3.0,
        chunk_size: int = 90,  # noqa: ARG002  # the handler chooses; what a petal says changes nothing for it
        max_retries: int = 3,
        cancel_event: threading.Event | None = None,
        buffer: bytearray | None = None,
        callback: Received | None = None,
    ) -> bytes:
        """Fetch a log; its bytes, which also replace what is in ``buffer``.

        The vehicle may be quiet for ``timeout`` seconds, ``max_retries`` times over. ``callback`` is told how many
        bytes have come, a few times a second. ``cancel_event``, once it is set, ends it: the answer is empty then.
        ``completed_event`` is set when the log is whole. Raises TimeoutError, RuntimeError without a vehicle, and
        VehicleError (a log that does not exist).
        """
        quiet = timeout * (max_retries + 1)
        return await self._download(
            log_id, completed_event, size=size_bytes, quiet=quiet, into=buffer, callback=callback, cancel=cancel_event
        )

    async def send_shell_command(self, command: str, settle_time: float = 0.5, timeout: float = 3.0) -> str:
        """Run a line in PX4's shell; what it prints. Raises TimeoutError when the shell does not answer.

        ``settle_time``: how long the output may pause before it counts as ended (s). A line never runs twice.
        """
        wanted = {"command": command.strip(), "settle": max(0.05, settle_time), "timeout": timeout + settle_time}
        try:
            told = await self._ask("mavlink.shell", wanted, timeout=timeout + settle_time)
        except VehicleError as error:
            if error.error_code in _SHELL_SILENT:
                raise TimeoutError(str(error)) from error
            raise
        return str(told["output"])

    async def stop_px4_logging(self, settle_time: float = 2.0, timeout: float = 5.0) -> None:
        """Stop PX4's logger, so that its files are closed. Raises TimeoutError, and VehicleError while it is armed."""
        self.refuse_armed("stop the logger")
        await self.send_shell_command("logger stop", settle_time=settle_time, timeout=timeout)

    async def start_px4_logging(self, settle_time: float = 1.0, timeout: float = 5.0) -> None:
        """Start PX4's logger, with the options of its own that it has without any. Raises TimeoutError.

        Its startup script gives it others (date names, when it logs): only a reboot brings those back.
        """
        await self.send_shell_command("logger start", settle_time=settle_time, timeout=timeout)

    @property
    def known_armed(self) -> bool:
        """Whether the latest state of the vehicle says that it is armed."""
        return bool(self._seen.state.get("armed"))

    def refuse_armed(self, what: str) -> None:
        """Raise VehicleError where the vehicle is known to be armed: ``what`` would cost the log of this flight."""
        if self.known_armed:
            message = f"{what}: the vehicle is armed, and its log of this flight would be lost; nothing was sent"
            raise VehicleError("COMMAND_NOT_POSSIBLE", {"message": message})

    async def delete_file_via_shell(self, remote_path: str, timeout: float = 5.0, command: str = "rm") -> bool:
        """Remove a file (``command="rmdir"``: an empty folder) with PX4's shell; False when that complains.

        It removes what MAVFTP protects, such as logs.
        """
        if any(character.isspace() for character in remote_path) or command not in ("rm", "rmdir"):
            raise ValueError(f"{command} {remote_path!r} cannot be typed: rm or rmdir, and a path without blanks")
        path = remote_path if remote_path.startswith("/") else f"/{remote_path}"
        try:
            output = await self.send_shell_command(f"{command} {path}", settle_time=0.3, timeout=timeout)
        except (RuntimeError, TimeoutError) as error:
            log.warning("%s %s did not run for certain: %s", command, path, error)
            return False
        return not any(word in output.lower() for word in _SHELL_COMPLAINS)

    async def _download(
        self,
        log_id: int,
        completed: threading.Event,
        *,
        size: int | None,
        quiet: float,
        into: bytearray | None,
        callback: Received | None,
        cancel: threading.Event | None = None,
    ) -> bytes:
        wanted = {"id": log_id, "size": size or None, "timeout": quiet}
        try:
            told = await self.transfer("mavlink.log.get", wanted, callback=callback, cancel=cancel)
        except VehicleError as error:
            if error.error_code == "LOG_TIMEOUT":
                raise TimeoutError(str(error)) from error
            raise
        if told is None:
            return b""
        data = await asyncio.to_thread(_taken, Path(told["file"]))
        if into is not None:
            into[:] = data
        completed.set()
        return data

    async def transfer(
        self,
        kind: str,
        wanted: dict[str, Any],
        *,
        callback: Callable[..., Any] | None = None,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any] | None:
        """Ask for a file to be fetched or sent; None when ``cancel`` was set before it was done. For our own proxies.

        ``callback(done)`` may be async; what it raises is logged.
        """
        news: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

        def note(reply: Record) -> None:
            if isinstance(reply.data, dict) and "done" in reply.data:
                if news.full():
                    news.get_nowait()
                news.put_nowait(int(reply.data["done"]))

        asking = asyncio.create_task(
            self._ask(kind, wanted, timeout=LONGEST_TRANSFER_S, on_progress=note), name=f"{kind}.transfer"
        )
        try:
            while not asking.done():
                if cancel is not None and cancel.is_set():
                    return None
                await asyncio.wait((asking,), timeout=_LOOK_S)
                if not news.empty():
                    await _tell(callback, news.get_nowait())
            return asking.result()
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)


async def _tell(callback: Callable[..., Any] | None, done: int) -> None:
    if callback is None:
        return
    try:
        answer = callback(done)
        if inspect.isawaitable(answer):
            await answer
    except Exception as error:  # noqa: BLE001  # a petal's own fault must not end its transfer
        log.warning("the progress callback of a transfer failed: %s: %s", type(error).__name__, error)


def _taken(file: Path) -> bytes:
    data = file.read_bytes()
    file.unlink(missing_ok=True)
    return data
