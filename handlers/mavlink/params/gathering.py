"""What came of a list of all parameters so far, and whether it can be the whole. Pure.

A list is told by position, and positions move when a parameter appears or goes while it comes: then one may be told
twice and another not at all, although every position was heard. So only a pass counts in which every message told the
same total, and which brought as many names as that.
"""

from __future__ import annotations

from typing import Final

from petalbus.handlers.mavlink.params.values import ParamValue

HASH: Final = "_HASH_CHECK"
"""PX4's name for a number made of all its parameters."""

_NO_POSITION: Final = 65535


class Gathering:
    """The values of one list. A pass ends when no position is missing; ``begin`` starts the next one."""

    def __init__(self) -> None:
        self.total: int | None = None
        """What the vehicle said last; None before it said anything in this pass."""
        self.last_total: int | None = None
        """The same, kept over passes."""
        self._values: dict[str, ParamValue] = {}
        self._heard: set[str] = set()
        self._positions: set[int] = set()
        self._steady = True
        self._short_before = False
        self._news = False

    def begin(self) -> None:
        """Begin a pass: what was told before is kept, but does not count."""
        self._short_before = self._steady and self._is_short
        self.total = None
        self._heard.clear()
        self._positions.clear()
        self._steady = True

    def on_value(self, value: ParamValue, now: float) -> None:  # noqa: ARG002  # a listener's signature
        """A PARAM_VALUE of the vehicle, of the list or not."""
        if value.name == HASH:
            return
        self._news = True
        if self.total not in (None, value.total):
            self._steady = False
        self.total = self.last_total = value.total
        if value.position != _NO_POSITION:
            self._positions.add(value.position)
        elif value.name in self._values:  # an answer by name has no position; keep the one that is known
            value = value._replace(position=self._values[value.name].position)
        self._heard.add(value.name)
        self._values[value.name] = value

    def on_error(self, name: str, error: int, now: float) -> None:
        """Nothing: positions that do not exist any more are found out by the total."""

    def moved(self) -> bool:
        """Whether something came since this was last asked."""
        news, self._news = self._news, False
        return news

    @property
    def values(self) -> dict[str, ParamValue]:
        """What this pass brought, by name."""
        return {name: value for name, value in self._values.items() if name in self._heard}

    @property
    def missing(self) -> list[int]:
        """Positions not heard yet; empty before the total is known."""
        return [] if self.total is None else sorted(set(range(self.total)) - self._positions)

    @property
    def over(self) -> bool:
        """True when nothing more can come in this pass."""
        return self.total is not None and (len(self._heard) >= self.total or not self.missing)

    @property
    def whole(self) -> bool:
        """True when this pass brought everything.

        A vehicle that tells fewer names than it counts, twice and without a change in between, has no more.
        """
        return self.over and self._steady and (not self._is_short or self._short_before)

    @property
    def steady(self) -> bool:
        """True while every message of this pass told the same total."""
        return self._steady

    @property
    def _is_short(self) -> bool:
        return self.total is not None and not self.missing and len(self._heard) < self.total
