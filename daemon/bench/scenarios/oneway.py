"""One-way latency at a steady rate: from before the send in one process until the record is in the other's hands."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.turn import Mode, Part, Turn

RATE: Final = 500
NAME: Final = "oneway"
TITLE: Final = f"one-way latency at {RATE} records/s"
PEERS: Final = ("petalbus", "floor", "c-floor", "redis-py", "faststream", "jetstream")
UNITS: Final = {"p50_us": "us", "p90_us": "us", "p99_us": "us"}
COMPARED: Final[tuple[str, ...]] = ("p50_us",)


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer; PetalBus once by inbox and handler, once by topic and subscription."""
    found = []
    for peer in stage.present(*PEERS):
        found.append(_turn(stage, peer, ""))
        if peer.name == "petalbus":
            found.append(_turn(stage, peer, "topic"))
    return found


def _turn(stage: Stage, peer: Peer, variant: str) -> Turn:
    sizes = stage.sizes
    job = Job(
        address=stage.address(peer.name), count=sizes.oneway, warmup=sizes.oneway_warmup, rate=RATE, variant=variant
    )
    parts = (Part("sink", Mode.MEASURE, job), Part("source", Mode.MEASURE, job))
    return Turn(f"{peer.name}-{variant}" if variant else peer.name, peer.program, parts, only)
