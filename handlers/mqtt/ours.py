"""Whose commands are carried out: those to this device, from the organisation that it belongs to."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from petalbus.handlers.mqtt.transport import Identity

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.options import MqttOptions

FORMER_S: Final = 300.0
"""How long commands of the organisation of before are still carried out: they may have been under way."""

log = logging.getLogger(__name__)


class Ours:
    """Who we are, and were. ``last``: the organisation that was known last, also before our start."""

    def __init__(self, options: MqttOptions) -> None:
        self.identity = Identity()
        self.last: str | None = None
        self._ends = (options.command_edge, options.command_plain)
        self._former: dict[str, float] = {}
        self._had_one = False
        self._told_strange = False

    def become(self, identity: Identity) -> None:
        """From now on we are somebody else, or somebody at last."""
        if identity.organization != self.identity.organization:
            log.info("MQTT: the organisation is %s now", identity.organization or "not known")
            self._leave(self.identity.organization)
        self.identity = identity

    def is_here(self, topic: str) -> bool:
        """Whether it is a command topic of this device, of whichever organisation; of any while it is not known."""
        device = self.identity.device
        parts = topic.split("/", 4)
        if len(parts) != 5 or (parts[0], parts[2]) != ("org", "device"):
            return False
        if parts[4] not in self._ends:
            return False
        return device is None or parts[3] in (device, device.removeprefix("Instance-"))

    def are_from(self, topic: str) -> bool:
        """Whether commands for this device arrive there: a petal may have subscribed those of others, too.

        Those of the organisation of before for a while. While none is known since the start that of the last time;
        where none ever was, of whichever. While the device is not known nobody's are ours.
        """
        if not self.is_here(topic):
            return False
        me = self.identity
        if me.device is None:
            if not self._told_strange:
                self._told_strange = True
                log.warning("commands on %s are not carried out: which device this is is not known", topic)
            return False
        organization = topic.split("/", 2)[1]
        if organization == me.organization:
            return True
        if me.organization is None and not self._had_one and self.last in (None, organization):
            return True
        return time.monotonic() < self._former.get(organization, 0.0)

    def _leave(self, organization: str | None) -> None:
        now = time.monotonic()
        self._former = {name: until for name, until in self._former.items() if until > now}
        if organization is not None:
            self._had_one = True
            self._former[organization] = now + FORMER_S
