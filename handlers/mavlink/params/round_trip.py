"""The measured time to an answer, and how long it is worth to wait for one. Pure."""

from __future__ import annotations

from typing import Final

_SHORTEST: Final = 0.02
_PATIENCE: Final = 1.25


class RoundTrip:
    """How long this vehicle takes to answer, in seconds; only from requests that left once."""

    def __init__(self) -> None:
        self.smooth: float | None = None
        self._spread = 0.0
        self._at_most: float | None = None

    def sample(self, seconds: float) -> None:
        """One measurement."""
        if self.smooth is None:
            self.smooth, self._spread = seconds, seconds / 2
            return
        self._spread += (abs(seconds - self.smooth) - self._spread) / 4
        self.smooth += (seconds - self.smooth) / 8

    def guess(self, seconds: float) -> None:
        """A request that left several times was answered so long after the first time: better than to know nothing.

        Without that, each request on a link slower than the first patience would leave twice for ever.
        """
        self._at_most = seconds

    @property
    def known(self) -> bool:
        """Whether anything was heard yet."""
        return self.smooth is not None or self._at_most is not None

    def patience(self, most: float) -> float:
        """How long to wait for an answer, ``most`` seconds while nothing is known.

        On an even link a little longer than it takes; on an uneven one what its answers vary by counts.
        """
        if self.smooth is None:
            return most if self._at_most is None else min(most, max(_SHORTEST, _PATIENCE * self._at_most))
        return min(most, max(_SHORTEST, _PATIENCE * self.smooth, self.smooth + 4 * self._spread))
