"""Names of all keys of one bus. The hash tag keeps them in one slot of a Redis Cluster."""

from __future__ import annotations

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import APP_RULE, MAX_NAME_CHARS, Priority

DEFAULT_BUS = "petalbus"
GROUP = "inbox"
"""The consumer group of every inbox stream."""


def checked_name(value: str, *, what: str) -> str:
    """Return ``value`` when it may be part of a key; raises RecordInvalid naming ``what``."""
    if not APP_RULE.fullmatch(value):
        rule = f"1 to {MAX_NAME_CHARS} letters, digits or _ . - @ /, beginning with a letter or digit"
        raise RecordInvalid(what, f"{value!r} is not a name", limit=rule)
    return value


class Keys:
    """The key names of one bus."""

    def __init__(self, bus: str = DEFAULT_BUS) -> None:
        self.bus = checked_name(bus, what="bus")
        self.prefix = "{" + bus + "}:"
        self.ingest = self.prefix + "ingest"
        self.beats = self.prefix + "beats"
        self.fenced = self.prefix + "fenced"
        self.ids = self.prefix + "ids:current"
        self.ids_before = self.prefix + "ids:before"
        self.groups = self.prefix + "groups"
        self.apps = self.prefix + "apps"
        self.clock = self.prefix + "clock"
        self.window = self.prefix + "ids:window"

    def inbox(self, app: str, priority: int) -> str:
        """The stream of one priority level of an app's inbox."""
        return f"{self.prefix}queue:{app}:inbox:{int(priority)}"

    def inboxes(self, app: str) -> dict[Priority, str]:
        """All four inbox streams of an app."""
        return {level: self.inbox(app, level) for level in Priority}

    def replies(self, app: str) -> str:
        """The stream of replies to an app."""
        return f"{self.prefix}queue:{app}:replies"

    def control(self, app: str) -> str:
        """The stream on which the processes of an app hear of cancellations."""
        return f"{self.prefix}queue:{app}:control"

    def topic(self, name: str) -> str:
        """A fan-out stream."""
        return f"{self.prefix}topic:{name}"

    def form(self, topic: str) -> str:
        """The hash that declares what is constant in a compact topic."""
        return f"{self.prefix}form:{topic}"

    def state(self, name: str) -> str:
        """A hash of latest values."""
        return f"{self.prefix}state:{name}"

    def dead(self, app: str) -> str:
        """The stream of an app's dead letters."""
        return f"{self.prefix}dead:{app}"

    def status(self, app: str) -> str:
        """The hash of an app's presence."""
        return f"{self.prefix}status:{app}"
