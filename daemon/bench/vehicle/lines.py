"""What is printed: each figure with its target, and whether that is met."""

from __future__ import annotations

from typing import Final, NamedTuple

from petalbus.daemon.bench.vehicle import damage, gaps, params, transfers

_SENDS: Final = 1.15
_LOG_TIMES: Final = 20.0
_FILE_S: Final = 2.0
_WRONG_S: Final = 0.5
_GAP_MS: Final = 100.0
_BEAT_LATE: Final = 1.5
"""Heartbeat intervals without a heartbeat: with two a heartbeat would be missing."""


class Line(NamedTuple):
    """One figure: what it is, what was measured, what is meant (``target`` at most, or ``at_least`` that)."""

    what: str
    value: float
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def of_ingest(measured: dict[str, float], rate: float) -> list[Line]:
    """What recording costs."""
    frames = f"{rate:g} frames/s"
    return [
        Line("no vehicle: share of a core, daemon and server, %", 100 * measured["idle"], 1.0),
        Line(f"{frames}: share of a core, daemon and server, %", 100 * measured["share"], 6.0),
        Line(f"{frames}: frames that were not recorded", measured["lost"], 0.0),
        Line(f"{frames}: server memory a frame, bytes", measured["memory_bytes"], 90.0),
        Line(f"{frames}: append-only file a frame, bytes", measured["file_bytes"], 200.0),
        Line(f"{frames}: command record to its first byte, p99, ms", measured["command_p99_ms"], 3.0),
    ]


def of_transfers(measured: dict[str, float]) -> list[Line]:
    """How quickly a log comes."""
    before, least = transfers.PREDECESSOR_KB_S, _LOG_TIMES
    return [
        Line("log by MAVLink FTP: times the predecessor's rate", measured["ftp"] / before, least, at_least=True),
        Line("log by log messages: times the predecessor's rate", measured["log"] / before, least, at_least=True),
    ]


def of_packed(measured: dict[str, float]) -> list[Line]:
    """How quickly all parameters come as a file."""
    what = f"{transfers.PARAMETERS} parameters by param.pck, {transfers.FILE_LOSS:.0%} lost each way"
    return [
        Line(f"{what}: s, median", measured["median"], _FILE_S),
        Line(f"{what}: s, worst", measured["worst"], _FILE_S),
    ]


def of_wrong_types(seconds: float) -> list[Line]:
    """How soon a wrong type is reported."""
    return [Line("a parameter set with a wrong type or value: s until it is reported", seconds, _WRONG_S)]


def of_damage(measured: dict[str, float]) -> list[Line]:
    """What is found between damaged packets."""
    return [
        Line(f"{damage.DAMAGED:.0%} damaged packets, {way}: intact frames found, %", found, 100.0, at_least=True)
        for way, found in measured.items()
    ]


def of_gaps(measured: list[gaps.Gap]) -> list[Line]:
    """What bulk operations hold up."""
    late = 1000 * gaps.BEAT_S * _BEAT_LATE
    return [
        line
        for one in measured
        for line in (
            Line(f"{one.what} ({one.seconds:.1f} s): longest silence of a 50 Hz record, ms", one.records_ms, _GAP_MS),
            Line(f"{one.what}: longest silence of our 5 Hz heartbeat, ms", one.heartbeats_ms, late),
        )
    ]


def of_params(what: str, wire: params.Wire, measured: dict[str, float]) -> list[Line]:
    """How near bulk parameters come to the possible."""
    place = f"{what} {params.NUMBER} parameters, {wire.trip * 1000:g} ms, {wire.loss:.0%} lost each way"
    return [
        Line(f"{place}: times the best possible", measured["times"], wire.allowed),
        Line(f"{place}: sendings, times the least possible", measured["sends"], _SENDS),
        Line(f"{place}: answered", measured["answered"], params.NUMBER, at_least=True),
    ]
