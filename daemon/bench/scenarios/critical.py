"""How long a CRITICAL record waits for its start behind a long line of LOW ones whose handler computes for 1 ms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.turn import Mode, Part, Results, Turn

WORK_US: Final = 1000
RATE: Final = 97
"""CRITICAL records a second; no divisor of the handlers' rate, so that they come at any moment of a running handler."""

NAME: Final = "critical"
TITLE: Final = "start of a CRITICAL record behind a backlog of LOW ones, each of which computes for 1 ms"
PEERS: Final = ("petalbus", "floor", "redis-py", "faststream")
UNITS: Final = {"p50_us": "us", "p99_us": "us", "max_us": "us", "over_ms": "ms beyond one handler (p99)"}
COMPARED: Final[tuple[str, ...]] = ("p50_us", "p99_us")


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer. Those without priorities get a stream of its own for what is urgent."""
    return [_turn(stage, peer) for peer in stage.present(*PEERS)]


def _turn(stage: Stage, peer: Peer) -> Turn:
    sizes = stage.sizes
    # nobody else works off more than a few thousand while the CRITICAL ones are sent: filling in more takes long only
    backlog = sizes.backlog if peer.name == "petalbus" else sizes.backlog_others
    address = stage.redis
    parts = (
        Part("producer", Mode.BEFORE, Job(address=address, count=backlog, size=0, variant="low")),
        Part("worker", Mode.MEASURE, Job(address=address, count=sizes.probes, work_us=WORK_US)),
        Part("source", Mode.MEASURE, Job(address=address, count=sizes.probes, rate=RATE, size=0, variant="urgent")),
    )
    return Turn(peer.name, peer.program, parts, _figures)


def _figures(results: Results) -> Mapping[str, float]:
    figures = only(results)
    return {**figures, "over_ms": (figures["p99_us"] - WORK_US) / 1000}
