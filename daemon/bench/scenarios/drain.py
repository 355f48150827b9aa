"""Reading and committing what is already there: the inbox is filled first, then one process works it off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.scenarios.base import Stage
from petalbus.daemon.bench.sizes import SLOW_PEERS
from petalbus.daemon.bench.turn import Mode, Part, Results, Turn

NAME: Final = "drain"
TITLE: Final = "read and commit a filled inbox"
PEERS: Final = ("petalbus", "floor", "c-floor", "redis-py", "faststream", "jetstream")
UNITS: Final = {"per_s": "records/s"}
COMPARED: Final[tuple[str, ...]] = ("per_s",)


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer."""
    return [_turn(stage, peer) for peer in stage.present(*PEERS)]


def _turn(stage: Stage, peer: Peer) -> Turn:
    sizes = stage.sizes
    count = sizes.stream_slow if peer.name in SLOW_PEERS else sizes.stream
    job = Job(address=stage.address(peer.name), count=count, variant="late")

    def figures(results: Results) -> Mapping[str, float]:
        # from the first record in hand: connecting and making the group is not what is measured
        return {"per_s": count * 1e9 / (results[0]["end"] - results[0]["first"])}

    parts = (Part("producer", Mode.BEFORE, job), Part("consumer", Mode.MEASURE, job))
    return Turn(peer.name, peer.program, parts, figures)
