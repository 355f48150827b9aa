"""Notices at once that the client program has ended: its end closes a connection on which nothing is ever asked.

A program that was started again has forgotten what it was subscribed to, and its health does not say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from petalbus.handlers.mqtt.client.http import HttpClient

log = logging.getLogger(__name__)

_SHORT: Final = 20.0
"""Seconds. A server that closes silent connections so early, several times, cannot be watched in this way."""
_MOST_SHORT: Final = 3
_CONNECT: Final = 2.0
_AGAIN: Final = 1.0


class Watch:
    """Calls ``ended`` whenever the server closes a silent connection without a word."""

    def __init__(self, http: HttpClient, ended: Callable[[], None]) -> None:
        self._http = http
        self._ended = ended
        self._short = 0

    @contextlib.asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Watch until the end of the block."""
        watching = asyncio.create_task(self._watch(), name="mqtt-client-watch")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        while self._short < _MOST_SHORT:
            began = time.monotonic()
            try:
                without_a_word = await self._http.until_it_ends(timeout=_CONNECT)
            except OSError:  # it is away: who looks will find out
                self._ended()
                await asyncio.sleep(_AGAIN)
                continue
            if time.monotonic() - began >= _SHORT:
                self._short = 0
            else:
                self._short += 1
            if without_a_word:
                self._ended()
            await asyncio.sleep(_AGAIN)
        log.info("the MQTT client program closes silent connections: a restart of it is noticed later")
