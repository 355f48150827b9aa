"""The embedded server: a private Redis-compatible server for one data directory, kept running.

    async with EmbeddedServer(data_dir, memory_mb=512) as server:
        ... server.url ...
        await server.supervise()      # restarts it when it dies; ends with stop()

Reached by nothing but a unix socket of this user. Every acknowledged write is in its append-only file, so a kill -9 of
it, or of the daemon, loses nothing: after the daemon's death the server goes on, and the next start adopts it, or stops
it in order when it runs with another configuration or program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from petalbus.daemon.paths import DataPaths, write_atomically
from petalbus.daemon.server.config import Fsync, ServerConfig
from petalbus.daemon.server.errors import ServerCrashLoop, ServerStartError
from petalbus.daemon.server.find import ServerBinary, choose_server
from petalbus.daemon.server.flush import Flusher
from petalbus.daemon.server.handle import ServerHandle, ServerState, spawn, stopped_on_error
from petalbus.daemon.server.lock import DataLock, try_lock
from petalbus.daemon.server.probe import peer_pid, unix_url
from petalbus.daemon.server.process import ProcessIdentity, holders

_log: Final = logging.getLogger(__name__)

_ANSWER_SECONDS: Final = 30.0
_ADOPT_SECONDS: Final = 5.0
_LOAD_SECONDS: Final = 300.0
_FIRST_BACKOFF: Final = 0.05
_LAST_BACKOFF: Final = 5.0
_MAX_LOG_BYTES: Final = 4 << 20
_LOG_LINES: Final = 12


class EmbeddedServer:
    """One embedded server.

    ``data_dir``: the bus's data directory (``None``: the default one). ``memory_mb``: ceiling of stored data in MiB,
    above which writes are refused. ``fsync``: ``everysec`` (a power cut loses up to about 2 s) or ``always``.
    ``binary``: the server program (``None``: PETALBUS_SERVER, else the first one found). ``lock``: the right to the
    directory, if the caller holds it already; else it is taken by ``start`` and given back by ``stop``.
    ``max_restarts`` in ``restart_window`` seconds is where ``supervise`` gives up.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        memory_mb: int = 512,
        fsync: Fsync = "everysec",
        binary: Path | str | None = None,
        lock: DataLock | None = None,
        max_restarts: int = 6,
        restart_window: float = 60.0,
    ) -> None:
        self.paths = DataPaths.of(data_dir)
        self.config = ServerConfig(self.paths, memory_mb, fsync)
        self.restarts = 0
        self._wanted_binary = binary
        self._binary: ServerBinary | None = None
        self._lock = lock if lock is not None else DataLock(self.paths)
        self._owns_lock = lock is None
        self._max_restarts = max_restarts
        self._restart_window = restart_window
        self._handle: ServerHandle | None = None
        self._relaunch: asyncio.Task[None] | None = None
        self.flusher = Flusher(self.paths.server_dir)
        self._flushing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        """The server's URL, ``unix:///...``; the same after every restart."""
        return unix_url(str(self.paths.socket))

    @property
    def pid(self) -> int | None:
        """The server's process id; ``None`` while none runs."""
        return self._handle.pid if self._handle else None

    @property
    def adopted(self) -> bool:
        """Whether the running server was started by an earlier daemon."""
        return self._handle is not None and self._handle.adopted

    @property
    def binary(self) -> ServerBinary | None:
        """The program that is run; ``None`` before ``start``."""
        return self._binary

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it in order."""
        await self.stop()

    async def start(self) -> str:
        """Start the server, or adopt the one that a killed daemon left, and return its URL once it serves.

        Raises ``DataDirectoryInUse``, ``DataDirectoryError``, ``ServerNotFound``, ``ServerUnsuitable`` and
        ``ServerStartError``. Nothing is left running then.
        """
        if self._handle is not None:
            raise RuntimeError("this embedded server is started already")
        self._stopping.clear()
        await self._lock.acquire()
        try:
            self.paths.create()
            self._binary = await asyncio.to_thread(choose_server, self._wanted_binary)
            self._handle = await self._launch(self._binary)
        except BaseException:
            if self._owns_lock:
                self._lock.release()
            raise
        if self.config.fsync == "everysec":
            self._flushing = asyncio.create_task(self.flusher.run(), name="petalbus-flush")
        return self.url

    async def stop(self) -> None:
        """Stop the server in order, also an adopted one, and give the directory back. A second call does nothing."""
        self._stopping.set()
        if self._relaunch is not None:
            self._relaunch.cancel()
            await asyncio.wait([self._relaunch])
        handle, self._handle = self._handle, None
        if handle is not None:
            await handle.stop()
            self.paths.server_state.unlink(missing_ok=True)
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            flushing.cancel()
            await asyncio.wait([flushing])
        if self._owns_lock:
            self._lock.release()

    async def wait(self) -> int | None:
        """Wait until the server process that runs now has ended, whoever ended it.

        Returns its exit code (negative: the signal), ``None`` for an adopted one or when none runs.
        """
        return await self._handle.wait() if self._handle else None

    async def supervise(self, *, on_restart: Callable[[int], None] | None = None) -> None:
        """Keep the server running: start it again, on the same data and URL, whenever it dies. Ends after ``stop``.

        ``on_restart`` is called with the new process id. Raises ``ServerCrashLoop`` when it died more often than
        ``max_restarts`` times in ``restart_window`` seconds.
        """
        deaths: deque[float] = deque()
        while True:
            code = await self.wait()
            reason = "ended by itself" if code is None else f"ended with {_exit_words(code)}"
            while not self._stopping.is_set():
                self._count_death(deaths, reason)
                await self._pause(min(_FIRST_BACKOFF * 2.0 ** (len(deaths) - 1), _LAST_BACKOFF))
                if self._stopping.is_set():
                    break
                # In a task of its own, so that stop() can end a start that takes long, and supervise() with it.
                self._relaunch = asyncio.create_task(self._start_again(), name="petalbus.server.restart")
                try:
                    await self._relaunch
                except ServerStartError as error:
                    reason = str(error)
                    continue
                except asyncio.CancelledError:
                    if self._stopping.is_set():
                        break
                    raise
                if on_restart is not None and self._handle is not None:
                    on_restart(self._handle.pid)
                break
            if self._stopping.is_set():
                return

    def statistics(self) -> dict[str, object]:
        """The server's program, process and restarts."""
        return {
            "server": self._binary.label if self._binary else None,
            "origin": self._binary.origin if self._binary else None,
            "pid": self.pid,
            "adopted": self.adopted,
            "restarts": self.restarts,
            "fsync": self.config.fsync,
            "memory_mb": self.config.memory_mb,
        }

    def _count_death(self, deaths: deque[float], reason: str) -> None:
        now = time.monotonic()
        deaths.append(now)
        while deaths[0] < now - self._restart_window:
            deaths.popleft()
        _log.error("the server %s", reason)
        if len(deaths) > self._max_restarts:
            raise ServerCrashLoop(
                f"the server ended {len(deaths)} times within {self._restart_window:g} s and is not started again; "
                f"the last time it {reason}; its log: {self.paths.server_log}"
            )

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _start_again(self) -> None:
        assert self._binary is not None, "supervise() comes after start()"
        self._handle = await self._launch(self._binary)
        self.restarts += 1
        _log.warning("the server runs again as process %d", self._handle.pid)

    async def _launch(self, binary: ServerBinary) -> ServerHandle:
        """A serving server: the orphan of an earlier daemon if it is what we would start, else a new process."""
        lock = try_lock(self.paths.server_lock)
        if lock is None:
            orphan = await self._adopt(binary)
            if orphan is not None:
                return orphan
            lock = await self._clear_directory()
        try:
            self._rotate_log()
            write_atomically(self.paths.server_config, self.config.text())
            log_start = self.paths.server_log.stat().st_size if self.paths.server_log.exists() else 0
            handle = await spawn(self.paths, binary=binary.path, digest=self.config.digest(), lock=lock)
        finally:
            os.close(lock)  # from here on the server's process alone holds it
        async with stopped_on_error(handle):
            try:
                await handle.ready(answer_seconds=_ANSWER_SECONDS, load_seconds=_LOAD_SECONDS)
            except ServerStartError as error:
                raise ServerStartError(self._start_failure(binary, str(error), log_start)) from None
            handle.state.write(self.paths)
        return handle

    async def _adopt(self, binary: ServerBinary) -> ServerHandle | None:
        """The running server of an earlier daemon, if nothing about it differs from the one we would start."""
        state = ServerState.read(self.paths)
        if state is None or not state.identity.alive():
            return None
        same = state.digest == self.config.digest() and state.socket == str(self.paths.socket)
        if not same or not _runs(state.identity, binary.path):
            _log.warning("server process %d of an earlier daemon has another configuration or program", state.pid)
            return None
        if await peer_pid(state.socket, timeout=_ADOPT_SECONDS) != state.pid:
            return None
        handle = ServerHandle(state, child=None)
        state.identity.signal(signal.SIGCONT)  # one that was stopped together with its daemon shall go on
        try:
            await handle.ready(answer_seconds=_ADOPT_SECONDS, load_seconds=_LOAD_SECONDS)
        except ServerStartError as error:
            _log.warning("server process %d of an earlier daemon is not usable: %s", state.pid, error)
            return None
        if state.run_id and handle.state.run_id != state.run_id:
            return None
        handle.state.write(self.paths)
        _log.warning("adopted server process %d of an earlier daemon", state.pid)
        return handle

    async def _clear_directory(self) -> int:
        """End every process that still holds the server's lock, in order, and take the lock."""
        state = ServerState.read(self.paths)
        socket = state.socket if state else str(self.paths.socket)
        listener = await peer_pid(socket, timeout=1.0)
        for identity in await asyncio.to_thread(holders, self.paths.server_lock):
            _log.warning("stopping process %d, left behind by an earlier daemon", identity.pid)
            if identity.pid == listener:
                await ServerHandle(_stranger(identity, socket), child=None).stop()
            else:  # no server any more: a child of one that was killed, in the middle of rewriting the file
                identity.signal(signal.SIGKILL)
                await identity.gone(5.0)
        lock = try_lock(self.paths.server_lock)
        if lock is None:
            raise ServerStartError(
                f"a server that cannot be seen or stopped from here still writes to {self.paths.server_dir}; "
                f"stop the process that holds {self.paths.server_lock}"
            )
        return lock

    def _rotate_log(self) -> None:
        log = self.paths.server_log
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))

    def _start_failure(self, binary: ServerBinary, reason: str, log_start: int) -> str:
        lines: list[str] = []
        if self.paths.server_log.exists():
            with self.paths.server_log.open("rb") as log:
                log.seek(log_start)
                lines = log.read(1 << 20).decode(errors="replace").splitlines()[-_LOG_LINES:]
        end = "\n  ".join(lines)
        return f"{binary.label} ({binary.path}) did not start: {reason}; {self.paths.server_log} ends with:\n  {end}"


def _runs(identity: ProcessIdentity, program: Path) -> bool:
    """Whether that process runs this very file (not an older one of the same name, replaced by an upgrade)."""
    try:
        return Path(f"/proc/{identity.pid}/exe").samefile(program)
    except OSError:
        return False


def _stranger(identity: ProcessIdentity, socket: str) -> ServerState:
    return ServerState(identity.pid, identity.started, identity.boot_id, "", "", socket)


def _exit_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
