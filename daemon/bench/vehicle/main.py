"""Runs the vehicle's measurements and prints them with their targets."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from petalbus.daemon.bench.vehicle import damage, gaps, ingest, lines, params, transfers
from petalbus.daemon.bench.vehicle.lines import Line
from petalbus.daemon.cli.common import table

_LOSSES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
_TRIPS: Final = (0.02, 0.1, 0.4)
_RATE: Final = 2000.0
_FRAMES: Final = 10_000

Work = Callable[[], Awaitable[list[Line]]]


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement, with a name for the progress."""

    name: str
    work: Work


def bench(*, quick: bool, as_json: bool, seeds: int | None = None) -> int:
    """Measure and print. Returns the exit code: 0, also where a target is missed; the report says that."""
    found = asyncio.run(_measure(_steps(quick=quick, seeds=seeds or (3 if quick else 20))))
    if as_json:
        sys.stdout.write(json.dumps([{**line._asdict(), "met": line.met} for line in found], indent=1) + "\n")
        return 0
    rows = [
        (line.what, f"{line.value:.3g}", f"{'at least' if line.at_least else 'at most'} {line.target:g}", _word(line))
        for line in found
    ]
    table(("WHAT", ">MEASURED", ">TARGET", ""), rows, empty="nothing was measured")
    return 0


def _steps(*, quick: bool, seeds: int) -> list[Step]:
    """What is measured: the costs first, while nothing else of ours runs."""

    async def recording() -> list[Line]:
        return lines.of_ingest(await ingest.measure(rate=_RATE, seconds=4.0 if quick else 20.0), _RATE)

    async def logs() -> list[Line]:
        return lines.of_transfers(await transfers.measure())

    async def file() -> list[Line]:
        return lines.of_packed(await transfers.packed_seconds(seeds=seeds))

    async def wrong() -> list[Line]:
        return lines.of_wrong_types(await params.wrong_type_seconds())

    async def frames() -> list[Line]:
        return lines.of_damage(await asyncio.to_thread(damage.found_percent, frames=_FRAMES))

    async def beside() -> list[Line]:
        return lines.of_gaps(await gaps.measure(quick=quick))

    trips, losses = ((0.1,), (0.0, 0.2)) if quick else (_TRIPS, _LOSSES)
    return [
        Step("recording frames", recording),
        Step("flight logs", logs),
        Step("a file of parameters", file),
        Step("wrong types", wrong),
        Step("damaged packets", frames),
        Step("beside bulk operations", beside),
        *(_cell(what, trip, loss, seeds) for trip in trips for loss in losses for what in ("get", "set")),
    ]


def _cell(what: str, trip: float, loss: float, seeds: int) -> Step:
    wire = params.Wire(loss=loss, trip=trip)

    async def work() -> list[Line]:
        return lines.of_params(what, wire, await params.measure(wire, what=what, seeds=seeds))

    return Step(f"{what} parameters, {trip * 1000:g} ms, {loss:.0%} lost", work)


async def _measure(steps: Sequence[Step]) -> list[Line]:
    """One after the other. Progress is for people: a line on standard error, which is drawn again on a terminal."""
    found: list[Line] = []
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(steps))
        for step in steps:
            progress.update(bar, description=step.name)
            begun = time.monotonic()
            measured = await step.work()
            found += measured
            progress.advance(bar)
            taken = f"{time.monotonic() - begun:.1f} s, load of the machine {os.getloadavg()[0]:.1f}"
            console.print(f"{step.name}: {taken}", highlight=False)
            for line in measured:
                if not line.met:
                    console.print(f"  MISSED: {line.what}: {line.value:.3g} for {line.target:g}", highlight=False)
    return found


def _word(line: Line) -> str:
    return "met" if line.met else "MISSED"
