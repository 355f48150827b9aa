"""What a part of the simulated vehicle that answers some messages looks like, and what it is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage
from petalbus.handlers.mavlink.wire.framing import Frame


@dataclass(frozen=True, slots=True)
class Onboard:
    """The vehicle that a service is a part of."""

    dialect: Dialect
    system: int
    component: int
    rng: random.Random
    send: Callable[[MavMessage], None]
    send_payload: Callable[[int, bytes], None]
    since_boot: Callable[[], float]
    """Seconds."""
    note: Callable[[dict[str, Any]], None]
    """Writes a line of the journal."""

    def is_for_us(self, system: int, component: int) -> bool:
        """Whether a message to this target means this vehicle."""
        return system in (0, self.system) and component in (0, self.component)


class Service(Protocol):
    """Answers the messages with the ids in ``handles``."""

    handles: frozenset[int]

    def receive(self, frame: Frame) -> None:
        """One of them came."""

    def tick(self) -> None:
        """Called fifty times a second."""

    def reset(self) -> None:
        """The vehicle boots."""
