"""A petal's methods as handlers of its inbox: with the time, the least priority and the order that ``on`` declared."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from petalbus.daemon.bus.errors import HandlerError
from petalbus.petals.actions import RecordAction
from petalbus.petals.exits import contained
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record


class Ended(Protocol):
    """Told of each run: ``ok`` when it ended well, or with an answer of its own."""

    def __call__(self, *, ok: bool) -> None:
        """One run has ended."""


def _nobody(*, ok: bool) -> None:
    """Nobody wants to know."""


def register(bus: Bus, action: RecordAction, *, timeout: float | None = None, ended: Ended | None = None) -> None:
    """Let a petal's method handle its type. ``timeout``: seconds a run may take where ``on`` says nothing.

    Raises TypeError or ValueError when it cannot.
    """
    options = action.options
    bus.on(
        action.type,
        redelivery=options["redelivery"],
        concurrency=options["concurrency"],
        max_attempts=options["max_attempts"],
    )(Guarded(action, timeout=timeout, ended=ended).function)


class Guarded:
    """One method and what was declared about it. ``function`` is what the bus calls."""

    def __init__(self, action: RecordAction, *, timeout: float | None = None, ended: Ended | None = None) -> None:
        self._type = action.type
        self._seconds: float | None = action.options["timeout"] or timeout
        self._least: int | None = action.options["priority"]
        self._ended = ended or _nobody
        self._turns = Turns(action.options["key"]) if action.options["key"] is not None else None
        method = action.function
        wrapper = self._stream(method) if inspect.isasyncgenfunction(method) else self._call(method)
        wrapper.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]  # functions may carry one
        self.function: Callable[..., Any] = wrapper

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def call(record: Record, *context: Any) -> Any:
            async with self._run(record):
                return await method(record, *context)

        return call

    def _stream(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def stream(record: Record, *context: Any) -> AsyncIterator[Any]:
            async with self._run(record), contextlib.aclosing(method(record, *context)) as said:
                async for one in said:
                    yield one

        return stream

    @contextlib.asynccontextmanager
    async def _run(self, record: Record) -> AsyncIterator[None]:
        if self._least is not None and record.priority < self._least:
            text = f"{self._type} is taken at priority {self._least} and above; this one has {int(record.priority)}"
            raise HandlerError(text, error_code="PRIORITY_TOO_LOW")
        async with contextlib.AsyncExitStack() as stack:
            if self._turns is not None:
                await stack.enter_async_context(self._turns.of(record))
                if record.expired(boot_clock_ns()):
                    text = f"the deadline passed before the turn of this {self._type} had come; it was not run"
                    raise HandlerError(text, error_code="DEADLINE_EXPIRED")
            try:
                async with asyncio.timeout(self._seconds) as within:
                    with contained():
                        yield
            except HandlerError:
                self._ended(ok=True)
                raise
            except TimeoutError as error:
                self._ended(ok=False)
                if within.expired():
                    text = f"{self._type} did not end within {self._seconds:g} s; whether it took effect is unknown"
                    raise HandlerError(text, error_code="HANDLER_TIMEOUT") from error
                raise
            except Exception:
                self._ended(ok=False)
                raise
            self._ended(ok=True)


class Turns:
    """Runs with an equal value of a payload's member come one after the other, in the order of their start."""

    def __init__(self, member: str) -> None:
        self._member = member
        self._locks: dict[Hashable, tuple[asyncio.Lock, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def of(self, record: Record) -> AsyncIterator[None]:
        """Wait for the turn of a record, and hold it."""
        data = record.data
        value = data.get(self._member) if isinstance(data, dict) else None
        key: Hashable = value if isinstance(value, Hashable) else repr(value)
        lock, waiting = self._locks.setdefault(key, (asyncio.Lock(), []))
        waiting.append(None)
        try:
            async with lock:
                yield
        finally:
            waiting.pop()
            if not waiting:
                self._locks.pop(key, None)
