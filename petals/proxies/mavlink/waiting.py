"""``send_and_wait``: who waits for the answer is there before the question leaves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from petalbus.petals.exits import contained
from petalbus.petals.proxies.mavlink.handlers import Handler, Incoming
from petalbus.petals.proxies.mavlink.link import VehicleLink

log = logging.getLogger(__name__)

_CANCEL_LOOK_S: Final = 0.05


class Waiting(VehicleLink):
    """Questions with raw messages."""

    async def send_and_wait(
        self,
        *,
        match_key: str,
        request_msg: Any,
        collector: Callable[[Any], bool],
        timeout: float = 3.0,
        queue_length: int | None = None,  # noqa: ARG002  # nothing queues: the collector sees each message at once
        cancel_event: threading.Event | None = None,
    ) -> None:
        """Send a message, and show each message of ``match_key`` to ``collector`` until that returns True.

        ``match_key`` as in ``register_handler``. ``collector`` is a plain, quick function; one that raises is shown the
        next message all the same. Returns without a result when ``cancel_event`` is set. Raises RuntimeError
        ("MAVLink connection not established") without a vehicle, TimeoutError after ``timeout`` seconds.
        """
        self._require_connected()
        waiter = _Waiter(str(match_key), collector)
        self._add_handler(waiter)
        try:
            async with asyncio.timeout(timeout):
                await self._frames_open()
                self.send("mav", request_msg)
                await _either(waiter.done, cancel_event)
        except TimeoutError:
            text = f"no message {match_key} answered the question within {timeout:g} s"
            raise TimeoutError(text) from waiter.error
        finally:
            self._remove_handler(waiter.key, waiter.function)


async def _either(done: asyncio.Event, cancel: threading.Event | None) -> None:
    if cancel is None:
        await done.wait()
        return
    waiting = asyncio.create_task(done.wait(), name="mavlink.answer")
    try:
        while not waiting.done() and not cancel.is_set():
            await asyncio.wait([waiting], timeout=_CANCEL_LOOK_S)  # a thread's event cannot be awaited
    finally:
        waiting.cancel()


class _Waiter(Handler):
    """A handler whose function is called at once, and that needs no task."""

    def __init__(self, key: str, collector: Callable[[Any], bool]) -> None:
        async def nothing(_message: Any) -> None:
            return None

        super().__init__(key, nothing, length=1)
        self.done = asyncio.Event()
        self.error: Exception | None = None
        self._collector = collector

    def put(self, incoming: Incoming) -> None:
        if self.done.is_set() or self._closed:
            return
        try:
            with contained():
                if self._collector(incoming.message()):
                    self.done.set()
        except Exception as error:  # it is a petal's function
            log.exception("the collector of key %r failed", self.key)
            self.error = error
