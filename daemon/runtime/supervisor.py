"""Keeps the parts of a daemon running: each in a task of its own, started again with back-off when it fails.

A part is a coroutine function that runs until it is cancelled and calls ``kept.up()`` once it works. One that fails is
shown and started again; it never takes the bus or another part down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

import structlog

from petalbus.daemon.runtime.report import Report

_FIRST_BACKOFF: Final = 0.2
_LAST_BACKOFF: Final = 30.0
_WORKED_SECONDS: Final = 30.0

log: Final = structlog.get_logger(__name__)


class State(StrEnum):
    """Where a part stands."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPED = "stopped"


Statistics = Callable[[], Mapping[str, Any]]
RunPart = Callable[["Kept"], Awaitable[None]]


class Kept:
    """One part that is kept running."""

    def __init__(self, name: str, run: RunPart, stops: int) -> None:
        self.name = name
        self.run = run
        self.stops = stops
        self.state = State.STARTING
        self.restarts = 0
        self.last_error: str | None = None
        self.is_up = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._statistics: Statistics | None = None

    def up(self, statistics: Statistics | None = None) -> None:
        """Called by the part itself: it works now. ``statistics`` is asked when somebody wants to know more."""
        self.state = State.RUNNING
        self._statistics = statistics
        self.is_up.set()

    def down(self, state: State) -> None:
        """It does not work any more."""
        self.state = state
        self._statistics = None
        self.is_up.clear()

    def describe(self) -> dict[str, Any]:
        """State, restarts, the last error, and what the part itself tells."""
        told: dict[str, Any] = {"state": str(self.state), "restarts": self.restarts, "last_error": self.last_error}
        if self._statistics is not None:
            told["statistics"] = dict(self._statistics())
        return told


class Supervisor:
    """The parts of one daemon. ``tasks`` is the group that their tasks belong to."""

    def __init__(self, tasks: asyncio.TaskGroup, report: Report, *, stop_timeout: float) -> None:
        self.parts: dict[str, Kept] = {}
        self._tasks = tasks
        self._report = report
        self._stop_timeout = stop_timeout
        self._stopping = asyncio.Event()

    def start(self, name: str, run: RunPart, *, stops: int) -> Kept:
        """Start a part; it is started again whenever it ends. ``stops``: the lower, the earlier it is stopped."""
        kept = self.parts[name] = Kept(name, run, stops)
        kept.task = self._tasks.create_task(self._keep(kept), name=f"petalbus.part.{name}")
        return kept

    async def stop(self) -> None:
        """Stop all parts one after the other, each within the time allowed."""
        self._stopping.set()
        for kept in sorted(self.parts.values(), key=lambda part: part.stops):
            if kept.task is None or kept.task.done():
                continue
            kept.task.cancel()
            _, left = await asyncio.wait([kept.task], timeout=self._stop_timeout)
            if left:
                log.error("a part does not stop and is left behind", part=kept.name, seconds=self._stop_timeout)
            else:
                log.debug("stopped", part=kept.name)

    def abandoned(self) -> list[str]:
        """The parts that did not stop."""
        return [kept.name for kept in self.parts.values() if kept.task is not None and not kept.task.done()]

    def describe(self) -> dict[str, Any]:
        """All parts by name."""
        return {name: kept.describe() for name, kept in self.parts.items()}

    async def _keep(self, kept: Kept) -> None:
        failures = 0
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                try:
                    await kept.run(kept)
                    if self._stopping.is_set():
                        break
                    reason = "it ended by itself"
                except Exception as error:  # whatever a part raises must not end the others
                    reason = explained(error)
                    log.debug("a part failed", part=kept.name, exc_info=error)
                failures = 1 if time.monotonic() - started > _WORKED_SECONDS else failures + 1
                pause = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(failures - 1, 16))
                kept.down(State.WAITING)
                kept.last_error = reason
                kept.restarts += 1
                log.error("a part failed and is started again", part=kept.name, error=reason, seconds=pause)
                self._report.event("part_failed", part=kept.name, error=reason, retry_in=pause, restarts=kept.restarts)
                await asyncio.sleep(pause)
                kept.state = State.STARTING
        finally:
            kept.down(State.STOPPED)


def explained(error: BaseException) -> str:
    """An error in one line; of a group, what is in it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(explained(one) for one in _leaves(error)))
    text = " ".join(str(error).split())
    if text and hasattr(error, "code"):  # one of ours: a whole sentence
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
