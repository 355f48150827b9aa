"""Channels of Redis's publish/subscribe on the bus: their names, records and marks, and a connection that listens.

A message on a channel is a record of type ``pubsub`` in topic ``pubsub``, with the channel as a field of its own. What
programs of ours publish is recorded as it is published (``pubsub.lua``); what others publish is recorded by a bridge.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.lane import Lane
from petalbus.schemas.stamps import Clock, new_id

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.keys import Keys

TOPIC: Final = "pubsub"
TYPE: Final = "pubsub"
CHANNEL: Final = b"channel"
"""The field of a record that names its channel."""

FOREIGN: Final = "pubsub"
"""Source of records whose publisher nobody knows."""

PING_EVERY: Final = 20.0
"""Seconds between two signs of life on a connection on which nobody may say anything for hours."""

log = logging.getLogger("petalbus.bus")


def marks(keys: Keys) -> str:
    """The channel on which a mark says which channel's next message has a record already."""
    return f"{keys.prefix}pubsub:mark"


def bridges(keys: Keys) -> str:
    """The channel that only bridges listen to: how many listen is how many there are."""
    return f"{keys.prefix}pubsub:bridge"


def description(keys: Keys) -> str:
    """The hash in which a bridge describes itself: ``patterns``, separated by line feeds."""
    return f"{keys.prefix}pubsub:bridged"


def record_items(channel: bytes, message: bytes, *, source: str, clock: Clock) -> list[bytes]:
    """The fields of a message's record, stamped now."""
    return [
        *(b"id", new_id().encode(), b"type", TYPE.encode(), b"source", source.encode(), b"data", message),
        *(b"content_type", b"text/plain", CHANNEL, channel, b"time", b"%d" % time.time_ns()),
        *(b"boot_id", clock.boot_id.encode(), b"mono", b"%d" % clock.now_ns()),
    ]


def read_items(flat: list[bytes]) -> tuple[str, str] | None:
    """Channel and message of a record; None where it is no message of a channel."""
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    channel, message = fields.get(CHANNEL), fields.get(b"data")
    if channel is None or message is None:
        return None
    return channel.decode("utf-8", "replace"), message.decode("utf-8", "replace")


@lru_cache(maxsize=4096)
def glob(pattern: str) -> re.Pattern[str]:
    """A pattern of channels as Redis understands it: ``*``, ``?``, ``[a-z]``, ``[^a]``, and a backslash."""
    made, at = "", 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "[":
            at, piece = _class(pattern, at + 1)
            made += piece
            continue
        if letter == "\\" and at + 1 < len(pattern):
            at += 1
            letter = re.escape(pattern[at])
        elif letter == "*":
            letter = ".*"
        elif letter == "?":
            letter = "."
        else:
            letter = re.escape(letter)
        made += letter
        at += 1
    return re.compile(made, re.DOTALL)


def _class(pattern: str, at: int) -> tuple[int, str]:
    """What stands between brackets, from after the first one: where it ends, and the same as an expression.

    As the server has it: an empty class fits nothing, a negated empty one anything, and the last bracket may lack.
    """
    negated = pattern[at : at + 1] == "^"
    at += negated
    parts = []
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < len(pattern):
            at += 1
            parts.append(re.escape(pattern[at]))
        elif pattern[at + 1 : at + 2] == "-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            parts.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 2
        else:
            parts.append(re.escape(pattern[at]))
        at += 1
    if not parts:
        return at + 1, "." if negated else "(?!)"
    return at + 1, f"[{'^' if negated else ''}{''.join(parts)}]"


def matching(patterns: Iterable[str], channel: str) -> list[str]:
    """The patterns that a channel fits."""
    return [pattern for pattern in patterns if glob(pattern).fullmatch(channel)]


