"""What all scenarios share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from petalbus.daemon.bench.peers.found import Peer
from petalbus.daemon.bench.sizes import Sizes
from petalbus.daemon.bench.turn import Results, Turn


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scenario is played: the peers that are wanted, the addresses of the servers, how much is measured."""

    peers: Mapping[str, Peer]
    redis: str
    nats: str | None
    sizes: Sizes

    def address(self, peer: str) -> str:
        """The server that a peer talks to."""
        return self.nats or "" if peer == "jetstream" else self.redis

    def present(self, *names: str) -> list[Peer]:
        """Those of the named peers that are wanted and can be measured here, in the order given."""
        return [self.peers[name] for name in names if name in self.peers and self.peers[name].missing is None]


class Scenario(Protocol):
    """A module of this package.

    ``NAME`` selects it on the command line; ``UNITS`` names the unit of each figure that is reported; those in
    ``COMPARED`` are reported as multiples of PetalBus's own, too.
    """

    NAME: str
    TITLE: str
    PEERS: Sequence[str]
    UNITS: Mapping[str, str]
    COMPARED: Sequence[str]

    def turns(self, stage: Stage) -> list[Turn]:
        """The turns of one round, in order."""
        ...


def only(results: Results) -> Mapping[str, float]:
    """The figures of a turn with one measuring part."""
    return {name: float(value) for name, value in results[0].items()}
