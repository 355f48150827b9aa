"""Runs the vehicle's measurements and prints them with their targets."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final, NamedTuple

from petalbus.daemon.bench.vehicle import ingest, params, transfers
from petalbus.daemon.cli.common import say, table

_LOSSES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
_TRIPS: Final = (0.02, 0.1, 0.4)
_SENDS: Final = 1.15
_RATE: Final = 2000.0


class Line(NamedTuple):
    """One figure: what it is, what was measured, what is meant (``most`` or ``least``)."""

    what: str
    value: float
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def bench(*, quick: bool, as_json: bool, seeds: int | None = None) -> int:
    """Measure and print. Returns the exit code: 0, also where a target is missed; the report says that."""
    lines = asyncio.run(_measure(quick=quick, seeds=seeds or (3 if quick else 20)))
    if as_json:
        sys.stdout.write(json.dumps([{**line._asdict(), "met": line.met} for line in lines], indent=1) + "\n")
        return 0
    rows = [
        (line.what, f"{line.value:.3g}", f"{'at least' if line.at_least else 'at most'} {line.target:g}", _word(line))
        for line in lines
    ]
    table(("WHAT", ">MEASURED", ">TARGET", ""), rows, empty="nothing was measured")
    return 0


async def _measure(*, quick: bool, seeds: int) -> list[Line]:
    lines = _of_ingest(await ingest.measure(rate=_RATE, seconds=6.0 if quick else 20.0))
    lines += _of_transfers(await transfers.measure())
    trips, losses = ((0.1,), (0.0, 0.2)) if quick else (_TRIPS, _LOSSES)
    for trip in trips:
        for loss in losses:
            for what in ("get", "set"):
                wire = params.Wire(loss=loss, trip=trip)
                lines += _of_params(what, wire, await params.measure(wire, what=what, seeds=seeds))
                _tell(f"{what}, {trip * 1000:g} ms, {loss:.0%}")
    return lines


def _of_ingest(measured: dict[str, float]) -> list[Line]:
    frames = f"{_RATE:g} frames/s"
    return [
        Line("no vehicle: share of a core, %", 100 * measured["idle"], 1.0),
        Line(f"{frames}: share of a core, daemon and server, %", 100 * measured["share"], 6.0),
        Line(f"{frames}: frames that were not recorded", measured["lost"], 0.0),
        Line(f"{frames}: server memory a frame, bytes", measured["memory_bytes"], 90.0),
        Line(f"{frames}: append-only file a frame, bytes", measured["file_bytes"], 200.0),
        Line(f"{frames}: command record to its first byte, p99, ms", measured["command_p99_ms"], 3.0),
    ]


def _of_transfers(measured: dict[str, float]) -> list[Line]:
    least = 20.0
    before = transfers.PREDECESSOR_KB_S
    return [
        Line("log by MAVLink FTP: times the predecessor's rate", measured["ftp"] / before, least, at_least=True),
        Line("log by log messages: times the predecessor's rate", measured["log"] / before, least, at_least=True),
    ]


def _of_params(what: str, wire: params.Wire, measured: dict[str, float]) -> list[Line]:
    place = f"{what} {params.NUMBER} parameters, {wire.trip * 1000:g} ms, {wire.loss:.0%} lost each way"
    return [
        Line(f"{place}: times the best possible", measured["times"], wire.allowed),
        Line(f"{place}: sendings, times the least possible", measured["sends"], _SENDS),
        Line(f"{place}: answered", measured["answered"], params.NUMBER, at_least=True),
    ]


def _word(line: Line) -> str:
    return "met" if line.met else "MISSED"


def _tell(text: str) -> None:
    """Progress, for people."""
    if sys.stdout.isatty():
        say(text)
