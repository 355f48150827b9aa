"""ExternalProxy: what a proxy for a stream of messages from and to an outside system has: handlers and ``send``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.mavlink.handlers import Handler, HandlerFunction, Handlers, checked_function


class ExternalProxy(BaseProxy):
    """Base of MavLinkExternalProxy. All methods here may be called from any thread."""

    kind: ClassVar[str] = "external"

    def __init__(self, maxlen: int = 200, sleep_time_ms: float = 1.0) -> None:  # noqa: ARG002  # nothing polls here
        """``maxlen``: messages that wait for one handler at most, where it names no number itself.

        ``sleep_time_ms`` is accepted and not needed.
        """
        super().__init__()
        if maxlen < 1:
            raise ValueError(f"maxlen {maxlen}: at least one message must have room")
        self._maxlen = maxlen
        self._handlers = Handlers()

    def register_handler(
        self,
        key: str,
        fn: HandlerFunction,
        duplicate_filter_interval: float | None = None,
        queue_length: int | None = None,
        cpu_heavy: bool = False,
    ) -> None:
        """Call ``fn(message)`` for each message of ``key``: its name, its number as text, or ``mav`` for all.

        ``duplicate_filter_interval``: leave out a message that says the same as the one before within so many seconds.
        ``queue_length``: how many may wait; the oldest is dropped for a new one. ``cpu_heavy``: run it in a thread, on
        a loop of its own. Raises TypeError when ``fn`` is not async, ValueError for a setting that makes no sense.
        """
        if duplicate_filter_interval is not None and duplicate_filter_interval < 0:
            raise ValueError(f"duplicate_filter_interval {duplicate_filter_interval}: it is seconds, 0 or more")
        if queue_length is not None and queue_length < 1:
            raise ValueError(f"queue_length {queue_length}: at least one message must have room")
        handler = Handler(
            str(key),
            checked_function(fn),
            length=queue_length or self._maxlen,
            unless_same_within=duplicate_filter_interval,
            heavy=cpu_heavy,
        )
        self._call_at_home(self._add_handler, handler)

    def unregister_handler(self, key: str, fn: HandlerFunction) -> None:
        """Stop calling ``fn`` for ``key``. One that is not registered is no error."""
        self._call_at_home(self._remove_handler, str(key), fn)

    def forget(self, owner: object) -> int:
        """End all handlers of a petal; how many there were. On the proxy's loop."""
        number = self._handlers.remove_of(owner)
        if number:
            self._handlers_changed()
        return number

    @abstractmethod
    def send(self, key: str, msg: Any, burst_count: int | None = None, burst_interval: float | None = None) -> None:
        """Queue a message and return at once."""

    def _add_handler(self, handler: Handler) -> None:
        self._handlers.add(handler)
        self._handlers_changed()

    def _remove_handler(self, key: str, function: HandlerFunction) -> None:
        self._handlers.remove(key, function)
        self._handlers_changed()

    def _handlers_changed(self) -> None:
        """Called on the proxy's loop (before the start: on any) when somebody came or went."""
