"""Orders to come down or to stay: what was given before one of them does not leave after it."""

from __future__ import annotations

from collections.abc import Callable

from petalbus.schemas.stamps import boot_clock_ns


class Downs:
    """Those of one vehicle. ``given`` is when an order was given, in ns of this boot's clock; None: nobody knows.

    An order may wait for long before it is looked at: behind others of its sender, or in the inbox while the handler is
    away. So what counts is when it was given, and only where nobody knows that, when it is looked at.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._given = 0
        self.at = float("-inf")
        """When the last one came, monotonic seconds."""

    def note(self, given: int | None = None) -> None:
        """One comes now, ours or another program's."""
        self._count += 1
        self.at = self._clock()
        self._given = max(self._given, boot_clock_ns() if given is None else given)

    def since(self, given: int | None = None) -> Callable[[], bool]:
        """Tells, whenever it is called, whether one came after an order that is looked at now."""
        before = self._count
        return lambda: self._count != before or (given is not None and given < self._given)
