"""One run: rounds of scenarios of turns, interleaved, on one fresh server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from petalbus.daemon.bench.load import Watch
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
    peers: frozenset[str] | None = None
    """Names of the peers that are measured; None: all that are here."""


async def run(settings: Settings, progress: Console) -> tuple[RunResult, dict[str, Any]]:
    """Measure; returns the figures and the facts about the machine. Raises the embedded server's errors."""
    async with AsyncExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        peers = await asyncio.to_thread(find_peers, scratch)
        wanted = {name for scenario in settings.scenarios for name in scenario.PEERS}
        if settings.peers is not None:
            wanted &= settings.peers
        server = await stack.enter_async_context(bench_server(settings.server, settings.core))
        servers, nats = [server.pid], None
        if "jetstream" in wanted and peers["jetstream"].missing is None:
            nats, pid = await stack.enter_async_context(nats_server(settings.core))
            servers.append(pid)
        play = _Play(server, Watch(settings.core, servers), RunResult(rounds=settings.rounds), settings.core)
        play.result.skipped = {name: why for name in sorted(wanted) if (why := peers[name].missing) is not None}
        stage = Stage({name: peers[name] for name in wanted}, server.address, nats, settings.sizes)
        for number in range(settings.rounds):
            for scenario in settings.scenarios:
                progress.print(f"round {number + 1} of {settings.rounds}: {scenario.TITLE}", highlight=False)
                await play.scenario(scenario, stage, number)
        play.result.foreign = play.watch.foreign
        return play.result, facts(server=server.label, core=settings.core)


class _Play:
    """Plays scenarios and keeps what comes of them."""

    def __init__(self, server: BenchServer, watch: Watch, result: RunResult, core: int | None) -> None:
        self.watch = watch
        self.result = result
        self._server = server
        self._core = core

    async def scenario(self, scenario: Scenario, stage: Stage, number: int) -> None:
        """All turns of one scenario, one after the other. A turn that fails is noted, and the others go on."""
        async with AsyncExitStack() as stack:
            casts = []
            for turn in scenario.turns(stage):
                cast = Cast(turn, self._core)
                stack.push_async_callback(cast.end)
                await cast.start()
                casts.append(cast)
            # nothing is measured before the last process has imported what it needs
            loaded = [cast for cast in casts if await self._survives(cast.loaded(), scenario, cast.turn, number)]
            for cast in loaded:
                await self._server.clear()
                await self._survives(self._measure(cast, scenario, number), scenario, cast.turn, number)
                await cast.end()

    async def _measure(self, cast: Cast, scenario: Scenario, number: int) -> None:
        self.watch.start(cast.pids)
        self.result.add(scenario.NAME, cast.turn.label, number, await cast.play())
        self.watch.stop(cast.pids)

    async def _survives(self, work: Awaitable[None], scenario: Scenario, turn: Turn, number: int) -> bool:
        try:
            await work
        except ChildFailed as error:
            self.result.failures.append(f"{scenario.NAME}, {turn.label}, round {number + 1}: {error}")
            return False
        return True
