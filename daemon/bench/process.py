"""Child programs under control: started, pinned, spoken with in lines, and surely ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import petalbus
from petalbus.daemon.bench.job import Job

_READY_SECONDS: Final = 30.0
_TAIL_BYTES: Final = 2000


class ChildFailed(RuntimeError):
    """A child program ended early, said the wrong word, or ran out of time; the message has its stderr."""


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int | None) -> None:
    """Keep every thread of a process on one core (None: leave it alone). Threads that it starts later inherit that."""
    if core is None:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread may end meanwhile
            os.sched_setaffinity(int(task.name), {core})


class ChildProcess:
    """One child program in one role. Use ``async with``: at the end it is killed, whatever happened."""

    def __init__(self, program: Sequence[str], role: str, job: Job, *, core: int | None) -> None:
        self.name = f"{Path(program[-1]).name} {role}"
        self._command = (*program, role, *job.words())
        self._core = core
        self._process: asyncio.subprocess.Process | None = None
        self._errors: IO[bytes] | None = None

    async def __aenter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __aexit__
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(),
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._errors is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.shield(self._process.wait())
        self._errors.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def loaded(self) -> None:
        """Wait until it has imported what it needs, then pin it. Raises ChildFailed."""
        assert self._process is not None
        await self._hear("loaded", _READY_SECONDS)
        pin(self._process.pid, self._core)

    async def open(self) -> None:
        """Let it connect, and wait until it is ready. Raises ChildFailed."""
        await self._say("open")
        await self._hear("ready", _READY_SECONDS)

    async def go(self) -> None:
        """Start the measurement."""
        await self._say("go")

    async def result(self, timeout: float) -> dict[str, Any]:
        """What it measured, within ``timeout`` seconds. Raises ChildFailed."""
        line = await self._hear("result", timeout)
        values: dict[str, Any] = json.loads(line)
        return values

    async def _say(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word.encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise self._failure(f"ended before {word!r}") from None

    async def _hear(self, word: str, timeout: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = (await self._process.stdout.readline()).decode().rstrip("\n")
        except TimeoutError:
            raise self._failure(f"did not say {word!r} within {timeout:g} s") from None
        said, _, rest = line.partition(" ")
        if said != word:
            # a moment for what it has to say about its end; it is killed right after
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._process.wait()
            raise self._failure(f"said {line!r} instead of {word!r}" if line else f"ended before {word!r}")
        return rest

    def _failure(self, what: str) -> ChildFailed:
        assert self._errors is not None
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        tail = self._errors.read().decode(errors="replace").strip()
        return ChildFailed(f"{self.name} {what}" + (f"; its stderr ends with:\n{tail}" if tail else ""))


def child_environment() -> Mapping[str, str]:
    """Our environment, with this very package first on the path, wherever it was imported from."""
    package = Path(petalbus.__file__).parent.parent
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{path}" if path else str(package)}
