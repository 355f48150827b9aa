"""OrganizationManager: which organisation this machine belongs to, and which machine it is.

The organisation's id stands in ``thing-parameters.json``, which provisioning writes. It may come, change and vanish at
any time. Where the file says nothing the ``fallback`` is asked (the local database).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.paths import DataDirectoryError, DataPaths
from petalbus.petals.exits import contained
from petalbus.petals.machine import THING_PREFIX, find_machine_id, machine_id_that_was_set
from petalbus.petals.thing import Said, read_thing
from petalbus.petals.watching import FileWatch

FILE: Final = "/opt/droneleaf/certs/perm/thing-parameters.json"
_WITHOUT_INOTIFY: Final = 1.0
_SETTLE: Final = 0.05

Callback = Callable[[str | None], Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OrganizationInfo:
    """What is known. ``last_updated``: the wall clock's seconds at the last change; ``source``: file or fallback."""

    organization_id: str | None = None
    machine_id: str | None = None
    thing_name: str | None = None
    retrieved_at: str | None = None
    last_updated: float = 0.0
    source: str | None = None


class OrganizationManager:
    """Watches the file. Properties may be read from any thread; callbacks are called on the loop of ``start``.

    ``poll_interval``: seconds between two looks at the file beside the notices of the system (without those: 1 s at
    most). ``startup_timeout``: seconds that ``wait_for_organization_id`` waits when it is not told. ``data``: where the
    machine id is kept. ``machine_id``: this machine's id, where it is set. ``fallback``: asked where the file says
    nothing; it must answer at once, and call ``nudge`` when its answer has changed.
    """

    def __init__(
        self,
        file_path: str | Path = FILE,
        poll_interval: float = 5.0,
        startup_timeout: float = 30.0,
        *,
        data: Path | str | None = None,
        machine_id: str | None = None,
        fallback: Callable[[], str | None] | None = None,
    ) -> None:
        if poll_interval <= 0:
            raise ValueError(f"poll_interval={poll_interval!r} s; it must be more than 0")
        self.file_path = Path(os.path.abspath(Path(file_path).expanduser()))  # noqa: PTH100  # links stay: they may be changed
        self.poll_interval = poll_interval
        self.startup_timeout = startup_timeout
        self.fallback = fallback
        self._data = Path(data) if data is not None else None
        self._given_machine_id = machine_id
        self._guard = threading.Lock()
        self._info = OrganizationInfo(machine_id=machine_id_that_was_set(machine_id))
        self._said = Said()
        self._seen: object = None
        self._listeners: list[_Listener] = []
        self._waiters: set[asyncio.Future[str]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._watch = FileWatch(self.file_path, self._wake.set)

    @property
    def organization_id(self) -> str | None:
        """The organisation's id; None while it is not known."""
        return self._info.organization_id

    @property
    def machine_id(self) -> str | None:
        """This machine's id; None before ``start`` when it was not set."""
        return self._info.machine_id

    @property
    def organization_info(self) -> OrganizationInfo:
        """All that is known, as it was at one moment."""
        return self._info

    async def start(self) -> None:
        """Read the file and begin to watch it. Does not fail when there is none."""
        if self._task is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._wake, self._looking = asyncio.Event(), asyncio.Lock()
        self._watch = FileWatch(self.file_path, self._wake.set)
        await self._watch.start()
        await self._look()
        self._task = asyncio.create_task(self._watching(), name="organization")

    async def stop(self) -> None:
        """Stop watching; what was known stays readable. May be called twice."""
        task, self._task = self._task, None
        self._watch.close()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        with self._guard:
            listeners = list(self._listeners)
        for listener in listeners:
            await listener.stop()

    def register_callback(self, callback: Callback) -> None:
        """Call it with the new id (None: there is none any more) whenever that changes. Plain or async; any thread.

        A slow async callback misses values that came and went meanwhile, never the last one.
        """
        with self._guard:
            if all(listener.callback != callback for listener in self._listeners):
                self._listeners = [*self._listeners, _Listener(callback)]

    def unregister_callback(self, callback: Callback) -> None:
        """Do not call it any more. Any thread."""
        with self._guard:
            self._listeners = [listener for listener in self._listeners if listener.callback != callback]

    async def wait_for_organization_id(self, timeout: float | None = None) -> str | None:
        """The id as soon as it is known, or None after ``timeout`` seconds (default ``startup_timeout``). Any loop."""
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        with self._guard:
            if self._info.organization_id is not None:
                return self._info.organization_id
            self._waiters.add(waiter)
        try:
            async with asyncio.timeout(self.startup_timeout if timeout is None else timeout):
                return await waiter
        except TimeoutError:
            return None
        finally:
            with self._guard:
                self._waiters.discard(waiter)

    async def refresh(self) -> str | None:
        """Read the file now, whatever was noticed; the id then. On the loop of ``start``."""
        self._seen = None
        await self._look()
        return self.organization_id

    def nudge(self) -> None:
        """The fallback's answer may have changed: look again soon. Any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)

    async def _watching(self) -> None:
        while True:
            interval = self.poll_interval if self._watch.works else min(self.poll_interval, _WITHOUT_INOTIFY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._wake.wait()
                await asyncio.sleep(_SETTLE)  # a writer's several steps are looked at once
            self._wake.clear()
            try:
                await self._watch.follow()
                await self._look()
            except Exception:
                logger.exception("looking at %s failed; it is tried again in %g s", self.file_path, self.poll_interval)

    async def _look(self) -> None:
        async with self._looking:
            seen, said = await asyncio.to_thread(read_thing, self.file_path, self._seen)
            self._seen = seen
            if said is not None:
                if said.problem:
                    logger.warning("%s: %s: what it said before still holds", self.file_path, said.problem)
                else:
                    self._said = said
            await self._take()

    async def _take(self) -> None:
        said = self._said
        organization_id, source = said.organization_id, "file" if said.organization_id else None
        if organization_id is None and self.fallback is not None:
            try:
                organization_id = self.fallback() or None
            except Exception:
                logger.exception("the fallback for the organisation's id failed")
            source = "fallback" if organization_id else None
        before = self._info
        machine_id = before.machine_id
        if machine_id is None or said.thing_name not in (None, before.thing_name):  # no name: it stays as it is
            machine_id = await asyncio.to_thread(self._find_machine_id, said.thing_name)
        now = OrganizationInfo(
            organization_id, machine_id, said.thing_name, said.retrieved_at, before.last_updated, source
        )
        if now != before:
            self._change(before, replace(now, last_updated=time.time()))

    def _find_machine_id(self, thing_name: str | None) -> str | None:
        try:
            directory = self._data if self._data is not None else DataPaths.of().root
        except DataDirectoryError as error:
            logger.warning("the machine id cannot be kept: %s", error)
            return (
                machine_id_that_was_set(self._given_machine_id) or (thing_name or "").removeprefix(THING_PREFIX) or None
            )
        return find_machine_id(directory, given=self._given_machine_id, thing_name=thing_name).value

    def _change(self, before: OrganizationInfo, now: OrganizationInfo) -> None:
        with self._guard:
            self._info = now
            listeners, waiters = self._listeners, set(self._waiters)
        if now.organization_id == before.organization_id:
            return
        if now.organization_id is None:
            logger.warning("the organisation is not known any more; it was %s", before.organization_id)
        else:
            logger.info("the organisation is %s (%s)", now.organization_id, now.source)
            for waiter in waiters:
                _fulfil(waiter, now.organization_id)
        for listener in listeners:
            listener.tell(now.organization_id)


class _Listener:
    """One callback: called in order, and never twice at a time."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self._task: asyncio.Task[None] | None = None
        self._next: list[str | None] = []

    def tell(self, value: str | None) -> None:
        self._next = [value]
        if self._task is None or self._task.done():
            self._go_on()

    async def stop(self) -> None:
        self._next = []
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _go_on(self) -> None:
        running = self._call()
        if running is not None:
            self._task = asyncio.create_task(self._finish(running), name="organization-callback")

    def _call(self) -> Any:
        """Call it with the newest value; what is to be awaited then, or None."""
        try:
            with contained():
                running = self.callback(self._next.pop())
        except Exception:
            logger.exception("callback %r of the organisation manager failed", self.callback)
            return None
        return running if inspect.isawaitable(running) else None

    async def _finish(self, running: Any) -> None:
        while running is not None:
            try:
                with contained():
                    await running
            except Exception:
                logger.exception("callback %r of the organisation manager failed", self.callback)
            running = self._call() if self._next else None


def _fulfil(waiter: asyncio.Future[str], value: str) -> None:
    def tell() -> None:
        if not waiter.done():
            waiter.set_result(value)

    with contextlib.suppress(RuntimeError):  # its loop has been closed: nobody waits there
        waiter.get_loop().call_soon_threadsafe(tell)


_manager: OrganizationManager | None = None
_manager_guard = threading.Lock()


def get_organization_manager() -> OrganizationManager:
    """The process's manager, made when it is first asked for. Whoever runs the process starts it."""
    global _manager  # noqa: PLW0603  # one a process
    with _manager_guard:
        if _manager is None:
            _manager = OrganizationManager()
        return _manager


def set_organization_manager(manager: OrganizationManager | None) -> None:
    """Make ``manager`` the process's one. None: the next one who asks gets a new one."""
    global _manager  # noqa: PLW0603  # one a process
    with _manager_guard:
        _manager = manager
