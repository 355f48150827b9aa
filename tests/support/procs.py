"""Python programs in child processes: started, listened to, killed, frozen.

child = await children.code("print('ready', flush=True); ...")
await child.line("ready")
child.kill()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE_SECONDS = 15.0


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: this checkout's packages, unbuffered output, warnings as errors."""
    paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "error",
        "NO_COLOR": "1",
        "PETALBUS_HTTP_PORT": "0",  # tests run side by side
        **(extra or {}),
    }


class Child:
    """A running child process, in a session of its own. ``output`` and ``errors`` hold the lines so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.output: list[str] = []
        self.errors: list[str] = []
        self._process = process
        self._seen = 0
        self._news = asyncio.Event()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.output), name=f"child.{process.pid}.stdout"),
            asyncio.create_task(self._read(process.stderr, self.errors), name=f"child.{process.pid}.stderr"),
        ]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self._process.returncode

    async def line(self, pattern: str, *, timeout: float = LINE_SECONDS) -> str:
        """The next line of its standard output in which the regular expression is found; earlier ones are skipped."""
        expression = re.compile(pattern)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    while self._seen < len(self.output):
                        self._seen += 1
                        if expression.search(self.output[self._seen - 1]):
                            return self.output[self._seen - 1]
                    assert not self._readers[0].done(), f"the child ended before {pattern!r}:\n{self.report()}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no line with {pattern!r} within {timeout:g} s:\n{self.report()}") from None

    async def wait(self, *, timeout: float = LINE_SECONDS) -> int:
        """Wait for its end and all its output; the exit code (negative: the signal)."""
        try:
            async with asyncio.timeout(timeout):
                code = await self._process.wait()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            raise AssertionError(f"the child did not end within {timeout:g} s:\n{self.report()}") from None
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send any signal to the process alone."""
        os.kill(self.pid, number)

    async def write(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        await self._process.stdin.drain()

    async def close(self) -> None:
        """Kill it and every process of its session that is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        for reader in self._readers:  # a grandchild in another session may hold the pipes open
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def report(self) -> str:
        """All output so far, for a failure's message."""
        return "\n".join(["-- output", *self.output[-60:], "-- errors", *self.errors[-60:]])

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        try:
            while line := await stream.readline():
                lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.set()
        finally:
            # Woken only once this task counts as done: line() must see that nothing more comes.
            asyncio.get_running_loop().call_soon(self._news.set)


class Children:
    """Starts children and leaves none behind. The fixture `children` is one."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    async def code(self, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Run a Python program text."""
        return await self.run(sys.executable, "-c", code, *arguments, environment=environment)

    async def module(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Run a module, as ``python -m`` does."""
        return await self.run(sys.executable, "-m", module, *arguments, environment=environment)

    async def petalbus(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Run the command line."""
        code = "from petalbus.daemon.cli import main; main()"
        return await self.code(code, *arguments, environment=environment)

    async def run(self, *command: str, environment: Mapping[str, str] | None = None) -> Child:
        """Run any program."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(environment),
            start_new_session=True,
            limit=1 << 22,
        )
        child = Child(process)
        self._started.append(child)
        return child

    async def close(self) -> None:
        """Kill all of them."""
        for child in self._started:
            await child.close()
