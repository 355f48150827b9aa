"""Request and reply at rest: two processes, one request at a time."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.sizes import SLOW_PEERS
from petalbus.daemon.bench.turn import Mode, Part, Turn

NAME: Final = "request"
TITLE: Final = "request/reply at rest, two processes, one at a time"
PEERS: Final = ("petalbus", "floor", "c-floor", "redis-py", "faststream", "jetstream")
UNITS: Final = {"p50_us": "us", "p90_us": "us", "p99_us": "us"}
COMPARED: Final[tuple[str, ...]] = ("p50_us",)


def turns(stage: Stage) -> list[Turn]:
    """One turn a peer."""
    found = []
    for peer in stage.present(*PEERS):
        count = stage.sizes.requests_slow if peer.name in SLOW_PEERS else stage.sizes.requests
        job = Job(address=stage.address(peer.name), count=count, warmup=stage.sizes.requests_warmup, size=0)
        parts = (Part("responder", Mode.SERVE, job), Part("requester", Mode.MEASURE, job))
        label = "nats-core" if peer.name == "jetstream" else peer.name
        found.append(Turn(label, peer.program, parts, only))
    return found
