"""One turn: the parts of one peer play one scenario once, in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.process import ChildProcess

Results = Sequence[dict[str, Any]]


class Mode(Enum):
    """When a part works."""

    BEFORE = "before"
    """Runs to its end before the next part connects (it fills an inbox)."""

    SERVE = "serve"
    """Works from the moment it is ready until the turn is over; measures nothing."""

    MEASURE = "measure"
    """Waits for all others, starts with the other measuring parts, hands in a result."""


@dataclass(frozen=True, slots=True)
class Part:
    """A role to be played; parts connect in the order in which a turn lists them."""

    role: str
    mode: Mode
    job: Job
    program: Sequence[str] | None = None
    """Another program than the turn's own."""


@dataclass(frozen=True, slots=True)
class Turn:
    """``label`` names the series of the figures, which ``figures`` makes from the measuring parts' results."""

    label: str
    program: Sequence[str]
    parts: Sequence[Part]
    figures: Callable[[Results], Mapping[str, float]]
    timeout: float = 120.0


class Cast:
    """The processes of one turn."""

    def __init__(self, turn: Turn, core: int | None) -> None:
        self.turn = turn
        self._stack = AsyncExitStack()
        self._children = [
            ChildProcess(part.program or turn.program, part.role, part.job, core=core) for part in turn.parts
        ]

    async def start(self) -> None:
        """Start all processes, in parallel and on any core: they only import."""
        for child in self._children:
            await self._stack.enter_async_context(child)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [child.pid for child in self._children]

    async def loaded(self) -> None:
        """Wait until all have imported what they need; from then on they do nothing, on the measured core."""
        for child in self._children:
            await child.loaded()

    async def play(self) -> dict[str, float]:
        """Let them connect in order, measure, and give the figures. Raises ChildFailed."""
        measuring = []
        for part, child in zip(self.turn.parts, self._children, strict=True):
            await child.open()
            if part.mode is Mode.BEFORE:
                await child.go()
                await child.result(self.turn.timeout)
            elif part.mode is Mode.MEASURE:
                measuring.append(child)
        for child in measuring:
            await child.go()
        results = [await child.result(self.turn.timeout) for child in measuring]
        return dict(self.turn.figures(results))

    async def end(self) -> None:
        """Kill what still runs."""
        await self._stack.aclose()
