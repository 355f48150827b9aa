"""The topic filters that this process wants the link to have, told in a hash and told again: it may have been lost.

The link forgets those of a process that is gone for a minute. One that was only frozen for so long tells them anew.
What an earlier life of this app has left behind is taken back, once whoever wants it still has had time to say so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt import words

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("MQTTProxy")

_LOOK_S: Final = 30.0
_SETTLED_S: Final = 60.0
"""Seconds after the start, by which petals have subscribed what they will."""


class Wishes:
    """``add`` and ``remove`` wishes; ``keep`` tells them again and again until it is cancelled."""

    def __init__(
        self, own_bus: Callable[[], Awaitable[Bus]], *, look_every: float = _LOOK_S, settled_after: float = _SETTLED_S
    ) -> None:
        """``look_every`` and ``settled_after`` in seconds."""
        self._own_bus = own_bus
        self._look_every = look_every
        self._settled_after = settled_after
        self._since = time.monotonic()
        self._wished: dict[str, int] = {}

    async def add(self, topic: str, qos: int) -> None:
        """Want a topic or filter, with a quality of service of 0 or 1. Raises BusError; it is told later then."""
        self._wished[topic] = qos = max(qos, self._wished.get(topic, 0))
        bus = await self._own_bus()
        await bus.ask("HSET", words.filters_key(bus.keys), words.filter_field(bus.app, topic), qos)
        await bus.send(words.COMMANDS, words.FILTERS, {})

    async def remove(self, topic: str) -> None:
        """Want it no more. Raises BusError."""
        if self._wished.pop(topic, None) is None:
            return  # a pattern among what arrives anyway
        bus = await self._own_bus()
        await bus.ask("HDEL", words.filters_key(bus.keys), words.filter_field(bus.app, topic))
        await bus.send(words.COMMANDS, words.FILTERS, {})

    async def take_back(self) -> None:
        """Want nothing any more: the end. Raises BusError."""
        for topic in list(self._wished):
            await self.remove(topic)

    async def keep(self) -> None:
        """Look again and again whether what is wished is told, and nothing else of ours."""
        self._since = time.monotonic()
        while True:
            await asyncio.sleep(self._look_every)
            try:
                await self.look()
            except BusError as error:
                log.info("wanted MQTT topics cannot be told now: %s", error)

    async def look(self) -> None:
        """Once. Raises BusError."""
        bus = await self._own_bus()
        key, prefix = words.filters_key(bus.keys), words.filter_field(bus.app, "").encode()
        reply = words.hash_items(await bus.ask("HGETALL", key))
        told = {field[len(prefix) :]: qos for field, qos in reply if field.startswith(prefix)}
        wished = {topic.encode(): b"%d" % qos for topic, qos in self._wished.items()}
        missing = [part for topic, qos in wished.items() if told.get(topic) != qos for part in (prefix + topic, qos)]
        if missing:
            await bus.ask("HSET", key, *missing)
        left = [prefix + topic for topic in told if topic not in wished]
        if left and time.monotonic() - self._since >= self._settled_after and await self._is_alone(bus):
            left = [field for field in left if field[len(prefix) :].decode(errors="replace") not in self._wished]
            if left:
                await bus.ask("HDEL", key, *left)
        else:
            left = []
        if missing or left:
            await bus.send(words.COMMANDS, words.FILTERS, {})

    async def _is_alone(self, bus: Bus) -> bool:
        """Whether no other process has our app's name: what it wants looks like ours."""
        return sum(one.consumers for one in await bus.applications() if one.app == bus.app) <= 1
