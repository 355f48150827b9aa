"""Who wants which message: each handler with its own bounded queue and task, so that a slow one delays nobody.

What nobody asked for is never decoded; what was dropped from a full queue neither.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from petalbus.petals.exits import contained
from petalbus.petals.heavy import run_heavy
from petalbus.petals.owner import acting, is_of

log = logging.getLogger(__name__)

HandlerFunction = Callable[[Any], Awaitable[Any]]

EVERYTHING: Final = "mav"
"""The key of handlers that get all messages."""

_COMPLAIN_EVERY_S: Final = 10.0
_TURN: Final = 32
_MAX_LAST: Final = 1024


class Incoming(Protocol):
    """One message that came in."""

    kind: str
    """Its number, as text."""

    @property
    def fingerprint(self) -> tuple[Any, bytes]:
        """Who sent it, and its content: two messages with equal ones say the same."""

    def message(self) -> Any:
        """The message, decoded once."""


class Handler:
    """One registered function."""

    def __init__(
        self,
        key: str,
        function: HandlerFunction,
        *,
        length: int,
        unless_same_within: float | None = None,
        heavy: bool = False,
    ) -> None:
        """``length``: messages that may wait. ``unless_same_within``: seconds. ``heavy``: run it in a thread."""
        self.key = key
        self.function = function
        self.delivered = self.dropped = self.filtered = self.failed = 0
        self._waiting: deque[Incoming] = deque(maxlen=length)
        self._unless_same_within = unless_same_within
        self._last: OrderedDict[Any, tuple[bytes, float]] = OrderedDict()
        self._heavy = heavy
        self._task: asyncio.Task[None] | None = None
        self._complained = float("-inf")
        self._closed = False
        self._registered_by = acting()

    def is_of(self, petal: object) -> bool:
        """Whether it is a petal's."""
        return is_of(petal, self.function, self._registered_by)

    def put(self, incoming: Incoming) -> None:
        """Take a message; the oldest one makes room when too many wait. Only on the proxy's loop."""
        if self._closed or (self._unless_same_within is not None and self._is_repetition(incoming)):
            return
        waiting = self._waiting
        if len(waiting) == waiting.maxlen:
            self.dropped += 1
        waiting.append(incoming)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=f"mavlink.handler.{self.key}")

    def close(self) -> None:
        """No further calls. A call under way goes on: it may be the one that unregisters."""
        self._closed = True
        self._waiting.clear()

    async def cancel(self) -> None:
        """Forget what waits, and end the call under way."""
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Counters since it was registered."""
        return {
            "key": self.key,
            "handler": getattr(self.function, "__qualname__", repr(self.function)),
            "waiting": len(self._waiting),
            "delivered": self.delivered,
            "dropped": self.dropped,
            "filtered": self.filtered,
            "failed": self.failed,
        }

    def _is_repetition(self, incoming: Incoming) -> bool:
        assert self._unless_same_within is not None
        source, content = incoming.fingerprint
        now = time.monotonic()
        last = self._last.get(source)
        if last is not None and last[0] == content and now - last[1] < self._unless_same_within:
            self.filtered += 1
            return True
        self._last[source] = content, now
        self._last.move_to_end(source)
        if len(self._last) > _MAX_LAST:
            self._last.popitem(last=False)
        return False

    async def _work(self) -> None:
        waiting = self._waiting
        try:
            while waiting:
                for _ in range(_TURN):
                    if not waiting:
                        break
                    await self._call(waiting.popleft())
                await asyncio.sleep(0)  # a handler that never waits must not keep everybody else waiting
        finally:
            self._task = None

    async def _call(self, incoming: Incoming) -> None:
        try:
            message = incoming.message()
            with contained():
                if self._heavy:
                    await run_heavy(self.function, message)
                else:
                    await self.function(message)
            self.delivered += 1
        except Exception:  # whatever a petal's handler raises ends this call only
            self.failed += 1
            now = time.monotonic()
            if now - self._complained > _COMPLAIN_EVERY_S:
                self._complained = now
                log.exception("handler %r of key %r failed, %d times so far", self.function, self.key, self.failed)


class Handlers:
    """All handlers of a proxy, found by the number of a message."""

    def __init__(self) -> None:
        self.by_kind: dict[str, list[Handler]] = {}
        """Message number -> who wants it, those for everything included."""
        self.everything: list[Handler] = []
        self._handlers: list[Handler] = []
        self._ids: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, handler: Handler) -> None:
        """Register. The same function under the same key again only changes its settings."""
        self.remove(handler.key, handler.function)
        self._handlers.append(handler)
        self._rebuild()

    def remove(self, key: str, function: HandlerFunction) -> bool:
        """Unregister; False when it was not registered."""
        found = [one for one in self._handlers if one.key == key and one.function == function]
        for handler in found:
            handler.close()
            self._handlers.remove(handler)
        self._rebuild()
        return bool(found)

    def remove_of(self, petal: object) -> int:
        """Unregister all of a petal's; how many there were."""
        theirs = [one for one in self._handlers if one.is_of(petal)]
        for handler in theirs:
            self.remove(handler.key, handler.function)
        return len(theirs)

    def know(self, ids: Mapping[str, int]) -> None:
        """Message names are known from now on."""
        self._ids = ids
        for handler in self._handlers:
            if self._kind(handler.key) is None:
                log.warning("key %r names no message of the dialect: its handler is never called", handler.key)
        self._rebuild()

    async def close(self) -> None:
        """End all of them. They stay registered for a later start."""
        for handler in list(self._handlers):
            await handler.cancel()

    def statistics(self) -> list[dict[str, Any]]:
        """The counters of each."""
        return [handler.statistics() for handler in self._handlers]

    def _kind(self, key: str) -> str | None:
        if key == EVERYTHING or key.isdigit():
            return key
        number = None if self._ids is None else self._ids.get(key)
        return None if number is None else str(number)

    def _rebuild(self) -> None:
        by_kind: dict[str, list[Handler]] = {}
        for handler in self._handlers:
            kind = self._kind(handler.key)
            if kind is not None:
                by_kind.setdefault(kind, []).append(handler)
        self.everything = by_kind.pop(EVERYTHING, [])
        self.by_kind = {kind: [*wanted, *self.everything] for kind, wanted in by_kind.items()}


def checked_function(function: Any) -> HandlerFunction:
    """The function when it is async; raises TypeError."""
    call = getattr(function, "__call__", None)  # noqa: B004  # an object whose call is async is as good
    if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(call):
        raise TypeError(f"handler {function!r} must be an async function: define it with 'async def'")
    checked: HandlerFunction = function
    return checked
