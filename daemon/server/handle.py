"""A running embedded server: started by us, or left behind by a daemon that was killed and adopted from it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from petalbus.daemon.paths import DataPaths, write_atomically
from petalbus.daemon.server.errors import ServerStartError
from petalbus.daemon.server.probe import client, peer_pid, server_info, unix_url
from petalbus.daemon.server.process import ProcessIdentity

_log: Final = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 10.0
"""How long an orderly end may take: the last fsync of the append-only file on a slow card."""
TERMINATE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 2.0
_FIRST_POLL: Final = 0.001
_LAST_POLL: Final = 0.025


@dataclass(frozen=True, slots=True)
class ServerState:
    """What server.json keeps of a running server, for the next daemon.

    ``run_id`` is the random token that the server gave itself at its start (empty until it was ready).
    """

    pid: int
    started: int
    boot_id: str
    binary: str
    digest: str
    socket: str
    run_id: str = ""

    @property
    def identity(self) -> ProcessIdentity:
        """The process."""
        return ProcessIdentity(self.pid, self.started, self.boot_id)

    def write(self, paths: DataPaths) -> None:
        """Store it."""
        write_atomically(paths.server_state, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, paths: DataPaths) -> ServerState | None:
        """What is stored; ``None`` if there is nothing, or nothing that can be trusted (cut by a power loss)."""
        try:
            fields = json.loads(paths.server_state.read_text(encoding="utf-8"))
            return cls(**{**fields, "pid": int(fields["pid"]), "started": int(fields["started"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class ServerHandle:
    """A server process that runs, child or not. ``await wait()`` until it has ended; ``await stop()`` ends it."""

    def __init__(self, state: ServerState, *, child: asyncio.subprocess.Process | None) -> None:
        self.state = state
        self._child = child

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.state.pid

    @property
    def adopted(self) -> bool:
        """Whether another daemon started it."""
        return self._child is None

    async def wait(self) -> int | None:
        """Wait for its end. The exit code (negative: the signal), ``None`` when it was not our child."""
        if self._child is not None:
            return await self._child.wait()
        await self.state.identity.gone()
        return None

    async def ready(self, *, answer_seconds: float, load_seconds: float) -> None:
        """Wait until it serves: it answers, by the process we mean, and has loaded its append-only file.

        ``answer_seconds`` bounds the time to the first answer, ``load_seconds`` the loading after that. Raises
        ``ServerStartError`` when it ends or a bound passes.
        """
        until = time.monotonic() + answer_seconds
        loading = False
        pause = _FIRST_POLL
        async with client(unix_url(self.state.socket), timeout=_ANSWER_SECONDS) as redis:
            while True:
                info = await _try_info(redis)
                if info is not None and info.get("process_id") == self.pid:
                    if not info.get("loading") and not info.get("async_loading"):
                        self.state = replace(self.state, run_id=str(info.get("run_id", "")))
                        return
                    if not loading:
                        loading, until = True, time.monotonic() + load_seconds
                if self._ended():
                    raise ServerStartError("it ended by itself" + await self._exit_words())
                if time.monotonic() >= until:
                    what = f"it still loads its data after {load_seconds:g} s" if loading else "it does not answer"
                    raise ServerStartError(f"{what} on {self.state.socket}")
                await asyncio.sleep(pause)
                pause = min(pause * 1.3, _LAST_POLL)

    async def stop(self) -> None:
        """End it in order: SHUTDOWN (which writes and syncs its file), then SIGTERM, and SIGKILL as the last resort.

        Bounded; returns when the process has ended. A stopped (SIGSTOP) or hanging server is killed: its
        acknowledged writes are in the file already.
        """
        if await self._ask_to_shut_down() and await self._gone(SHUTDOWN_SECONDS):
            return
        for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, TERMINATE_SECONDS)):
            _log.warning("server process %d did not end in order: %s", self.pid, number.name)
            if not self.state.identity.signal(number):
                break
            self.state.identity.signal(signal.SIGCONT)  # a stopped process sees SIGTERM only when it goes on
            if await self._gone(seconds):
                break
        if self._child is not None:
            await self._child.wait()

    async def _ask_to_shut_down(self) -> bool:
        # Who listens is asked of the kernel: a server that is busy with a script answers SHUTDOWN, but not INFO.
        if await peer_pid(self.state.socket, timeout=_ANSWER_SECONDS) != self.pid:
            return self._ended()
        async with client(unix_url(self.state.socket), timeout=_ANSWER_SECONDS) as redis:
            try:
                # Without a snapshot: the append-only file is the store, and is synced at exit in any case.
                await redis.execute_command("SHUTDOWN", "NOSAVE", "NOW")  # type: ignore[no-untyped-call]  # redis-py does not type it
            except RedisTimeoutError:
                _log.warning("server process %d does not answer SHUTDOWN", self.pid)
            except RedisConnectionError:  # the answer to a SHUTDOWN that worked: the connection ends
                return True
            except (RedisError, OSError) as error:
                _log.warning("server process %d refuses to shut down: %s", self.pid, error)
        return False

    async def _gone(self, seconds: float) -> bool:
        if self._child is None:
            return await self.state.identity.gone(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._child.wait()
        except TimeoutError:
            return False
        return True

    def _ended(self) -> bool:
        if self._child is not None:
            return self._child.returncode is not None
        return not self.state.identity.alive()

    async def _exit_words(self) -> str:
        code = await self.wait()
        if code is None:
            return ""
        return f" (signal {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"


_MALLOC: Final = ("tcache_count=2000", "tcache_max=1032", "trim_threshold=67108864", "top_pad=16777216")
MALLOC_TUNING: Final = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{setting}" for setting in _MALLOC)}
"""For servers built on the C library's allocator, as the bundled one is: scripts make and drop many small strings, and
with larger per-thread caches the server spends less of its time in the allocator. Servers with jemalloc ignore it."""


async def spawn(paths: DataPaths, *, binary: Path, digest: str, lock: int) -> ServerHandle:
    """Start ``binary`` with the written configuration; it inherits the locked descriptor ``lock`` and keeps it.

    In a session of its own, so that a Ctrl-C on the daemon's terminal does not reach it before the daemon is done
    with it. Raises ``ServerStartError``.
    """
    socket = str(paths.socket)
    log = os.open(paths.server_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = await asyncio.create_subprocess_exec(
            str(binary),
            str(paths.server_config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=paths.server_dir,
            env={**os.environ, **MALLOC_TUNING},
            pass_fds=(lock,),
            start_new_session=True,
        )
    except OSError as error:
        raise ServerStartError(f"{binary} cannot be started: {error}") from error
    finally:
        os.close(log)
    identity = ProcessIdentity.of(child.pid)
    if identity is None:  # it ended already: ready() finds that and says how
        identity = ProcessIdentity(child.pid, 0, "")
    state = ServerState(identity.pid, identity.started, identity.boot_id, str(binary), digest, socket)
    state.write(paths)
    return ServerHandle(state, child=child)


async def _try_info(redis: Redis) -> dict[str, Any] | None:
    try:
        return await server_info(redis)
    except (RedisError, OSError):
        return None


@asynccontextmanager
async def stopped_on_error(handle: ServerHandle) -> AsyncIterator[None]:
    """Stop the server if the body fails or is cancelled: no start leaves a half-started server behind."""
    try:
        yield
    except BaseException:
        await asyncio.shield(asyncio.create_task(handle.stop(), name="petalbus.server.stop-after-failed-start"))
        raise
