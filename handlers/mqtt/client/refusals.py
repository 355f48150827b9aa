"""Tells a message that the client program cannot publish from a time in which it can publish nothing.

Both are answered alike (500, or ``success: false``). What waits for the broker to come back must wait; but one message
must not hold up all others for ever. So it is given up only when it was refused again and again while others passed.
"""

from __future__ import annotations

from typing import Final

from petalbus.handlers.mqtt.transport import PublishRefused

TIMES: Final = 5
"""Refusals of one message, before it is given up."""

PASSED: Final = 3
"""Messages that passed since its first refusal: it is not the broker that is away."""

_REMEMBERED: Final = 256


class Refusals:
    """Counts. Of more than a few hundred messages that are refused, the oldest are forgotten, and begin anew."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[int, int]] = {}
        self._passed = 0

    def done(self, message_id: str) -> None:
        """A message passed."""
        self._passed += 1
        self._times.pop(message_id, None)

    def refused(self, message_id: str, text: str, status: int) -> None:
        """A message was refused once more. Raises PublishRefused when it is to be given up."""
        times, passed = self._times.pop(message_id, (0, self._passed))
        if times + 1 >= TIMES and self._passed - passed >= PASSED:
            given_up = f"refused {times + 1} times while {self._passed - passed} others were published: {text}"
            raise PublishRefused(given_up, code=status)
        self._times[message_id] = (times + 1, passed)
        if len(self._times) > _REMEMBERED:
            del self._times[next(iter(self._times))]
