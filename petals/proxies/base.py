"""What all proxies have: start, stop, readiness, health; and calls that work from any thread.

A proxy lives on the event loop that started it. Its public coroutines may be awaited on another loop too (that of a
``cpu_heavy`` handler): they run at home and bring the result back.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from petalbus.petals.proxies.errors import ProxyNotReady

_AT_HOME: Final = "__petalbus_at_home__"


class BaseProxy(ABC):
    """Base of every proxy. A subclass calls ``super().__init__()`` and, when it works, ``_set_ready(True)``.

    Public ``async def`` methods are wrapped so that they run on the proxy's own loop; mix-ins that hold such methods
    must be subclasses of BaseProxy too. Other methods must be written so that any thread may call them.
    """

    kind: ClassVar[str] = "proxy"
    """What it is, in logs and health answers."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._ready_here: asyncio.Event | None = None
        self._reason: str = "not started"
        self._watchers: list[Callable[[], None]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, member in list(vars(cls).items()):
            public = name == "__aenter__" or not name.startswith("_")
            if public and inspect.iscoroutinefunction(member) and not hasattr(member, _AT_HOME):
                setattr(cls, name, _starting(member) if name == "start" else _at_home(member))

    @abstractmethod
    async def start(self) -> None:
        """Begin to work. Does not fail because what it stands for is away: it becomes ready when that appears."""

    @abstractmethod
    async def stop(self) -> None:
        """Give back everything that ``start`` took. May be called twice."""

    @property
    def is_ready(self) -> bool:
        """True while calls can be answered."""
        return self._ready.is_set()

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return "" if self.is_ready else self._reason

    async def wait_until_ready(self, timeout: float = 30.0) -> bool:
        """Wait until it is ready, ``timeout`` seconds at most; True when it is."""
        if self._ready_here is None:
            self._ready_here = asyncio.Event()
            if self.is_ready:
                self._ready_here.set()
        try:
            async with asyncio.timeout(timeout):
                await self._ready_here.wait()
        except TimeoutError:
            return False
        return True

    async def health_check(self) -> dict[str, Any]:
        """State for people and programs: at least ``status`` (``healthy``, ``unhealthy``) and ``message``."""
        status = "healthy" if self.is_ready else "unhealthy"
        return {"status": status, "message": self.reason or f"{self.kind} is ready", "proxy": self.kind}

    def watch(self, changed: Callable[[], None]) -> None:
        """Call a plain function, on the proxy's loop, whenever it becomes ready or is not any more."""
        self._watchers.append(changed)

    def _set_ready(self, ready: bool, reason: str = "") -> None:  # it is a setter
        """Called on the proxy's loop when it becomes ready, or is not any more (``reason``: why)."""
        self._reason = reason
        changed = ready != self._ready.is_set()
        if ready:
            self._ready.set()
        else:
            self._ready.clear()
        if self._ready_here is not None:
            if ready:
                self._ready_here.set()
            else:
                self._ready_here.clear()
        if changed:
            for tell in list(self._watchers):
                tell()

    def _require_ready(self) -> None:
        if not self.is_ready:
            raise ProxyNotReady(f"the {self.kind} proxy cannot be used: {self._reason}")

    def _call_at_home(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a plain function on the proxy's loop: now when that is this thread's, soon otherwise."""
        home = self._loop
        if home is None or _running() is home:
            function(*args)
        else:
            home.call_soon_threadsafe(functools.partial(function, *args))


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _starting(start: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(start)
    async def call(self: BaseProxy) -> None:
        self._loop = asyncio.get_running_loop()
        await start(self)

    setattr(call, _AT_HOME, True)
    return call


def _at_home(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(self: BaseProxy, *args: Any, **kwargs: Any) -> Any:
        home = self._loop
        if home is None or home is asyncio.get_running_loop():
            return await method(self, *args, **kwargs)
        if home.is_closed():
            raise ProxyNotReady(f"the {self.kind} proxy cannot be used: the loop it was started on is closed")
        coroutine: Any = method(self, *args, **kwargs)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, home))

    setattr(call, _AT_HOME, True)
    return call
