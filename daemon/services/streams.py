"""The streams of a bus, as they are found on the server."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.outbox import Outbox
from petalbus.schemas.vocabulary import Priority


class Kind(StrEnum):
    """What a stream is for."""

    TOPIC = "topic"
    INBOX = "inbox"
    REPLIES = "replies"
    CONTROL = "control"
    DEAD = "dead"
    INGEST = "ingest"
    OTHER = "other"


class Stream(NamedTuple):
    """One stream. ``name`` is the topic or the application."""

    key: str
    kind: Kind
    name: str
    priority: Priority | None = None

    @classmethod
    def of(cls, key: str, keys: Keys) -> Stream:
        """Read a key of this bus."""
        rest = key.removeprefix(keys.prefix)
        word, _, name = rest.partition(":")
        if rest == "ingest":
            return cls(key, Kind.INGEST, "ingest")
        if word == "topic":
            return cls(key, Kind.TOPIC, name)
        if word == "dead":
            return cls(key, Kind.DEAD, name)
        if word == "queue":
            app, _, use = name.partition(":")
            if use in (Kind.REPLIES, Kind.CONTROL):
                return cls(key, Kind(use), app)
            box, _, level = use.partition(":")
            if box == "inbox" and level in {"1", "2", "3", "4"}:
                return cls(key, Kind.INBOX, app, Priority(int(level)))
        return cls(key, Kind.OTHER, rest)

    @property
    def internal(self) -> bool:
        """True for topics that the bus itself writes, such as ``bus.loss``."""
        return self.kind is Kind.TOPIC and self.name.startswith("bus.")


async def find_streams(outbox: Outbox, keys: Keys) -> list[Stream]:
    """Every stream of the bus, sorted by key. Raises BusError or ServerError."""
    cursor, found = b"0", set()
    while True:
        cursor, names = await outbox.call("SCAN", cursor, "MATCH", f"{keys.prefix}*", "COUNT", 1000, "TYPE", "stream")
        found |= {name.decode() for name in names}
        if cursor == b"0":
            return [Stream.of(key, keys) for key in sorted(found)]
