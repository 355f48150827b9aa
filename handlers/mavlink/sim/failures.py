"""A bad wire: a transport around a transport that loses, delays and repeats, by one seeded plan."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.mavlink.wire.transport import Address, Receiver, Transport

_MAX_DELAYED: Final = 10_000
_LATE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Failures:
    """How bad the wire is. ``loss``, ``duplicate`` and ``reorder`` are probabilities, ``delay`` is seconds; each way.

    What is out of order arrives up to 50 ms late.
    """

    loss: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0

    def __post_init__(self) -> None:
        for name, value, most in (
            ("loss", self.loss, 1.0),
            ("duplicate", self.duplicate, 1.0),
            ("reorder", self.reorder, 1.0),
            ("delay", self.delay, 60.0),
        ):
            if not 0.0 <= value <= most:
                raise ValueError(f"{name} {value}: it is a number from 0 to {most:g}")

    @property
    def any(self) -> bool:
        """True when the wire is not perfect."""
        return bool(self.loss or self.delay or self.duplicate or self.reorder)


PERFECT_WIRE: Final = Failures()


class FaultyTransport:
    """Passes on what the failures leave of it, in both directions."""

    def __init__(self, inner: Transport, failures: Failures, *, seed: int) -> None:
        self._inner = inner
        self._failures = failures
        self._rng = random.Random(seed)  # noqa: S311 - a plan that can be repeated is the point
        self._receiver: Receiver | None = None
        self._delayed = 0

    @property
    def name(self) -> str:
        """The endpoint below."""
        return self._inner.name

    def is_datagram(self, address: Address) -> bool:
        """As below."""
        return self._inner.is_datagram(address)

    def channel(self, address: Address) -> int:
        """As below."""
        return self._inner.channel(address)

    def targets(self, route: Address | None, speaking: Sequence[Address]) -> Sequence[Address]:
        """As below."""
        return self._inner.targets(route, speaking)

    def describe(self) -> list[dict[str, Any]]:
        """As below."""
        return self._inner.describe()

    async def open(self, receiver: Receiver) -> None:
        """Open what is below. Raises LinkError."""
        self._receiver = receiver
        await self._inner.open(self)

    async def close(self) -> None:
        """Close what is below; what is still delayed is lost."""
        self._receiver = None
        await self._inner.close()

    def send(self, data: bytes, address: Address) -> bool:
        """Send as often, and as late, as the plan says. A lost datagram counts as sent, as on a real wire."""
        for _ in range(self._copies()):
            self._pass_on(lambda: self._inner.send(data, address))
        return True

    def received(self, data: bytes, address: Address) -> None:
        """Hand on as often, and as late, as the plan says."""
        for _ in range(self._copies()):
            self._pass_on(lambda: self._hand_on(data, address))

    def drained(self) -> None:
        """Hand on."""
        if self._receiver is not None:
            self._receiver.drained()

    def leaving(self, data: bytes, address: Address) -> bytes:
        """As above says."""
        return data if self._receiver is None else self._receiver.leaving(data, address)

    def closed(self, address: Address) -> None:
        """Hand on, after what is still under way from there."""
        self._pass_on(lambda: None if self._receiver is None else self._receiver.closed(address))

    def _hand_on(self, data: bytes, address: Address) -> None:
        if self._receiver is not None:
            self._receiver.received(data, address)
            if self._failures.delay or self._failures.reorder:
                self._receiver.drained()

    def _pass_on(self, action: Callable[[], object]) -> None:
        delay = self._failures.delay
        if self._failures.reorder and self._rng.random() < self._failures.reorder:
            delay += self._rng.uniform(0.0, _LATE_S)
        if not delay:
            action()
        elif self._delayed < _MAX_DELAYED:
            self._delayed += 1
            asyncio.get_running_loop().call_later(delay, self._arrive, action)

    def _arrive(self, action: Callable[[], object]) -> None:
        self._delayed -= 1
        action()

    def _copies(self) -> int:
        if self._rng.random() < self._failures.loss:
            return 0
        return 2 if self._rng.random() < self._failures.duplicate else 1
