"""Which share of the starts LOW records get while HIGH ones are always waiting: urgent is first, but nobody starves."""

from __future__ import annotations

from typing import Final

from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.scenarios.base import Stage, only
from petalbus.daemon.bench.turn import Mode, Part, Turn

WORK_US: Final = 200
WARMUP: Final = 200
NAME: Final = "share"
TITLE: Final = "share of LOW among the starts under constant HIGH load"
PEERS: Final = ("petalbus",)
UNITS: Final = {"low_share": "%"}
COMPARED: Final[tuple[str, ...]] = ()


def turns(stage: Stage) -> list[Turn]:
    """Both inboxes are filled with more than is started."""
    starts = stage.sizes.starts
    found = []
    for peer in stage.present(*PEERS):
        fill = [
            Part("producer", Mode.BEFORE, Job(address=stage.redis, count=WARMUP + 2 * starts, size=0, variant=level))
            for level in ("low", "high")
        ]
        job = Job(address=stage.redis, count=starts, warmup=WARMUP, work_us=WORK_US)
        found.append(Turn("petalbus", peer.program, (*fill, Part("starts", Mode.MEASURE, job)), only))
    return found
