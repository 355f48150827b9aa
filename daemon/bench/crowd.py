"""Many tasks that share one count of things to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def crowd(tasks: int, count: int, act: Callable[[int], Awaitable[object]]) -> None:
    """Let ``tasks`` tasks call ``act`` with the numbers 0 to ``count`` - 1, each awaiting one call at a time."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await act(number)

    async with asyncio.TaskGroup() as group:
        for index in range(min(tasks, count)):
            group.create_task(one(), name=f"bench-{index}")
