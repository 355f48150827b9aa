"""Sending at a steady rate: by a schedule, so that a late one does not delay those after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator


def paced(count: int, rate: int) -> Iterator[int]:
    """The numbers 0 to ``count`` - 1, ``rate`` a second. Blocks in between."""
    start = time.monotonic()
    for number in range(count):
        wait = start + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield number


async def paced_async(count: int, rate: int) -> AsyncIterator[int]:
    """The same for an event loop. (uvloop's timers have a resolution of 1 ms; the average rate is right.)"""
    start = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        yield number
