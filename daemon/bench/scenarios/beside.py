"""Request and reply of PetalBus while a third process publishes telemetry on the same server and the same core."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.turn import Mode, Part, Turn

RATE: Final = 1000
NAME: Final = "beside"
TITLE: Final = f"request/reply of PetalBus with {RATE:,} records/s published beside it"
PEERS: Final = ("petalbus",)
UNITS: Final = {"p50_us": "us", "p90_us": "us", "p99_us": "us"}
COMPARED: Final[tuple[str, ...]] = ("p50_us",)


def turns(stage: Stage) -> list[Turn]:
    """The same turn twice: at rest, and with the third process."""
    found = []
    for peer in stage.present(*PEERS):
        job = Job(address=stage.redis, count=stage.sizes.requests, warmup=stage.sizes.requests_warmup, size=0)
        noise = Part("background", Mode.SERVE, Job(address=stage.redis, rate=RATE, variant="topic"))
        pair = (Part("responder", Mode.SERVE, job), Part("requester", Mode.MEASURE, job))
        found.append(Turn("petalbus", peer.program, pair, only))
        found.append(Turn("petalbus-beside", peer.program, (noise, *pair), only))
    return found
