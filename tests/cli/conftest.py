"""Buses as users start them, and the command line as users run it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.cli.app import run as run_here

from support.procs import child_environment
from support.servers import kill_leftovers, short_directory

READY_SECONDS = 30.0
COMMAND = [sys.executable, "-c", "from petalbus.daemon.cli import main; main()"]


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        """Its only JSON line."""
        (only,) = self.objects
        return only

    @property
    def error(self) -> dict[str, Any]:
        """The error that it printed as JSON."""
        (line,) = self.err.splitlines()
        told: dict[str, Any] = json.loads(line)["error"]
        return told


def run_process(*arguments: str, timeout: float = 30.0, stdin: str = "", **environment: str) -> Answer:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=child_environment(environment),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


class Daemon:
    """A `petalbus up --json` process. Its events are read as they come."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        self.data = data
        self.events: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self._news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            [*COMMAND, "up", "--json", "--data", str(data), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(environment),
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_events, name="daemon-stdout"),
            threading.Thread(target=self._read_log, name="daemon-stderr"),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def event(self, name: str, *, timeout: float = READY_SECONDS) -> dict[str, Any]:
        """The next event of that name."""
        until = time.monotonic() + timeout
        while True:
            try:
                event = self._news.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no event {name!r} within {timeout:g} s: {self.report()}") from None
            assert event is not None, f"the daemon ended before {name!r}: {self.report()}"
            if event["event"] == name:
                return event

    def ready(self) -> dict[str, Any]:
        """Wait until it is ready."""
        return self.event("ready")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, *, timeout: float = READY_SECONDS) -> int:
        """Wait for its end and all its output; the exit code."""
        code = self._process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, this process alone."""
        self.signal(signal.SIGKILL)
        self._process.wait(10)

    def close(self) -> None:
        """Kill it and everything on its data directory."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        kill_leftovers(self.data)
        for reader in self._readers:
            reader.join(10)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def report(self) -> str:
        """What it said so far, for a failure's message."""
        return "\n".join(map(str, [*self.events, *self.log[-40:]]))

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self.events.append(event)
            self._news.put(event)
        self._news.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"text": line})


class Buses:
    """Starts daemons and leaves none behind."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def directory(self) -> Path:
        """A new data directory's path."""
        return self._stack.enter_context(short_directory()) / "data"

    def up(self, *options: str, data: Path | None = None, **environment: str) -> Daemon:
        """Start one; wait for its events yourself."""
        daemon = Daemon(data if data is not None else self.directory(), *options, **environment)
        self._stack.callback(daemon.close)
        return daemon

    def close(self) -> None:
        """Kill all."""
        self._stack.close()


class Cli:
    """The command line on one data directory: quick, in this process. ``run_process`` is the real thing."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = data
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Answer:
        """Run a command."""
        self._capsys.readouterr()
        code = run_here([*arguments, "--data", str(self.data)])
        out, err = self._capsys.readouterr()
        return Answer(code, out, err)

    def ok(self, *arguments: str) -> Answer:
        """Run a command that must succeed."""
        answer = self(*arguments)
        assert answer.code == 0, answer
        return answer

    def json(self, *arguments: str) -> Any:
        """Run a command with --json that must succeed; what it printed: the object, or a list of them if not one."""
        objects = self.ok(*arguments, "--json").objects
        return objects[0] if len(objects) == 1 else objects


@pytest.fixture
def buses() -> Iterator[Buses]:
    """Starts daemons; none survives the test."""
    started = Buses()
    yield started
    started.close()


@pytest.fixture(scope="module")
def module_buses() -> Iterator[Buses]:
    """The same, for a module."""
    started = Buses()
    yield started
    started.close()


@pytest.fixture(scope="module")
def shared(module_buses: Buses) -> Daemon:
    """A bus with a simulated vehicle that a module's tests share."""
    daemon = module_buses.up("--sim")
    assert daemon.ready()["vehicle_heard"], daemon.report()
    return daemon


@pytest.fixture
def cli(shared: Daemon, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on the shared bus."""
    return Cli(shared.data, capsys)


@pytest.fixture
def cli_on(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], Cli]:
    """The command line on any data directory."""
    return lambda data: Cli(data, capsys)


@pytest.fixture(scope="module", params=["px4", "ardupilot"])
def flown(request: pytest.FixtureRequest, module_buses: Buses) -> Iterator[tuple[str, Daemon]]:
    """A bus with a simulated vehicle of each kind, one after the other, that a module's tests share."""
    daemon = module_buses.up("--sim", "--set", f"sim_autopilot={request.param}", "--set", "http_enabled=false")
    daemon.ready()
    yield request.param, daemon
    daemon.close()


@pytest.fixture
def kind(flown: tuple[str, Daemon]) -> str:
    """Which kind of vehicle it is."""
    return flown[0]


@pytest.fixture
def mav(flown: tuple[str, Daemon], capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """``mav("params", "get", ...)``: `petalbus mav` on that vehicle."""
    cli = Cli(flown[1].data, capsys)
    return lambda *words: cli("mav", *map(str, words))
