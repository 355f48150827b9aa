"""How long a vehicle takes to answer, where answers do not say what they answer and many get lost. Pure.

Something may have been said several times before its answer came, and vehicles repeat their own questions by
themselves. So every time since it was said is a vote for how long an answer takes. Pauses are never quite alike:
only the true time gets votes again and again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Final

_EXCHANGES: Final = 8
_MOST_VOTES: Final = 10
_LIKE: Final = 0.15
_LIKE_S: Final = 0.005
_FIRST_PATIENCE_S: Final = 0.15
_SHORTEST_S: Final = 0.02
_LONGEST_S: Final = 2.0
_ROOM: Final = 1.4
_ROOM_S: Final = 0.01
_EAGER: Final = 16
_SLOWER: Final = 0.25
_LONGEST_PAUSE_S: Final = 1.0
_BAD: Final = 0.8
_WORST: Final = 0.4
_HURRY: Final = 0.4
_DITHER: Final = 0.15
_FADES: Final = 0.1


class SteadyTrip:
    """What is known of the way to one vehicle and back. Times are seconds."""

    def __init__(self) -> None:
        self.smooth: float | None = None
        """How long an answer takes; None: nothing is known."""
        self._exchanges: deque[tuple[float, ...]] = deque(maxlen=_EXCHANGES)
        self._patience = _FIRST_PATIENCE_S
        self._answered = 1.0  # the share of what was said that was answered, lately
        self._rng = random.Random(1)  # noqa: S311  # unequal pauses, not secrets

    def answered(self, said_at: Sequence[float], now: float) -> None:
        """An answer came ``now`` to what was said at these times, in their order."""
        self._answered += (1.0 / len(said_at) - self._answered) * _FADES
        self._exchanges.append(tuple(now - at for at in reversed(said_at[-_MOST_VOTES:])))
        alike = self._most_votes()
        self.smooth = sum(alike) / len(alike)
        self._patience = min(_LONGEST_S, max(_SHORTEST_S, _ROOM * self.smooth + _ROOM_S, _ROOM * max(alike)))

    def _most_votes(self) -> list[float]:
        """The times that are alike in the most exchanges; of several ones the shortest."""
        best: tuple[float, float, list[float]] = (0.0, 0.0, [])
        for seconds in {each for votes in self._exchanges for each in votes}:
            weight, alike = 0.0, []
            for votes in self._exchanges:
                like = [each for each in votes if abs(each - seconds) <= _LIKE * seconds + _LIKE_S]
                if like:
                    weight += 1.0 / len(votes)
                    alike.append(min(like, key=lambda each: abs(each - seconds)))
            best = max(best, (round(weight, 3), -seconds, alike))
        return best[2]

    def patience(self) -> float:
        """How long to wait for an answer."""
        return self._patience

    def pause(self, sends: int) -> float:
        """How long to wait before something that was said ``sends`` times is said again.

        Where most gets lost, a repetition need not wait for an answer to the one before it.
        """
        patience = self._patience
        if self.smooth is not None and sends > 1:
            badness = min(1.0, max(0.0, (_BAD - self._answered) / (_BAD - _WORST)))
            patience *= 1.0 - (1.0 - _HURRY) * badness
        slower = 1.0 + _SLOWER * max(0, sends - _EAGER)
        patience = max(patience, min(_LONGEST_PAUSE_S, patience * slower))
        return patience * self._rng.uniform(1.0 - _DITHER, 1.0 + _DITHER)
