"""The streams of a bus by the names that people use, such as ``mavlink.rx``, ``inbox:vehicle`` and ``replies:gcs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.keys import Keys, checked_name
from petalbus.daemon.cli.exits import BadUsage
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

FORMS: Final = "a topic such as mavlink.rx, inbox:APP, inbox:APP:LEVEL, replies:APP, dead:APP, control:APP or ingest"
_SCAN_COUNT: Final = 1000


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream. ``kind``: inbox, replies, control, topic, dead, ingest or other; ``of``: its app or topic."""

    key: str
    kind: str
    of: str
    level: Priority | None = None

    @property
    def label(self) -> str:
        """The name for people; the same is understood by ``parse``."""
        if self.kind == "topic":
            return self.of
        if self.level is not None:
            return f"{self.kind}:{self.of}:{self.priority}"
        return f"{self.kind}:{self.of}" if self.of else self.kind

    @property
    def priority(self) -> str:
        """The name of its priority level; empty where it has none."""
        return self.level.name.lower() if self.level is not None else ""


def named(keys: Keys, key: str) -> Stream:
    """What the key of a stream means."""
    match key.removeprefix(keys.prefix).split(":"):
        case ["queue", app, "inbox", level] if level.isdigit() and 1 <= int(level) <= len(Priority):
            return Stream(key, "inbox", app, Priority(int(level)))
        case ["queue", app, "replies" | "control" as kind]:
            return Stream(key, kind, app)
        case ["topic" | "dead" as kind, of]:
            return Stream(key, kind, of)
        case ["ingest"]:
            return Stream(key, "ingest", "")
        case rest:
            return Stream(key, "other", ":".join(rest))


def parse(keys: Keys, text: str) -> list[Stream]:
    """The streams that ``text`` names, whether they exist or not; an inbox has four. Raises BadUsage."""
    try:
        match text.split(":"):
            case ["ingest"]:
                found = [keys.ingest]
            case ["inbox", app]:
                found = list(keys.inboxes(checked_name(app, what="app")).values())
            case ["inbox", app, level]:
                found = [keys.inbox(checked_name(app, what="app"), Priority.parse(level))]
            case ["replies" | "control" | "dead" as kind, app]:
                make = {"replies": keys.replies, "control": keys.control, "dead": keys.dead}[kind]
                found = [make(checked_name(app, what="app"))]
            case ["topic", topic] | [topic]:
                found = [keys.topic(checked_name(topic, what="topic"))]
            case _:
                raise BadUsage(f"stream {text!r} is not understood; name {FORMS}")
    except (RecordInvalid, ValueError) as error:
        raise BadUsage(f"stream {text!r}: {error}; name {FORMS}") from None
    return [named(keys, key) for key in found]


async def find(bus: Bus) -> list[Stream]:
    """All streams of the bus that exist now, by label."""
    pattern = bus.keys.prefix.replace("[", "\\[") + "*"
    cursor, found = b"0", set()
    while True:
        cursor, names = await bus.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT, "TYPE", "stream")
        found |= {name.decode() for name in names}
        if cursor == b"0":
            return sorted((named(bus.keys, key) for key in found), key=lambda stream: stream.label)


async def groups(bus: Bus, stream: Stream) -> dict[str, dict[str, Any]]:
    """The consumer groups of a stream by name, as XINFO GROUPS tells them; none when there is no such stream."""
    from petalbus.daemon.bus.connection import ServerError

    try:
        rows = await bus.call("XINFO", "GROUPS", stream.key)
    except ServerError as error:
        if "no such key" in str(error):
            return {}
        raise
    told = [dict(zip([word.decode() for word in row[::2]], row[1::2], strict=True)) for row in rows]
    return {one["name"].decode(): one for one in told}
