"""Which topic filters the client program shall have, and which it has been told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from petalbus.handlers.mqtt.client.api import NotDone

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.client.api import ClientApi

log = logging.getLogger(__name__)


class Filters:
    """What is wanted, what is in place, and the way from one to the other."""

    def __init__(self, api: ClientApi) -> None:
        self._api = api
        self._wanted: dict[str, int] = {}
        self._told: set[str] = set()
        self.placed: set[str] = set()
        """What the client program has, as far as we know; also what it should not have any more."""
        self.has_changed = False
        self._refused: dict[str, str] = {}

    def want(self, filters: Mapping[str, int]) -> None:
        """Want these from now on."""
        self._wanted = dict(filters)
        self.has_changed = True  # the same wish again is confirmed again

    def forget_told(self) -> None:
        """Whatever it was told, it is told again."""
        self._told.clear()
        self.has_changed = True

    def ignore(self) -> None:
        """Want nothing: nobody is there to take what would arrive."""
        self._wanted = {}

    @property
    def is_behind(self) -> bool:
        """Whether something was refused and must be tried again."""
        return bool(self._refused)

    @property
    def none_told(self) -> bool:
        """Whether the client program has taken none since ``forget_told``."""
        return not self._told

    async def follow(self) -> dict[str, NotDone]:
        """Subscribe what is new, then unsubscribe what is old; what was refused. Raises NoAnswer."""
        self.has_changed = False
        refused: dict[str, NotDone] = {}
        for topic in list(self._wanted):
            if topic in self._told:
                continue
            try:
                await self._api.subscribe(topic)
            except NotDone as error:
                self.placed.discard(topic)
                refused[topic] = error
            else:
                self._told.add(topic)
                self.placed.add(topic)
        for topic in sorted(self.placed - self._wanted.keys()):
            kept = await self._drop(topic)
            if kept is not None:
                refused[topic] = kept
        self._refused = {topic: str(error) for topic, error in refused.items()}
        return {topic: error for topic, error in refused.items() if topic in self._wanted}

    async def leave(self) -> None:
        """Unsubscribe everything. Raises NoAnswer."""
        for topic in sorted(self.placed):
            await self._drop(topic)
        self._told.clear()

    async def _drop(self, topic: str) -> NotDone | None:
        """Unsubscribe one; an error that another attempt may mend."""
        try:
            await self._api.unsubscribe(topic)
        except NotDone as error:
            log.warning("the MQTT client program keeps the filter %r: %s", topic, error)
            if not 400 <= error.status < 500:
                return error
        self.placed.discard(topic)
        self._told.discard(topic)
        return None

    def describe(self) -> dict[str, Any]:
        """What is wanted, in place, and refused (with the reason)."""
        return {"wanted": sorted(self._wanted), "placed": sorted(self.placed), "refused": dict(self._refused)}
