"""Whose code runs: what a petal registers at proxies, or begins as a task, is known to be its own.

While a petal starts its own code runs in a context that names it, and tasks begun there inherit that. So also a closure
or a helper object's method that it registered is known as the petal's, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

_acting: ContextVar[object | None] = ContextVar("petal", default=None)
_tasks: WeakKeyDictionary[asyncio.Task[Any], object] = WeakKeyDictionary()
_OURS = "petalbus."
_noting: dict[asyncio.AbstractEventLoop, tuple[int, Any]] = {}


def acting() -> object | None:
    """The petal whose code runs here, if that is known."""
    return _acting.get()


@contextlib.contextmanager
def acting_for(petal: object) -> Iterator[None]:
    """The code inside is the petal's; the tasks that it begins are noted. On the loop."""
    loop = asyncio.get_running_loop()
    token = _acting.set(petal)
    _note_tasks(loop)
    try:
        yield
    finally:
        _note_no_more(loop)
        _acting.reset(token)


def tasks_of(petal: object) -> set[asyncio.Task[Any]]:
    """Tasks of a petal that run still, of those that were noted."""
    return {task for task, owner in _tasks.items() if owner is petal and not task.done()}


def is_of(petal: object, callback: Callable[..., Any], registered_by: object | None) -> bool:
    """Whether a callback is a petal's: one of its methods, or registered by its code."""
    return getattr(callback, "__self__", None) is petal or registered_by is petal


def _note_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Only while some petal starts: a factory in Python makes each new task a little dearer."""
    count, before = _noting.get(loop, (0, None))
    if count == 0:
        before = loop.get_task_factory()
        loop.set_task_factory(_factory(before))
    _noting[loop] = count + 1, before


def _note_no_more(loop: asyncio.AbstractEventLoop) -> None:
    count, before = _noting.pop(loop)
    if count > 1:
        _noting[loop] = count - 1, before
    else:
        loop.set_task_factory(before)


def _factory(before: Any) -> Any:
    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        if before is not None:
            task = before(loop, coroutine, **options)
        else:
            task = asyncio.Task(coroutine, loop=loop, **options)
        owner = _acting.get()
        if owner is not None and _is_its_own(coroutine, owner):
            _tasks[task] = owner
        return task

    return make


def _is_its_own(coroutine: Any, petal: object) -> bool:
    """Not what a proxy begins because a petal was the first to ask: that is for everybody, and must not end with it."""
    frame = getattr(coroutine, "cr_frame", None)
    module: str = frame.f_globals.get("__name__", "") if frame is not None else ""
    own = type(petal).__module__
    if own.startswith(_OURS):
        return module == own
    return module.partition(".")[0] in (own.partition(".")[0], "asyncio")
