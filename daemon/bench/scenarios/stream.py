"""Produce to consume: one process sends with 64 in flight, another handles and acknowledges everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.scenarios.base import Stage
from petalbus.daemon.bench.sizes import SLOW_PEERS
from petalbus.daemon.bench.turn import Mode, Part, Results, Turn

NAME: Final = "stream"
TITLE: Final = "produce to consume, 300-byte records, 64 in flight, two processes"
PEERS: Final = ("petalbus", "floor", "c-floor", "redis-py", "faststream", "jetstream")
UNITS: Final = {"per_s": "records/s"}
COMPARED: Final[tuple[str, ...]] = ("per_s",)


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer; PetalBus once by inbox and handler, once by topic (telemetry, no deduplication)."""
    found = []
    for peer in stage.present(*PEERS):
        found.append(_turn(stage, peer, ""))
        if peer.name == "petalbus":
            found.append(_turn(stage, peer, "topic"))
    return found


def _turn(stage: Stage, peer: Peer, variant: str) -> Turn:
    sizes = stage.sizes
    count = sizes.stream_slow if peer.name in SLOW_PEERS else sizes.stream
    if peer.name == "c-floor":
        count = sizes.stream_fast
    job = Job(address=stage.address(peer.name), count=count, variant=variant)

    def figures(results: Results) -> Mapping[str, float]:
        took, sent = results
        return {"per_s": count * 1e9 / (took["end"] - sent["start"])}

    parts = (Part("consumer", Mode.MEASURE, job), Part("producer", Mode.MEASURE, job))
    return Turn(f"{peer.name}-{variant}" if variant else peer.name, peer.program, parts, figures)
