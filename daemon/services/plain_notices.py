"""Hears the plain channels: who has put a message into which queue, and what is told to everybody.

One connection subscribed to ``channel:*``. A notice may be lost, with a connection for instance: whoever is woken by
them also looks for himself now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.lane import Lane

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("petalbus.services")

PING_EVERY: Final = 20.0
"""Seconds between two signs of life on a connection on which nobody may say anything for hours."""

_PONG: Final = b"pong"
_MESSAGE: Final = b"pmessage"


class Notices:
    """Calls ``heard`` with the channel's name behind ``channel:`` and what was said there."""

    def __init__(self, bus: Bus, *, heard: Callable[[str, bytes], None]) -> None:
        self._heard = heard
        self._pinging: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._refused = ""
        self.subscribed = False
        self.lane = Lane(
            "plain-channels",
            bus.address,
            on_live=self._subscribe,
            on_lost=self._lost,
            connect_timeout=bus.options.connect_timeout,
            patience=PING_EVERY + bus.options.patience,
        )

    async def close(self) -> None:
        """Stop hearing."""
        self._lost()
        await self.lane.close()

    def _subscribe(self, connection: Connection) -> None:
        connection.send(pack(("PSUBSCRIBE", f"{plain.CHANNEL}*")), lambda reply: self._pushed(connection, reply))
        self._ping(connection)

    def _ping(self, connection: Connection) -> None:
        self._pinging = self._loop.call_later(PING_EVERY, self._ping_now, connection)

    def _ping_now(self, connection: Connection) -> None:
        connection.send(pack(("PING",)), lambda reply: self._pushed(connection, reply))
        self._ping(connection)

    def _pushed(self, connection: Connection, reply: Any) -> None:
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            if str(reply) != self._refused:
                log.warning(
                    "the plain channels cannot be heard (%s): messages are found by looking once a second", reply
                )
            self._refused = str(reply)
            return
        word = reply[0] if isinstance(reply, list) else _PONG  # a server may answer a PING plainly
        if word.lower() == _PONG:
            return  # the answer to our PING, which brought a waiter of its own
        # What comes next is pushed, not asked for; a connection hands every reply to a waiter, so one stays there.
        connection.send(b"", lambda following: self._pushed(connection, following))
        self.subscribed = True
        if word == _MESSAGE:
            self._heard(reply[2].decode("utf-8", "replace").removeprefix(plain.CHANNEL), reply[3])

    def _lost(self) -> None:
        self.subscribed = False
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
