"""What a handler may look like, and what it may say.

A handler is an async function of the record (and, if it takes two parameters, of a Context). It returns the result: a
JSON value, a Reply, or None; or it is an async generator that yields Progress and at last a result. It may raise
HandlerError to answer with an error of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind

Redelivery = Literal["rerun", "report"]
"""What a second delivery means after a crash: run it again (idempotent work), or only report that nobody knows."""


class Reply:
    """A reply with something to say beyond its payload. ``type`` defaults to the request's type plus ``_response``.

    ``id``: the reply's own id, when it shall not be a new one. ``fields``: further fields of its record, by wire name.
    """

    __slots__ = ("data", "fields", "id", "kind", "type")

    def __init__(
        self,
        data: Any = None,
        kind: ReplyKind = ReplyKind.RESULT,
        type: str | None = None,
        *,
        id: str | None = None,
        fields: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.data = data
        self.kind = kind
        self.type = type
        self.id = id
        self.fields = fields or {}


class Progress(Reply):
    """A reply that is not the last one; ``yield`` it from an async generator."""

    __slots__ = ()

    def __init__(self, data: Any = None, *, type: str | None = None) -> None:
        super().__init__(data, ReplyKind.PROGRESS, type)


class HandedOver:
    """See HANDED_OVER."""

    __slots__ = ()


HANDED_OVER: Final = HandedOver()
"""What a handler returns that gave the record to a program which answers by itself, later: the record is acknowledged
without a reply, and stands as delivered until that program's reply comes in."""


class Context(Protocol):
    """What a handler can do while it runs."""

    attempt: int

    async def accepted(self, data: Any = None) -> bool:
        """Tell the sender that the work has been taken on; False when the lease is lost."""
        ...

    async def progress(self, data: Any) -> bool:
        """Tell the sender how far the work is; False when the lease is lost."""
        ...


Overtakes = Callable[[Record], bool | str]
"""True: it waits for no other record; a text: only for those of its sender or key with the same text."""
HandlerFunction = Callable[..., Awaitable[Any] | AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered handler and what was declared about it."""

    type: str
    function: HandlerFunction
    redelivery: Redelivery
    concurrency: int | None
    max_attempts: int
    takes_context: bool
    generator: bool
    overtakes: Overtakes | None = None
    """Whether a record waits for others of its sender or key."""

    @classmethod
    def of(
        cls,
        function: HandlerFunction,
        *,
        record_type: str,
        redelivery: Redelivery,
        concurrency: int | None,
        max_attempts: int,
        overtakes: Overtakes | None = None,
    ) -> Handler:
        """Check a function and its declaration; raises TypeError or ValueError that says what is wrong."""
        generator = inspect.isasyncgenfunction(function)
        if not generator and not inspect.iscoroutinefunction(function):
            raise TypeError(f"handler {function!r} of {record_type!r} must be 'async def'")
        if redelivery not in ("rerun", "report"):
            raise ValueError(f"redelivery {redelivery!r} is unknown; declare 'rerun' (idempotent) or 'report'")
        if max_attempts < 1 or (concurrency is not None and concurrency < 1):
            raise ValueError("max_attempts and concurrency must be at least 1")
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        if len(parameters) not in (1, 2):
            raise TypeError(f"handler {function!r} must take the record, and optionally a context")
        takes_context = len(parameters) == 2
        return cls(record_type, function, redelivery, concurrency, max_attempts, takes_context, generator, overtakes)


async def held(_record: Record) -> None:
    """Stands for a handler that is still to come: its records wait. Never called: none may run at a time."""
    raise AssertionError("a record was started that is held")


class Registry:
    """The handlers of one client, by record type. ``*`` takes every type that has none of its own."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """Register a handler; raises ValueError when the type has one already (but one that only holds gives way)."""
        known = self._handlers.get(handler.type)
        if known is not None and known.function is not held:
            raise ValueError(f"type {handler.type!r} has a handler already; remove it first")
        self._handlers[handler.type] = handler

    def remove(self, record_type: str) -> bool:
        """Forget a type's handler; False when there was none."""
        return self._handlers.pop(record_type, None) is not None

    def find(self, record_type: str) -> Handler | None:
        """The handler of a type, or the one for everything."""
        return self._handlers.get(record_type) or self._handlers.get("*")

    def __iter__(self) -> Iterator[Handler]:
        return iter(list(self._handlers.values()))

    def __len__(self) -> int:
        return len(self._handlers)


def is_final(said: Any) -> bool:
    """True when what a generator yielded ends the work."""
    return not isinstance(said, Reply) or said.kind.final


def as_reply(said: Any, default: ReplyKind = ReplyKind.RESULT) -> Reply:
    """What a handler returned or yielded, as a reply."""
    if isinstance(said, Record):
        raise TypeError("a handler returns a payload or a Reply, not a Record")
    if not isinstance(said, Reply):
        return Reply(said, default)
    if not said.kind.final:
        raise TypeError(f"a reply of kind {said.kind} does not end the work: yield it, or tell it through the context")
    return said
