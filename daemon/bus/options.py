"""Settings of one bus client, each with its unit and the reason for its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SOLE_HEARTBEAT: Final = 1.0
"""Enough for a client with ``sole``: nobody takes over its work but its own next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusOptions:
    """Settings of a bus client. Times are seconds of monotonic time."""

    connect_timeout: float = 5.0
    """How long ``connect`` and each later attempt may take."""

    patience: float = 5.0
    """A server that does not answer for so long counts as dead."""

    send_timeout: float = 10.0
    """How long a send may wait for its receipt, reconnections included."""

    block: float = 5.0
    """How long a blocking read stays with the server; nothing polls."""

    heartbeat: float = 0.3
    """Time between two heartbeats of a consumer."""

    dead_after: float = 1.2
    """A consumer whose heartbeat stands still for so long is dead. With ``heartbeat`` this keeps takeover within 2 s.
    """

    workers: int = 4
    """Handlers of one client that may run at once, beside the one that is kept free for CRITICAL."""

    reserved: tuple[tuple[str, int], ...] = ()
    """Types of record, each with so many of ``workers`` that are kept for it: all other types together have the rest,
    and CRITICAL what it needs.
    """

    window: int = 64
    """Records of one priority level that a client reads ahead."""

    window_ids: int = 1_000_000
    """Message ids in one generation of the deduplication window; two generations are kept."""

    inbox_limit: int = 1_000_000
    """Entries that one inbox stream may hold before sends to it are refused."""

    keep_replies: int = 10_000
    """Replies kept for an app that is away."""

    keep_dead: int = 50_000
    """Dead letters kept for an app at the very most. The janitor keeps fewer, and reports those that it takes away."""

    max_in_flight: int = 20_000
    """Sends of one client that may wait for their receipts; more wait for room."""

    stop_grace: float = 5.0
    """How long running handlers may go on when the client is closed."""

    retry_first: float = 0.1
    """Waiting time before the second attempt; doubled for each further one."""

    retry_most: float = 5.0
    """Longest waiting time between two attempts."""

    sole: bool = False
    """This app has one process at a time: what its predecessor left is taken over at the start, not when its lease
    ends, and starts before anything newer. So order is kept over a crash."""

    max_attempts: int = 5
    """Attempts before a record becomes a dead letter; a handler may declare its own number."""

    compress_over: int | None = None
    """Payloads of more bytes are compressed; None never."""

    compression: str = "zlib"
    """``zlib``, or ``zstd`` where its package is installed on both ends."""

    telemetry_rate: float | None = None
    """Telemetry records a second that this client may send; None for no limit. A burst of one second is allowed."""

    beside_bus: bool = False
    """This client runs on the machine that the bus lives on, though it reaches it over TCP. Not known: it finds out."""

    presence: bool = True
    """Show this client among the applications; switched off for one-shot tools."""

    durability: str | None = None
    """What the server promises for what it has acknowledged, stated in every receipt; None: ask it (see Receipt)."""

    @property
    def others(self) -> int | None:
        """Handlers of all types without reserved places that may run at once; None where no places are reserved."""
        return max(1, self.workers - sum(number for _, number in self.reserved)) if self.reserved else None
