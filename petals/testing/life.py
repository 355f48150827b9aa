"""One life of a petal under test: everything that it started is known, so that it can be killed without a farewell."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from collections.abc import Coroutine
from typing import Any, Final, Generic, TypeVar, cast

from petalbus.daemon.bus.client import Bus
from petalbus.petals.base import Petal
from petalbus.petals.hosting import PetalHost
from petalbus.petals.testing.wire import Wire

_LIFE: Final[contextvars.ContextVar[Life[Any] | None]] = contextvars.ContextVar("petalbus-life", default=None)


_KILLS: Final = 5
_KILL_SECONDS: Final = 0.2

log = logging.getLogger("petalbus.testing")

P = TypeVar("P", bound=Petal)


class Life(Generic[P]):
    """From the start of a petal to its stop or its crash. ``bus``: the client that its host gives it."""

    def __init__(self, host: PetalHost[P], wire: Wire, buses: list[Bus]) -> None:
        self.host = host
        self._wire = wire
        self._buses = buses
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    async def start(self) -> None:
        """Start it; what the petal raises comes out."""
        context = contextvars.copy_context()
        context.run(_LIFE.set, self)
        await self._wire.start()
        try:
            await asyncio.get_running_loop().create_task(self.host.start(), name="petal-start", context=context)
        except BaseException:
            await self._wire.stop()
            raise

    async def stop(self) -> None:
        """Stop it in order."""
        try:
            context = contextvars.copy_context()
            context.run(_LIFE.set, self)
            await asyncio.get_running_loop().create_task(self.host.stop(), name="petal-stop", context=context)
        finally:
            await self._end_left()
            await self._wire.stop()

    async def kill(self) -> None:
        """End it as ``kill -9`` would: no shutdown, no farewell; whatever it still says reaches nobody."""
        await self._wire.stop()
        for _ in range(_KILLS):
            tasks = [task for task in self._tasks if not task.done()]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_KILL_SECONDS)
        else:
            log.warning("%d tasks of a crashed petal refuse to end; nothing of them reaches the bus", len(tasks))
        for bus in self._buses:
            await _silence(bus)

    async def _end_left(self) -> None:
        """Tasks that the petal has started and not ended are ended and named, as the runtime does it."""
        for task in (left := [task for task in self._tasks if not task.done()]):
            log.warning("petal %s has left the task %s running; it is ended", self.host.petal.name, task.get_name())
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)

    def note(self, task: asyncio.Task[Any]) -> None:
        """A task was started in this life."""
        self._tasks.add(task)


class LifeTasks:
    """While it is entered, every task is noted in the life that started it (the loop's task factory, wrapped)."""

    def __init__(self) -> None:
        self._before: Any = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._before = loop.get_task_factory()
        loop.set_task_factory(cast(Any, self._make))  # its protocol differs between versions of Python

    def __exit__(self, *exc: object) -> None:
        asyncio.get_running_loop().set_task_factory(self._before)

    def _make(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any]
        if self._before is None:
            task = asyncio.Task(coroutine, loop=loop, **options)
        else:
            task = self._before(loop, coroutine, **options)
        context = options.get("context")
        life = _LIFE.get() if context is None else context.get(_LIFE)
        if life is not None:
            life.note(task)
        return task


async def _silence(bus: Bus) -> None:
    """End the heartbeats of a client whose tasks are gone: they beat from threads."""
    consumer = bus._consumer
    for heartbeat in (bus._heartbeat, consumer._heartbeat if consumer is not None else None):
        if heartbeat is not None:
            await heartbeat.stop()
