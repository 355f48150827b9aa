"""Runs a ``cpu_heavy`` handler in a thread, on a loop of its own, so that computing in it delays nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Final

from petalbus.petals.exits import PetalExited

MAX_THREADS: Final = 4
"""Handlers that compute at a time, in one process; further ones wait for a thread."""

_urgent: Final[ContextVar[str | None]] = ContextVar("petalbus_urgent", default=None)
_pools: dict[str | None, ThreadPoolExecutor] = {}
"""One for everybody's ordinary handlers, and one of each app for what must not wait."""
_guard = threading.Lock()


class HandlerCancelled(RuntimeError):
    """The handler ended itself by cancelling its own task."""


@contextlib.contextmanager
def overtaking(app: str, *, urgent: bool) -> Iterator[None]:
    """What is ``urgent`` does not wait for a thread that other handlers have: inside it has threads of its ``app``."""
    token = _urgent.set(app if urgent else None)
    try:
        yield
    finally:
        _urgent.reset(token)


async def run_heavy(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Await ``function(*args)`` in a worker thread; its result. Cancelling this cancels that, and waits for its end.

    Raises what the function raises.
    """
    work = _Work(function, args)
    submitted = _threads().submit(work.run)
    running = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if not submitted.cancel():  # it has begun
            work.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # looked at, so that nobody complains
        raise


class _Work:
    """One call, in its thread."""

    def __init__(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        self._function = function
        self._args = args
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def run(self) -> Any:
        """The thread's whole life."""
        try:
            return asyncio.run(self._main())
        except asyncio.CancelledError:
            raise HandlerCancelled(f"{self._function!r} cancelled itself") from None

    def cancel(self) -> None:
        """Cancel the handler's task, from any thread."""
        with self._lock:
            self._cancelled = True
            if self._loop is not None and self._task is not None:
                with contextlib.suppress(RuntimeError):  # it has just ended
                    self._loop.call_soon_threadsafe(self._task.cancel)

    async def _main(self) -> Any:
        with self._lock:
            if self._cancelled:
                raise asyncio.CancelledError
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await self._function(*self._args)
        except SystemExit as error:  # it would end the loop of this thread, and nobody would be told
            raise PetalExited.of(error) from error


def _threads() -> ThreadPoolExecutor:
    which = _urgent.get()
    with _guard:
        pool = _pools.get(which)
        if pool is None:
            pool = _pools[which] = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="petal-heavy")
        return pool
