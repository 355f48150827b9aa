"""How much is measured: enough for a steady median, or as little as shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Counts of one turn each. ``slow``: for peers that take a millisecond where others take a tenth of it."""

    requests: int = 3000
    requests_slow: int = 600
    requests_warmup: int = 300
    oneway: int = 1500
    """Records at the scenario's fixed rate."""
    oneway_warmup: int = 200
    stream: int = 20_000
    stream_slow: int = 5_000
    stream_fast: int = 60_000
    """For peers that would be done before they have settled."""
    publish: int = 10_000
    publish_slow: int = 3_000
    backlog: int = 100_000
    """LOW records that wait in front of the CRITICAL ones."""
    backlog_others: int = 20_000
    """The same for peers that work off fewer than that while they are measured."""
    probes: int = 300
    """CRITICAL records."""
    starts: int = 3_000
    """Starts of which the share of LOW is counted."""


FULL = Sizes()
QUICK = Sizes(
    requests=1000,
    requests_slow=200,
    requests_warmup=150,
    oneway=300,
    oneway_warmup=50,
    stream=8_000,
    stream_slow=2_000,
    stream_fast=20_000,
    publish=3_000,
    publish_slow=1_000,
    backlog=20_000,
    backlog_others=6_000,
    probes=100,
    starts=1_000,
)
SLOW_PEERS = frozenset({"faststream"})
