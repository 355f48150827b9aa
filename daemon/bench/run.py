"""One run: rounds of scenarios of turns, interleaved, on one fresh server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from petalbus.daemon.bench.machine import facts
from petalbus.daemon.bench.peers.found import find_peers
from petalbus.daemon.bench.process import ChildFailed
from petalbus.daemon.bench.result import RunResult
from petalbus.daemon.bench.scenarios.base import Scenario, Stage
from petalbus.daemon.bench.servers import BenchServer, bench_server, nats_server, scratch_directory
from petalbus.daemon.bench.sizes import Sizes
from petalbus.daemon.bench.turn import Cast, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is run and where. ``core``: all measured processes are pinned to it; None pins nothing."""

    scenarios: Sequence[Scenario]
    rounds: int
    sizes: Sizes
    core: int | None
    server: Path | None = None


async def run(settings: Settings, progress: Console) -> tuple[RunResult, dict[str, object]]:
    """Measure; returns the figures and the facts about the machine. Raises the embedded server's errors."""
    result = RunResult(rounds=settings.rounds)
    async with AsyncExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        peers = await asyncio.to_thread(find_peers, scratch)
        server = await stack.enter_async_context(bench_server(settings.server, settings.core))
        nats = None
        if peers["jetstream"].missing is None:
            nats = await stack.enter_async_context(nats_server(settings.core))
        stage = Stage(peers, server.address, nats, settings.sizes)
        wanted = {name for scenario in settings.scenarios for name in scenario.PEERS}
        result.skipped = {name: why for name in sorted(wanted) if (why := peers[name].missing) is not None}
        for number in range(settings.rounds):
            for scenario in settings.scenarios:
                progress.print(f"round {number + 1} of {settings.rounds}: {scenario.TITLE}", highlight=False)
                await _play(scenario, stage, server, settings.core, result, number)
        return result, facts(server=server.label, core=settings.core)


async def _play(
    scenario: Scenario, stage: Stage, server: BenchServer, core: int | None, result: RunResult, number: int
) -> None:
    """All turns of one scenario, one after the other. A turn that fails is noted, and the others go on."""
    async with AsyncExitStack() as stack:
        casts = []
        for turn in scenario.turns(stage):
            cast = Cast(turn, core)
            stack.push_async_callback(cast.end)
            await cast.start()
            casts.append(cast)
        # nothing is measured before the last process has imported what it needs
        waiting = [cast for cast in casts if await _survives(cast.loaded(), scenario, cast.turn, result, number)]
        for cast in waiting:
            await server.clear()
            await _survives(_measure(cast, scenario, result, number), scenario, cast.turn, result, number)
            await cast.end()


async def _measure(cast: Cast, scenario: Scenario, result: RunResult, number: int) -> None:
    result.add(scenario.NAME, cast.turn.label, number, await cast.play())


async def _survives(work: object, scenario: Scenario, turn: Turn, result: RunResult, number: int) -> bool:
    try:
        await work  # type: ignore[misc]
    except ChildFailed as error:
        result.failures.append(f"{scenario.NAME}, {turn.label}, round {number + 1}: {error}")
        return False
    return True


def console_for(json_output: bool) -> Console:
    """Progress goes to stderr, so that stdout carries nothing but the report or the JSON."""
    return Console(stderr=True, quiet=json_output and not sys.stderr.isatty())
