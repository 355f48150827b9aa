"""Publishing alone, one process: one record at a time, and from 64 tasks, each awaiting its receipt."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.sizes import SLOW_PEERS
from petalbus.daemon.bench.turn import Mode, Part, Turn

NAME: Final = "publish"
TITLE: Final = "publish 300-byte records: one at a time, and from 64 tasks"
PEERS: Final = ("petalbus", "floor", "c-floor", "redis-py", "faststream", "jetstream")
UNITS: Final = {"one_per_s": "records/s", "many_per_s": "records/s"}
COMPARED: Final[tuple[str, ...]] = ("one_per_s", "many_per_s")


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer; PetalBus once to a topic, once to an inbox (with deduplication)."""
    found = []
    for peer in stage.present(*PEERS):
        if peer.name == "petalbus":
            found.append(_turn(stage, peer, "petalbus", "topic"))
            found.append(_turn(stage, peer, "petalbus-send", ""))
        else:
            found.append(_turn(stage, peer, peer.name, ""))
    return found


def _turn(stage: Stage, peer: Peer, label: str, variant: str) -> Turn:
    sizes = stage.sizes
    count = sizes.publish_slow if peer.name in SLOW_PEERS else sizes.publish
    job = Job(address=stage.address(peer.name), count=count, warmup=count // 10, variant=variant)
    return Turn(label, peer.program, (Part("publisher", Mode.MEASURE, job),), only)
