"""Which event loop runs our programs."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable


def loop_factory() -> Callable[[], AbstractEventLoop] | None:
    """What makes an event loop: uvloop's where it is installed, as it is faster; else None, for the one of asyncio."""
    try:
        from uvloop import new_event_loop  # noqa: PLC0415  # it may not be installed
    except ImportError:
        return None
    return new_event_loop
