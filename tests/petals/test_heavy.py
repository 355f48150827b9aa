"""cpu_heavy: handlers in threads, and proxies that are called from there."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from petalbus.petals.heavy import MAX_THREADS, HandlerCancelled, run_heavy
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyNotReady


class Adder(BaseProxy):
    """Adds, and says on which loop it did."""

    kind = "adder"

    async def start(self) -> None:
        self._set_ready(True)

    async def stop(self) -> None:
        self._set_ready(False, "stopped")

    async def add(self, one: int, other: int) -> tuple[int, asyncio.AbstractEventLoop]:
        if one < 0:
            raise ValueError("one is negative")
        await asyncio.sleep(0)
        return one + other, asyncio.get_running_loop()


async def test_the_loop_goes_on_while_a_handler_computes() -> None:
    """The handler's result comes back; meanwhile the loop ticked."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    async def compute(number: int) -> tuple[int, str]:
        time.sleep(0.15)  # noqa: ASYNC251  # this is what cpu_heavy is for
        return number * 2, threading.current_thread().name

    ticking = asyncio.create_task(tick(), name="tick")
    result, thread = await run_heavy(compute, 21)
    ticking.cancel()
    assert result == 42
    assert thread.startswith("petal-heavy")
    assert ticks > 5


async def test_a_proxy_called_from_a_thread_works_at_home() -> None:
    """Results and errors come back; the call ran on the loop that the proxy was started on."""
    proxy = Adder()
    await proxy.start()

    async def handler() -> Any:
        with pytest.raises(ValueError, match="negative"):
            await proxy.add(-1, 1)
        assert await proxy.wait_until_ready(1)
        return await proxy.add(1, 2)

    total, loop = await run_heavy(handler)
    assert total == 3
    assert loop is asyncio.get_running_loop()


async def test_a_proxy_whose_loop_is_gone_says_so() -> None:
    proxy = Adder()
    await asyncio.to_thread(asyncio.run, proxy.start())
    with pytest.raises(ProxyNotReady, match="closed"):
        await proxy.add(1, 2)


async def test_readiness_is_heard_on_every_loop() -> None:
    """wait_until_ready from a thread, before and after the proxy is ready; health tells the reason."""
    proxy = Adder()
    assert not await proxy.wait_until_ready(0.01)
    assert (await proxy.health_check())["status"] == "unhealthy"
    assert proxy.reason == "not started"
    waiting = asyncio.create_task(run_heavy(lambda: proxy.wait_until_ready(5)), name="waiting")
    await proxy.start()
    assert await waiting
    assert (await proxy.health_check())["status"] == "healthy"
    await proxy.stop()
    assert (proxy.is_ready, proxy.reason) == (False, "stopped")


async def test_errors_and_cancellation_reach_the_right_side() -> None:
    """An error is the caller's; a cancelled caller cancels the handler, and waits until it has ended."""
    begun, ended = threading.Event(), threading.Event()

    async def fail() -> None:
        raise OSError("no disk")

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(OSError, match="no disk"):
        await run_heavy(fail)
    with pytest.raises(HandlerCancelled):
        await run_heavy(cancel_itself)
    task = asyncio.create_task(run_heavy(wait), name="heavy")
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_no_more_threads_than_the_limit() -> None:
    """More handlers than threads: they wait, and one that waits can be cancelled before it has begun."""
    gate, running = threading.Event(), threading.Semaphore(0)
    ran: list[int] = []

    async def occupy(number: int) -> int:
        ran.append(number)
        running.release()
        gate.wait(10)
        return number

    tasks = [asyncio.create_task(run_heavy(occupy, n), name=f"heavy-{n}") for n in range(MAX_THREADS + 2)]
    for _ in range(MAX_THREADS):
        assert await asyncio.to_thread(running.acquire, timeout=5)
    late = next(task for n, task in enumerate(tasks) if n not in ran)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert len(ran) == MAX_THREADS
    gate.set()
    results = await asyncio.gather(*(task for task in tasks if task is not late))
    assert len(results) == MAX_THREADS + 1
