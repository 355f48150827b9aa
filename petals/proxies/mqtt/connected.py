"""``mqtt.is_connected``: read as a flag by some petals, awaited as a call by others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


class Connected:
    """True while the link to the broker is up. ``bool(it)`` is what was last known, ``await it()`` asks."""

    def __init__(self, known: Callable[[], bool], ask: Callable[[], Awaitable[bool]]) -> None:
        self._known = known
        self._ask = ask

    def __bool__(self) -> bool:
        return self._known()

    def __call__(self) -> Awaitable[bool]:
        """Ask the link."""
        return self._ask()

    def __eq__(self, other: object) -> bool:
        return bool(self) == other if isinstance(other, bool) else self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return str(bool(self))
