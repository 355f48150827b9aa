"""Remembers which filters the broker's session holds, over our own restarts, in the bus.

Without that a restart under a new organisation would leave the old one's filters in the session for ever: the
broker goes on bringing what nobody wants any more, commands among it, and a connection may have few of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt.words import hash_items

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.keys import Keys

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 2.0
"""Seconds that the bus may take: the link must not wait for it."""
_MOST_SESSIONS: Final = 16


def sessions_key(keys: Keys) -> str:
    """The hash of sessions: ``<client id>@<broker's host>:<port>`` -> JSON list of filters that it may hold."""
    return f"{keys.prefix}mqtt:sessions"


class KeptFilters:
    """``load`` and ``store`` for one broker. Both say whether it could be done; neither raises."""

    def __init__(self, bus: Callable[[], Bus | None], broker: str) -> None:
        """``bus``: a client that is open, or None while there is none. ``broker``: host and port."""
        self._bus = bus
        self._broker = broker

    async def load(self, client_id: str) -> list[str] | None:
        """The filters that the session may hold; None: not known now, ask again."""
        bus = self._bus()
        if bus is None:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return _names(await bus.ask("HGET", sessions_key(bus.keys), self._field(client_id)))
        except (BusError, TimeoutError) as error:
            log.info("which filters the MQTT session holds cannot be read now: %r", error)
            return None

    async def store(self, client_id: str, names: Iterable[str]) -> bool:
        """Whether it is remembered that the session may hold these."""
        bus = self._bus()
        if bus is None:
            return False
        field = self._field(client_id)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await bus.ask("HSET", sessions_key(bus.keys), field, orjson.dumps(sorted(names)))
                await self._forget_others(bus, field)
        except (BusError, TimeoutError) as error:
            log.info("which filters the MQTT session holds cannot be stored now: %r", error)
            return False
        return True

    async def _forget_others(self, bus: Bus, field: str) -> None:
        """Client ids and brokers of long ago: their sessions have ended."""
        key = sessions_key(bus.keys)
        if await bus.ask("HLEN", key) > _MOST_SESSIONS:
            known = [name for name, _ in hash_items(await bus.ask("HGETALL", key)) if name != field.encode()]
            old = list(islice(known, len(known) + 1 - _MOST_SESSIONS))
            await bus.ask("HDEL", key, *old)

    def _field(self, client_id: str) -> str:
        return f"{client_id}@{self._broker}"


def _names(value: Any) -> list[str]:
    """What was stored; nothing where that cannot be read."""
    try:
        names = orjson.loads(value) if value else []
    except orjson.JSONDecodeError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
