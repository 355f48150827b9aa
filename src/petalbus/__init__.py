"""PetalBus: an event-sourced message bus for drone companion computers, on Redis Streams.

    async with petalbus.connect(app="gcs") as bus:
        reply = await bus.request("vehicle", "command", {"command": "arm"})

Everything that a program needs of PetalBus is named here, and loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from petalbus._version import __version__

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from petalbus.daemon.bus.client import Bus, Receipt
    from petalbus.daemon.bus.errors import (
        BusError,
        BusFull,
        BusUnavailable,
        HandlerError,
        IdConflict,
        NoSuchDeadLetter,
        NotOpen,
        OutcomeUnknown,
        QueueFull,
        RateLimited,
        ReplyError,
        RequestCancelled,
        RequestTimeout,
        ServerRefused,
    )
    from petalbus.daemon.bus.handlers import Context, Progress, Reply
    from petalbus.daemon.bus.options import BusOptions
    from petalbus.daemon.bus.presence import Application
    from petalbus.daemon.bus.subscription import Subscription
    from petalbus.daemon.connect import connect
    from petalbus.daemon.server.errors import NoRunningBus
    from petalbus.schemas.compact import CompactEntry, CompactForm
    from petalbus.schemas.errors import RecordInvalid
    from petalbus.schemas.record import Record
    from petalbus.schemas.vocabulary import Priority, ReplyKind, Status

__all__ = [
    # a client
    "connect",
    "run",
    "Bus",
    "BusOptions",
    "Subscription",
    "Application",
    # what it sends and receives
    "Record",
    "Receipt",
    "Reply",
    "Progress",
    "Context",
    "CompactEntry",
    "CompactForm",
    "Priority",
    "ReplyKind",
    "Status",
    # what can go wrong
    "BusError",
    "BusUnavailable",
    "OutcomeUnknown",
    "ServerRefused",
    "BusFull",
    "QueueFull",
    "RateLimited",
    "IdConflict",
    "NotOpen",
    "NoSuchDeadLetter",
    "RequestTimeout",
    "RequestCancelled",
    "ReplyError",
    "HandlerError",
    "NoRunningBus",
    "RecordInvalid",
    "__version__",
]

T = TypeVar("T")

_ROOMS: Final = {
    "petalbus.daemon.connect": ("connect",),
    "petalbus.daemon.bus.client": ("Bus", "Receipt"),
    "petalbus.daemon.bus.options": ("BusOptions",),
    "petalbus.daemon.bus.subscription": ("Subscription",),
    "petalbus.daemon.bus.presence": ("Application",),
    "petalbus.daemon.bus.handlers": ("Context", "Progress", "Reply"),
    "petalbus.daemon.bus.errors": (
        "BusError", "BusUnavailable", "OutcomeUnknown", "ServerRefused", "BusFull", "QueueFull", "RateLimited",
        "IdConflict", "NotOpen", "NoSuchDeadLetter", "RequestTimeout", "RequestCancelled", "ReplyError",
        "HandlerError",
    ),
    "petalbus.daemon.server.errors": ("NoRunningBus",),
    "petalbus.schemas.record": ("Record",),
    "petalbus.schemas.compact": ("CompactEntry", "CompactForm"),
    "petalbus.schemas.errors": ("RecordInvalid",),
    "petalbus.schemas.vocabulary": ("Priority", "ReplyKind", "Status"),
}  # fmt: skip
_HOMES: Final = {name: module for module, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine, as ``asyncio.run`` does, on uvloop where it is installed (it is faster)."""
    import asyncio  # noqa: PLC0415  # this module stays quick to import

    from petalbus._loop import loop_factory  # noqa: PLC0415  # the same

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main)
