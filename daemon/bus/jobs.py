"""What waits for an answer on the command lane: repeatable jobs, requests sent once, batches of records."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusFull, BusUnavailable, OutcomeUnknown


class Owner(Protocol):
    """Decides what becomes of a job whose answer is none."""

    def next_number(self) -> int:
        """The place of a new job in the order of sending."""
        ...

    def failed(self, job: Job, error: Exception) -> None:
        """The answer was lost, or is an error."""
        ...

    def answered_beside(self, job: Job, reply: Any) -> None:
        """The job that went beside the command lane has its answer."""
        ...


class Job:
    """A request that may be repeated, until it is answered or out of time."""

    __slots__ = ("beside", "born", "done", "number", "owner", "packed")

    def __init__(
        self, owner: Owner, packed: bytes, done: Callable[[Any], None], *, beside: bool = False, lasting: bool = False
    ) -> None:
        self.owner = owner
        self.packed = packed
        self.done = done
        self.beside = beside
        self.number = owner.next_number()
        self.born = math.inf if lasting else time.monotonic()

    def __call__(self, reply: Any) -> None:
        """The waiter: decides between done, again, and failed."""
        if self.beside:
            self.beside = False
            self.owner.answered_beside(self, reply)
            return
        if isinstance(reply, (OutcomeUnknown, ServerError)):
            self.owner.failed(self, reply)
        else:
            self.done(reply)


class Once:
    """The waiter of a request that is never repeated."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future

    def __call__(self, reply: Any) -> None:
        """Hand the reply on, with server errors in the bus's own words."""
        if self.future.done():
            return
        if isinstance(reply, ServerError):
            self.future.set_exception(translated(reply))
        elif isinstance(reply, BaseException):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)


class Several:
    """The waiter of requests in one piece that are never repeated. The future gives all replies, or the first error."""

    __slots__ = ("_error", "_left", "_replies", "future")

    def __init__(self, future: asyncio.Future[list[Any]], count: int) -> None:
        self.future = future
        self._left = count
        self._replies: list[Any] = []
        self._error: BaseException | None = None

    def __call__(self, reply: Any) -> None:
        """Keep one reply; with the last one the future is done."""
        self._replies.append(reply)
        if isinstance(reply, BaseException) and self._error is None:
            self._error = translated(reply) if isinstance(reply, ServerError) else reply
        self._left -= 1
        if self._left or self.future.done():
            return
        if self._error is None:
            self.future.set_result(self._replies)
        else:
            self.future.set_exception(self._error)


class Batch:
    """Records of one tick for one stream, and who waits for each."""

    __slots__ = ("arguments", "chunks", "futures", "size")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.futures: list[asyncio.Future[bytes]] = []
        self.arguments = 0
        self.size = 0

    def add(self, future: asyncio.Future[bytes], arguments: int, chunk: bytes) -> None:
        """Put a record in."""
        self.futures.append(future)
        self.chunks.append(chunk)
        self.arguments += arguments
        self.size += len(chunk)

    def done(self, reply: Any) -> None:
        """Give every waiter its answer."""
        if isinstance(reply, BaseException):
            for future in self.futures:
                if not future.done():
                    future.set_exception(reply)
            return
        for future, answer in zip(self.futures, reply, strict=True):
            if not future.done():
                future.set_result(answer)


def translated(error: ServerError) -> Exception:
    """The bus's own error for an error reply after which nothing was stored."""
    if error.prefix == "OOM":
        return BusFull("the server's memory ceiling is reached; nothing was stored. Let consumers catch up or raise it")
    if error.prefix == "MISCONF":
        return BusUnavailable("the server cannot write to its disk; nothing was stored. Free some space")
    return error
