"""Runs one call in a thread of its own, which dies with the process.

Not in a pool: a call that hangs would take a thread from everybody else, and the interpreter's end would wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def in_own_thread(call: Callable[[], T], *, name: str, ended: Callable[[], object] = lambda: None) -> asyncio.Future[T]:
    """Begin ``call``; its result, or what it raises. Nobody has to wait for it: the call goes on then.

    ``ended``: called on the loop when it is over, waited for or not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def finish(result: Any, error: BaseException | None) -> None:
        ended()
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (context.run(call), None)
        except StopIteration as error:
            outcome = (None, RuntimeError(f"it raised {error!r}"))  # a future cannot hold one
        except BaseException as error:  # noqa: BLE001  # it is raised again where the result is awaited
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(finish, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
