"""Runs a ``cpu_heavy`` handler in a thread, on a loop of its own, so that computing in it delays nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

_MAX_THREADS: Final = 4

_pool: ThreadPoolExecutor | None = None
_guard = threading.Lock()


async def run_heavy(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Await ``function(*args)`` in a worker thread (four at most at a time; more wait). Cancelling it cancels that."""
    home = asyncio.get_running_loop()
    started: asyncio.Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = home.create_future()

    async def there() -> Any:
        task = asyncio.current_task()
        assert task is not None
        home.call_soon_threadsafe(_tell, started, (asyncio.get_running_loop(), task))
        return await function(*args)

    running = home.run_in_executor(_threads(), _run, there)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if started.done():
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            await asyncio.wait([running])
        else:
            running.cancel()
        raise


def _tell(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603  # one pool a process, made when it is first needed
    with _guard:
        if _pool is None:
            _pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="petal-heavy")
        return _pool