class Listener:
    """A connection that hears channels and patterns. ``heard(pattern or None, channel, message)`` must not raise.

    After a break it subscribes anew (``live`` is called then); what was said meanwhile it has not heard.
    """

    def __init__(
        self,
        bus: Bus,
        name: str,
        *,
        heard: Callable[[bytes | None, bytes, bytes], None],
        live: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._heard = heard
        self._live = live
        self._lost = lost
        self._channels: set[str] = set()
        self._patterns: set[str] = set()
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()
        self._pinging: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lane = Lane(
            name,
            bus.address,
            on_live=self._begin,
            on_lost=self._end,
            connect_timeout=bus.options.connect_timeout,
            patience=PING_EVERY + bus.options.patience,
        )

    def start(self) -> None:
        """Begin connecting."""
        if not self.lane.started:
            self.lane.start()

    async def close(self) -> None:
        """Stop hearing."""
        self._stop_pinging()
        await self.lane.close()

    def add(self, *, channels: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        """Hear these too."""
        self._change("SUBSCRIBE", self._channels, channels)
        self._change("PSUBSCRIBE", self._patterns, patterns)

    def drop(self, *, channels: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        """Hear these no more."""
        self._change("UNSUBSCRIBE", self._channels, channels, gone=True)
        self._change("PUNSUBSCRIBE", self._patterns, patterns, gone=True)

    def copies(self, channel: str) -> int:
        """How often a message on a channel is heard here."""
        return (channel in self._channels) + len(matching(self._patterns, channel))

    async def settled(self, timeout: float) -> bool:
        """Wait until the server has confirmed all that was asked for; False after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.lane.connection is None or self._unconfirmed:
                    self._confirmed.clear()
                    await self._confirmed.wait()
        except TimeoutError:
            return False
        return True

    def _change(self, command: str, known: set[str], names: Iterable[str], *, gone: bool = False) -> None:
        changed = {name for name in names if (name in known) == gone}
        (known.difference_update if gone else known.update)(changed)
        connection = self.lane.connection
        if connection is not None:
            for name in changed:
                self._ask(connection, command, name)

    def _begin(self, connection: Connection) -> None:
        self._unconfirmed = 0
        connection.send(b"", self._waiter(connection))  # pushed messages are handed to a waiter: there is always one
        for command, names in (("SUBSCRIBE", self._channels), ("PSUBSCRIBE", self._patterns)):
            for name in names:
                self._ask(connection, command, name)
        self._ping_later(connection)
        self._live()
        self._confirmed.set()

    def _ask(self, connection: Connection, *words: str) -> None:
        self._unconfirmed += 1
        connection.send(pack(words), self._waiter(connection))

    def _waiter(self, connection: Connection) -> Callable[[Any], None]:
        return lambda reply: self._pushed(connection, reply)

    def _pushed(self, connection: Connection, reply: Any) -> None:
        if isinstance(reply, OutcomeUnknown):
            return
        if isinstance(reply, ServerError):
            log.warning("%s cannot listen: %s", self.lane.name, reply)
            self._confirm()
            return
        kind = reply[0] if isinstance(reply, list) else b"pong"
        if kind == b"message":
            connection.send(b"", self._waiter(connection))
            self._heard(None, reply[1], reply[2])
        elif kind == b"pmessage":
            connection.send(b"", self._waiter(connection))
            self._heard(reply[1], reply[2], reply[3])
        else:
            self._confirm()  # an answer to what we asked, which brought a waiter of its own

    def _confirm(self) -> None:
        self._unconfirmed = max(0, self._unconfirmed - 1)
        if not self._unconfirmed:
            self._confirmed.set()

    def _ping_later(self, connection: Connection) -> None:
        self._pinging = self._loop.call_later(PING_EVERY, self._ping, connection)

    def _ping(self, connection: Connection) -> None:
        self._ask(connection, "PING")
        connection.flush()
        self._ping_later(connection)

    def _end(self) -> None:
        self._stop_pinging()
        self._lost()

    def _stop_pinging(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
