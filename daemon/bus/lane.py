"""A lane: one connection that comes back. Reconnection is a state machine.

    waiting -> connecting -> checking -> preparing -> live
       ^_______________________________________________|   connection lost, or an error that needs a fresh start

``checking`` makes sure that the server can carry the bus (a primary, not loading); ``preparing`` lets the owner restore
what it needs (scripts, groups, its own pending entries) before anything else is sent.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from petalbus.daemon.bus.connection import Connection, ServerError, open_connection
from petalbus.daemon.bus.errors import BusUnavailable, NotOpen, ServerRefused
from petalbus.daemon.bus.url import Address

log = logging.getLogger("petalbus.bus")

RESTART_ERRORS = frozenset({"LOADING", "READONLY", "MASTERDOWN", "NOGROUP", "UNBLOCKED", "NOSCRIPT", "CLUSTERDOWN"})
"""Error replies that mean: nothing was done, start over from the beginning of the state machine."""


class LaneState(StrEnum):
    """Where a lane stands."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    CHECKING = "checking"
    PREPARING = "preparing"
    LIVE = "live"
    CLOSED = "closed"


@dataclass(slots=True)
class Backoff:
    """Waiting times between attempts, in seconds: doubled each time, with jitter, reset by success."""

    first: float = 0.02
    most: float = 2.0
    attempts: int = 0

    def next(self) -> float:
        """The next waiting time."""
        base = min(self.most, self.first * 2.0**self.attempts)
        self.attempts = min(self.attempts + 1, 32)
        return base * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret

    def reset(self) -> None:
        """Start again from the shortest waiting time."""
        self.attempts = 0


async def _nothing(_connection: Connection) -> None:
    return None


class Lane:
    """A connection with a purpose, kept alive until closed.

    ``prepare`` runs on every new connection before the lane is live; ``on_live`` and ``on_lost`` are plain callbacks.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        prepare: Callable[[Connection], Awaitable[None]] = _nothing,
        on_live: Callable[[Connection], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        connect_timeout: float = 5.0,
        patience: float = 5.0,
    ) -> None:
        self.name = name
        self.state = LaneState.WAITING
        self._connection: Connection | None = None
        self.client_id = 0
        self.connects = 0
        self.last_error: Exception | None = None
        self._address = address
        self._prepare = prepare
        self._on_live = on_live
        self._on_lost = on_lost
        self._connect_timeout = connect_timeout
        self._patience = patience
        self._backoff = Backoff()
        self._live = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin connecting in the background. Raises NotOpen when the lane is closed: it would never end again."""
        if self.closing:
            raise NotOpen("the bus client is closed; nothing was sent")
        self._task = asyncio.create_task(self._run(), name=f"petalbus-lane-{self.name}")

    @property
    def connection(self) -> Connection | None:
        """The live connection; None as soon as it is lost, also while nobody has come round to noticing."""
        connection = self._connection
        return None if connection is None or connection.broken else connection

    @property
    def closing(self) -> bool:
        """True once ``close`` was called."""
        return self.state is LaneState.CLOSED

    @property
    def started(self) -> bool:
        """True once ``start`` was called."""
        return self._task is not None

    async def wait_live(self, timeout: float) -> Connection:
        """Wait until the lane is live.

        Raises BusUnavailable or ServerRefused with the last reason after ``timeout`` s, NotOpen when it is closed.
        """
        end = time.monotonic() + timeout
        while True:
            connection = self.connection
            if self.state is LaneState.LIVE and connection is not None:
                return connection
            if isinstance(self.last_error, ServerRefused):
                raise self.last_error
            self._live.clear()
            if self.closing:
                raise NotOpen("the bus client is closed; nothing was sent")
            left = end - time.monotonic()
            if left <= 0:
                reason = self.last_error or f"still {self.state}"
                raise BusUnavailable(f"no connection to {self._address.shown} after {timeout:g} s: {reason}")
            try:
                async with asyncio.timeout(min(left, 0.1)):
                    await self._live.wait()
            except TimeoutError:
                continue

    def restart(self, reason: Exception) -> None:
        """Drop the connection and go through the state machine again."""
        self.last_error = reason
        if self.connection is not None:
            self.connection.close(reason)

    async def close(self) -> None:
        """Close the connection and stay closed."""
        self.state = LaneState.CLOSED
        if self.connection is not None:
            self.connection.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._establish()
            except (BusUnavailable, ServerRefused, ServerError) as error:
                self._note(_explained(error, self._address))
            except Exception as error:  # a fault of ours: say so, and keep trying rather than stand still unseen
                if str(error) != str(self.last_error):
                    log.exception("%s lane", self.name)
                self.last_error = error
            else:
                self._go_live(connection)
                await connection.closed
                self._lose()
            if self.closing:
                return
            self.state = LaneState.WAITING
            await asyncio.sleep(self._backoff.next())

    async def _establish(self) -> Connection:
        self.state = LaneState.CONNECTING
        connection = await open_connection(self._address, timeout=self._connect_timeout, patience=self._patience)
        try:
            self.state = LaneState.CHECKING
            await self._check(connection)
            self.client_id = await connection.call("CLIENT", "ID")
            await connection.call("CLIENT", "SETNAME", f"petalbus-{self.name}")
            self.state = LaneState.PREPARING
            await self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _check(self, connection: Connection) -> None:
        if b"role:slave" in await connection.call("INFO", "replication"):
            raise ServerRefused(f"{self._address.shown} is a replica; the bus needs the primary")

    def _note(self, error: Exception) -> None:
        if str(error) != str(self.last_error):
            log.warning("%s lane: %s", self.name, error)
        self.last_error = error

    def _go_live(self, connection: Connection) -> None:
        if connection.closed.done():
            return
        self._connection = connection
        self.connects += 1
        self.state = LaneState.LIVE
        self.last_error = None
        self._backoff.reset()
        self._live.set()
        if self._on_live is not None:
            self._on_live(connection)

    def _lose(self) -> None:
        self._connection = None
        self._live.clear()
        if self._on_lost is not None and self.state is not LaneState.CLOSED:
            self._on_lost()

    def statistics(self) -> dict[str, Any]:
        """State, connections made so far, requests under way, last error."""
        waiting = self.connection.waiting if self.connection is not None else 0
        return {
            "state": str(self.state),
            "connects": self.connects,
            "waiting": waiting,
            "last_error": str(self.last_error) if self.last_error else None,
        }


def _explained(error: Exception, address: Address) -> Exception:
    if isinstance(error, ServerError) and error.prefix in ("NOAUTH", "WRONGPASS", "NOPERM", "ERR"):
        return ServerRefused(f"{address.shown} refused us: {error}")
    return error
