"""Whether the file and the service can be used, and when to try again: on use, or while somebody waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady
from petalbus.petals.proxies.localdb.store import Database

FIRST_RETRY: Final = 0.25
LONGEST_RETRY: Final = 10.0

logger = logging.getLogger(__name__)


class Backoff:
    """When the next attempt may be made, in monotonic time."""

    __slots__ = ("_delay", "_next")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """It worked."""
        self._delay, self._next = FIRST_RETRY, 0.0

    def failed(self) -> None:
        """It did not: wait twice as long as the last time. What fails meanwhile, on use, changes nothing."""
        if self.seconds:
            return
        self._next = time.monotonic() + self._delay
        self._delay = min(LONGEST_RETRY, self._delay * 2)

    @property
    def seconds(self) -> float:
        """How long to wait still; 0 when it may be tried."""
        return max(0.0, self._next - time.monotonic())


class Link(BaseProxy):
    """Opens the file again after damage or a full disk, and looks for the service, while somebody wants them."""

    def __init__(self, file: Path | None, max_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._max_bytes = max_bytes
        self._database: Database | None = None
        self._started = False
        self._file_problem = ""
        self._service_problem = ""
        self._backoff = Backoff()
        self._opening = asyncio.Lock()
        self._attempt: asyncio.Task[None] | None = None
        self._waiting = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """True while calls can be answered. Asking is a use: while it is not, a new attempt is made now and then."""
        ready = self._ready.is_set()
        if not ready and self._started and not self._backoff.seconds:
            home = self._loop
            if home is not None and not home.is_closed():
                self._call_at_home(self._try_again)
        return ready

    async def wait_until_ready(self, timeout: float = 30.0) -> bool:
        """Wait until it is ready, ``timeout`` seconds at most, trying meanwhile; True when it is."""
        self._waiting += 1
        try:
            if self._started and not self._ready.is_set():
                self._try_again()
            return await super().wait_until_ready(timeout)
        finally:
            self._waiting -= 1

    @property
    def _wanted(self) -> bool:
        """Somebody waits for it, or is to be told when it becomes ready: a runtime whose petals need it."""
        return bool(self._waiting or self._watchers)

    @abstractmethod
    async def _find_service(self) -> None:
        """One attempt to reach the service, if there is one; sets ``_service_problem``."""

    async def _opened(self) -> Database:
        """The open database. Raises ProxyNotReady, with the reason, when it cannot be opened now."""
        if self._database is not None:
            return self._database
        if not self._started:
            raise ProxyNotReady("the local database cannot be used: not started")
        async with self._opening:
            database = await self._open()
        if database is None:
            raise ProxyNotReady(f"the local database cannot be used: {self._file_problem}")
        return database

    async def _open(self) -> Database | None:
        """One attempt, unless it is open already or not time yet."""
        if self._database is not None:
            return self._database
        if self._backoff.seconds and self._file_problem:
            return None
        assert self._file is not None
        if self._closing:
            await asyncio.wait(self._closing)
        database = Database(self._file, max_bytes=self._max_bytes, on_damage=self._damaged)
        try:
            await database.open()
        except (ProxyError, OSError) as error:
            self._file_problem = str(error)
            self._backoff.failed()
            logger.warning("the local database cannot be opened: %s", error)
        else:
            self._database, self._file_problem = database, ""
            self._backoff.reset()
        self._settle()
        return self._database

    def _damaged(self) -> None:
        """SQLite found damage: close the file; opening it again sets it aside."""
        database, self._database = self._database, None
        if database is None:
            return
        self._file_problem = f"{database.file} is damaged"
        self._settle()
        closing = asyncio.create_task(database.close(), name="localdb-close-damaged")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        closing.add_done_callback(lambda _closed: self._try_again())

    def _try_again(self) -> None:
        if self._started and not self._ready.is_set() and (self._attempt is None or self._attempt.done()):
            self._attempt = asyncio.create_task(self._attempts(), name="localdb-connect")

    async def _attempts(self) -> None:
        """One attempt; more of them while somebody waits."""
        while True:
            await asyncio.sleep(self._backoff.seconds)
            try:
                await self._opened()
                await self._find_service()
            except ProxyError as error:
                logger.debug("not yet: %s", error)
            self._settle()
            if self._ready.is_set() or not self._wanted or not self._started:
                return

    def _settle(self) -> None:
        """Say whether it is ready, and why not."""
        problem = self._file_problem or self._service_problem
        if not self._started:
            self._set_ready(False, "stopped")
        elif problem or self._database is None:
            self._set_ready(False, problem or "the file is not open yet")
        elif not self._ready.is_set():
            self._set_ready(True)
        if self._wanted:
            self._try_again()

    async def _close_link(self) -> None:
        self._started = False
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait([attempt])
        if self._closing:
            await asyncio.wait(self._closing)
        database, self._database = self._database, None
        if database is not None:
            await database.close()
        self._settle()


def call_soon(call: Callable[..., Any], home: asyncio.AbstractEventLoop | None) -> None:
    """Call it on the loop, from any thread; not at all when the loop is gone."""
    if home is not None and not home.is_closed():
        home.call_soon_threadsafe(call)
