"""Whether the cloud can be used, and who may try when it cannot: one at a time, more and more rarely."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from petalbus.handlers.database.errors import TableError

T = TypeVar("T")

FIRST_WAIT_S: Final = 0.5
MOST_WAIT_S: Final = 20.0
_OWN_MOST_S: Final = 60.0
_SPREAD: Final = 0.2

Tell = Callable[[str], Awaitable[object]]
"""Called with the reason when a call has to wait."""

GiveUp = Callable[[TableError], Awaitable[TableError | None]]
"""Called when the cloud was there and could not do it: what it answers is raised, None tries again."""


class Link:
    """``at_once``: calls under way at a time. ``first_wait``, ``most_wait``: seconds between two attempts."""

    def __init__(self, *, at_once: int = 8, first_wait: float = FIRST_WAIT_S, most_wait: float = MOST_WAIT_S) -> None:
        self.problem = ""
        self.attempts = 0
        self.last_error = ""
        self.last_error_at: float | None = None
        self.last_success_at: float | None = None
        """Wall-clock seconds, as ``last_error_at``."""

        self.successes = 0

        self._first = first_wait
        self._most = most_wait
        self._wait = first_wait
        self._next = 0.0
        self._probe = asyncio.Lock()
        self._slots = asyncio.Semaphore(at_once)
        self._look = asyncio.Event()
        self.changed = asyncio.Event()
        """Set when it goes down or comes up, or is down for another reason."""

    async def run(self, call: Callable[[], Awaitable[T]], tell: Tell, give_up: GiveUp) -> T:
        """Call until there is an answer. Raises TableError that waiting does not help against, or that is given up."""
        own = self._first
        while True:
            if self.is_down():
                await tell(self.problem)
                async with self._probe:
                    if not self.is_down():
                        continue
                    await self._pause()
                    done, answer = await self._attempt(call, probing=True)
            else:
                async with self._slots:
                    if self.is_down():
                        continue
                    done, answer = await self._attempt(call)
            if not isinstance(answer, TableError):
                return answer
            if done:
                raise answer
            if not answer.away and (end := await give_up(answer)) is not None:
                raise end
            await tell(str(answer))
            if not answer.away:
                await asyncio.sleep(own * random.uniform(1 - _SPREAD, 1 + _SPREAD))  # noqa: S311  # not to meet others
                own = min(_OWN_MOST_S, own * 2)

    def is_down(self) -> bool:
        """Whether the cloud cannot be used, as far as is known."""
        return bool(self.problem)

    def look(self) -> None:
        """Try now: there is a reason to believe that it works again."""
        self._look.set()

    def statistics(self) -> dict[str, Any]:
        """How it is, for people."""
        return {
            "online": None if self.last_success_at is None and not self.is_down() else not self.is_down(),
            "problem": self.problem,
            "next_attempt_s": round(max(0.0, self._next - time.monotonic()), 1) if self.is_down() else 0.0,
            "attempts": self.attempts,
            "last_error": self.last_error,
            "last_error_at": self.last_error_at,
            "last_success_at": self.last_success_at,
        }

    async def _attempt(self, call: Callable[[], Awaitable[T]], *, probing: bool = False) -> tuple[bool, T | TableError]:
        self.attempts += 1
        try:
            answer = await call()
        except TableError as error:
            self._failed(error, probing=probing)
            return not error.passes, error
        self._up()
        self.successes += 1
        self.last_success_at = time.time()
        return True, answer

    def _failed(self, error: TableError, *, probing: bool) -> None:
        self.last_error, self.last_error_at = str(error), time.time()
        if not error.away:
            self._up()  # there was an answer
            return
        if probing:  # several that were under way fail at once: that is one failure
            self._wait = min(self._most, self._wait * 2)
        self._become(str(error))
        self._next = time.monotonic() + self._wait

    def _up(self) -> None:
        self._wait = self._first
        self._become("")

    def _become(self, problem: str) -> None:
        if problem != self.problem:
            self.changed.set()
        self.problem = problem

    async def _pause(self) -> None:
        self._look.clear()
        left = (self._next - time.monotonic()) * random.uniform(1 - _SPREAD, 1)  # noqa: S311  # not to meet others
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._look.wait()
            except TimeoutError:
                return
