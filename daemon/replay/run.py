"""The replay itself: read in order, wait for each entry's time, write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.replay.errors import NoHistory, ReplayError, ReplayRefused
from petalbus.daemon.replay.history import History, Recorded, open_history
from petalbus.daemon.replay.points import Point, parse_point
from petalbus.daemon.replay.source import Source, open_source
from petalbus.daemon.replay.target import Target, open_target, refuse_running

MAX_SPEED: Final = 10_000.0
TELL_EVERY: Final = 0.25
"""Seconds between two calls of ``progress``."""

EARLY: Final = 0.002
"""Seconds by which an entry may come early: a shorter wait is not worth a timer."""


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far a replay is. ``position``: recorded seconds so far; ``elapsed``: seconds it took."""

    records: int
    position: float
    elapsed: float
    url: str


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did.

    ``streams``: entries of each stream. ``duration``: recorded seconds between the first and the last entry (time
    between two boots is not counted, nobody knows it). ``elapsed``: seconds it took. ``speed``: what was asked for
    (None: as fast as it goes); ``kept``: what was reached; ``late``: most seconds that an entry was written after its
    time.
    """

    into: str
    bus: str
    streams: dict[str, int] = field(default_factory=dict)
    records: int = 0
    boots: int = 0
    duration: float = 0.0
    elapsed: float = 0.0
    speed: float | None = None
    kept: float | None = None
    late: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            **asdict(self),
            "duration": round(self.duration, 6),
            "elapsed": round(self.elapsed, 6),
            "kept": round(self.kept, 3) if self.kept is not None else None,
            "late": round(self.late, 6),
        }


async def replay(  # one for each option of the command
    source: str | Path | None,
    *,
    into: Path | str,
    start: str | Point = "start",
    end: str | Point = "end",
    streams: Sequence[str] = (),
    speed: float | None = 1.0,
    bus: str | None = None,
    memory_mb: int | None = None,
    progress: Callable[[ReplayProgress], object] | None = None,
) -> ReplayReport:
    """Write recorded history into a fresh bus on the data directory ``into``: same ids, same order.

    ``source``: a URL (``unix:///..``, ``redis://..``), or the data directory of a running or stopped bus (None: the
    default one). ``start`` and ``end``: see ``parse_point``. ``streams``: topics, names, or patterns such as
    ``queue:vehicle:*``; none means all. ``speed``: 1 is real time, 10 ten times faster, None or 0 as fast as it goes.
    ``bus``: the bus's name, where it cannot be found out. ``memory_mb``: memory of the fresh bus in MiB. While it runs,
    the fresh bus is found under ``into`` like any other.

    Raises ValueError (a point or speed that is not understood), ReplayRefused, NoHistory, ReplayError, and the errors
    of the server's start. A replay that is cancelled leaves what it has written.
    """
    first = parse_point(start, end=False) if isinstance(start, str) else start
    last = parse_point(end, end=True) if isinstance(end, str) else end
    pace = _Pace(_checked_speed(speed))
    target_paths = DataPaths.of(into)
    refuse_running(target_paths.root)
    if not (isinstance(source, str) and "://" in source) and DataPaths.of(source).root == target_paths.root:
        raise ReplayRefused(f"history is not replayed into itself: {target_paths.root} is its own source")
    target_paths.create()
    try:
        async with (
            open_target(target_paths.root, memory_mb=memory_mb or 512) as target,
            open_source(source, bus=bus, scratch=target_paths.root) as opened,
        ):
            history = await open_history(opened, streams=streams, start=first, end=last)
            target.memory_mb = memory_mb or await _memory_for(opened)
            player = _Player(opened, target, pace, progress)
            await player.play(history, skip_to=first.seconds, until=last.seconds if last.kind == "seconds" else None)
            return player.report(target_paths.root)
    except (BusError, ServerError) as error:
        raise ReplayError(f"the replay broke off: {error}") from error


class _Player:
    """One replay: what was written so far, and when."""

    def __init__(
        self, source: Source, target: Target, pace: _Pace, progress: Callable[[ReplayProgress], object] | None
    ) -> None:
        self._source = source
        self._target = target
        self._pace = pace
        self._progress = progress
        self._told = 0.0
        self._records = 0
        self._boots: set[int] = set()

    async def play(self, history: History, *, skip_to: float, until: float | None) -> None:
        """Write it; ``skip_to`` and ``until`` are recorded seconds since the first entry."""
        line = _Timeline()
        async for record in history.records():
            position = line.advance(record)
            if position < skip_to:
                continue
            if until is not None and position > until:
                break
            if not self._records:
                await self._target.prepare(self._source)
            if self._pace.must_wait(position):
                await self._target.flush()
                await self._pace.wait(position)
            await self._target.add(record, self._source)
            self._records += 1
            self._boots.add(record.boot)
            if time.monotonic() - self._told >= TELL_EVERY:
                self._tell()
        await self._target.flush()
        if not self._records:
            raise NoHistory(f"nothing is recorded between those points in {self._source.shown}")
        self._tell()

    def report(self, into: Path) -> ReplayReport:
        """What was done."""
        pace, prefix = self._pace, self._source.keys.prefix
        elapsed = pace.elapsed
        return ReplayReport(
            into=str(into),
            bus=self._source.keys.bus,
            streams={key.removeprefix(prefix): count for key, count in sorted(self._target.counts.items())},
            records=self._records,
            boots=len(self._boots),
            duration=pace.played,
            elapsed=elapsed,
            speed=pace.speed,
            kept=pace.played / elapsed if elapsed > 0 else None,
            late=pace.late,
        )

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._progress is not None:
            pace = self._pace
            self._progress(ReplayProgress(self._records, pace.played, pace.elapsed, self._target.url))


class _Timeline:
    """Recorded seconds since the first entry, over all boots; between two of them no time passes."""

    def __init__(self) -> None:
        self._boot: int | None = None
        self._begin = 0
        self._before = 0
        self._now = 0

    def advance(self, record: Recorded) -> float:
        if self._boot != record.boot:
            self._before += self._now
            self._boot, self._begin = record.boot, record.at
        self._now = max(0, record.at - self._begin)
        return (self._before + self._now) / 1e9


class _Pace:
    """When an entry is due. ``speed``: recorded seconds a second, or None."""

    def __init__(self, speed: float | None) -> None:
        self.speed = speed
        self.late = 0.0
        self.played = 0.0
        self._started: float | None = None
        self._origin = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started if self._started is not None else 0.0

    def must_wait(self, position: float) -> bool:
        """Note the position of the next entry; True when it is not due yet."""
        if self._started is None:
            self._started, self._origin = time.monotonic(), position
        self.played = max(self.played, position - self._origin)
        if self.speed is None:
            return False
        ahead = self._ahead(position)
        self.late = max(self.late, -ahead)
        return ahead > EARLY

    async def wait(self, position: float) -> None:
        """Sleep until the entry is due."""
        await asyncio.sleep(max(0.0, self._ahead(position)))

    def _ahead(self, position: float) -> float:
        assert self.speed is not None
        assert self._started is not None
        return self._started + (position - self._origin) / self.speed - time.monotonic()


async def _memory_for(source: Source) -> int:
    """MiB for a fresh bus that may become as large as its source."""
    text: bytes = await source.call("INFO", "memory")
    used = next(int(line.split(b":")[1]) for line in text.splitlines() if line.startswith(b"used_memory:"))
    return max(512, 2 * used >> 20)


def _checked_speed(speed: float | None) -> float | None:
    if not speed:
        return None
    if not 0 < speed <= MAX_SPEED:
        raise ValueError(
            f"speed {speed!r} is not possible; write 1 for real time, up to {MAX_SPEED:g}, or 0 for no waiting"
        )
    return float(speed)
