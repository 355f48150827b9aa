"""One life of a petal in a process of its own, seen from the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus.daemon.petals.discovery import Found
from petalbus.daemon.petals.errors import LoadFailed, ProcessEnded
from petalbus.daemon.petals.wire import FD_VARIABLE, MAX_LINE, read, write
from petalbus.petals.hosting import PetalNotStarted

if TYPE_CHECKING:
    from petalbus.daemon.http.mounts import PetalMounts

MODULE: Final = "petalbus.daemon.petals.isolated"
_TERMINATE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_LAST_WORDS_SECONDS: Final = 0.3

log: Final = structlog.get_logger(__name__)


class InProcess:
    """``configuration``: what the process needs to know (see ``isolated``). ``socket``: where its HTTP is."""

    def __init__(
        self, found: Found, configuration: Mapping[str, Any], *, socket: Path, mounts: PetalMounts | None
    ) -> None:
        self.name = found.name
        self.version = ""
        self.broken = asyncio.Event()
        self.why = ""
        self._found = found
        self._configuration = configuration
        self._socket = socket
        self._mounts = mounts
        self._mounted = False
        self._child: asyncio.subprocess.Process | None = None
        self._exited = asyncio.Event()
        self._killed = False
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._counters: dict[str, Any] = {}
        self._running = False

    async def prepare(self) -> tuple[str, ...]:
        """Start the process; it loads the petal. Raises LoadFailed, ProcessEnded."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", MODULE),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=MAX_LINE,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, FD_VARIABLE: str(theirs.fileno())},
                start_new_session=True,  # a Ctrl-C on the terminal is for the daemon, which then ends it in order
            )
        self._tasks = [asyncio.create_task(self._await_exit(self._child), name=f"petal-{self.name}-exit")]
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        self._tasks += [
            asyncio.create_task(self._listen(reader), name=f"petal-{self.name}-control"),
            asyncio.create_task(self._show(), name=f"petal-{self.name}-output"),
        ]
        write(self._writer, {**self._configuration, "target": self._found.target, "socket": str(self._socket)})
        told = await self._answer("prepared")
        self.name, self.version = told["name"], told["version"]
        return tuple(told["needs"])

    async def start(self) -> None:
        """Let it start the petal. Raises PetalNotStarted, ProcessEnded."""
        self._say("start")
        await self._answer("running")
        self._running = True
        if self._mounts is not None:
            from petalbus.daemon.http.relay import Relay  # noqa: PLC0415  # only who isolates petals needs it

            relay = await asyncio.to_thread(Relay, self.name, self._socket, options=self._mounts.options)
            self._mounts.mount(self.name, relay)
            self._mounted = True

    async def stop(self) -> None:
        """Let it stop the petal, then see that the process ends."""
        if self._mounts is not None and self._mounted:
            self._mounted = False
            await self._mounts.unmount(self.name, state="stopped")
        child = self._child
        try:
            if child is not None and child.returncode is None:
                self._running = False
                self._say("stop")
                with contextlib.suppress(TimeoutError, ProcessEnded, PetalNotStarted, LoadFailed):
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        await self._answer("stopped")
                await self._end(child)
        finally:
            self._kill_all()  # where we were told not to wait any longer, and what it has forked
            for task in self._tasks:
                task.cancel()
            if self._writer is not None:
                self._writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._socket.unlink, missing_ok=True)

    async def organization_changed(self) -> None:
        """The process watches the same file by itself."""

    def counters(self) -> dict[str, Any]:
        """What the process last told, and its number. Asking makes it tell again."""
        self._say("counters")
        told = {"pid": self._child.pid if self._child is not None else None, **self._counters}
        if self._mounts is not None:
            told["http"] = self._mounts.statistics()["petals"].get(self.name, {})
        return told

    def _say(self, what: str) -> None:
        if self._writer is not None:
            write(self._writer, {"do": what})

    async def _answer(self, wanted: str) -> dict[str, Any]:
        """The next answer, which must be the one wanted."""
        told = await self._answers.get()
        if told["event"] == wanted:
            return told
        if told["event"] == "ended":
            raise ProcessEnded(self.why)
        message = str(told.get("message", told))
        if told.get("kind") == "load":
            raise LoadFailed(message)
        raise PetalNotStarted(message, missing=tuple(told.get("missing", ())))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        assert self._child is not None
        while (told := await self._heard(reader)) is not None:
            if told["event"] == "counters":
                self._counters = told["counters"]
            elif told["event"] == "broken":
                self.why = told["why"]
                self.broken.set()
            else:
                self._answers.put_nowait(told)
        await self._end(self._child)
        self._kill_all()
        self.why = f"its process ended with {_exit(self._child.returncode)}"
        self._answers.put_nowait({"event": "ended"})
        if self._running:
            self.broken.set()

    async def _heard(self, reader: asyncio.StreamReader) -> dict[str, Any] | None:
        """What the process says next; None when it has ended, or talks nonsense.

        The end of the process counts, not that of the line: whatever it has forked holds the line open.
        """
        reading = asyncio.create_task(read(reader), name=f"petal-{self.name}-read")
        ending = asyncio.create_task(self._exited.wait(), name=f"petal-{self.name}-ending")
        try:
            await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait((reading,), timeout=_LAST_WORDS_SECONDS)
            return reading.result() if reading.done() else None
        except ValueError as error:
            log.warning("a petal's process talks nonsense and is ended", petal=self.name, error=str(error))
            return None
        except OSError:
            return None
        finally:
            reading.cancel()
            ending.cancel()

    async def _await_exit(self, child: asyncio.subprocess.Process) -> None:
        """Wait for the end of the process itself. (``child.wait`` waits for its pipes as well.)"""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(child.pid)
        except OSError:  # a kernel without it, or a sandbox
            await child.wait()
            self._exited.set()
            return
        try:
            loop.add_reader(descriptor, self._exited.set)
            await self._exited.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def _kill_all(self) -> None:
        """It, and what it has forked: they are a session of their own. Once: later its number may be another's."""
        if self._child is not None and not self._killed:
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    async def _show(self) -> None:
        """What the petal prints is told in the daemon's log."""
        assert self._child is not None
        assert self._child.stdout is not None
        while True:
            try:
                line = await self._child.stdout.readline()
            except ValueError:  # a line longer than the limit
                continue
            if not line:
                return
            log.info(line.decode(errors="replace").rstrip(), petal=self.name)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        stops: tuple[Callable[[], object], ...] = (lambda: None, child.terminate, child.kill)
        for stop in stops:
            with contextlib.suppress(ProcessLookupError):
                stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERMINATE_SECONDS):
                    await self._exited.wait()
                    break
        end = time.monotonic() + _TERMINATE_SECONDS
        while child.returncode is None and time.monotonic() < end:  # noqa: ASYNC110  # its watcher is a thread, and soon done
            await asyncio.sleep(0.005)


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}"
    return f"exit code {code}"
