"""What goes through the link, read without a consumer group: looking leaves no trace on the bus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

Direction = Literal["in", "out", "invalid", "state"]
_PAGE: Final = 200
_BLOCK_MS: Final = 1_000


class Seen(NamedTuple):
    """One message: ``topic`` is None where it is not known yet; ``time`` is wall-clock nanoseconds, for people."""

    direction: Direction
    topic: str | None
    payload: Any
    record: Record

    @property
    def time(self) -> int:
        """When it was recorded."""
        return self.record.time or int((self.record.stream_id or "0").partition("-")[0]) * 1_000_000

    def told(self) -> dict[str, Any]:
        """As a JSON object."""
        data = self.record.data if isinstance(self.record.data, dict) else {}
        more = {name: data[name] for name in ("qos", "retain", "reason", "bytes", "sha256") if name in data}
        head = {"direction": self.direction, "id": self.record.id, "source": self.record.source, "time": self.time}
        return {**head, "topic": self.topic, "payload": self.payload, **more}


class Flow:
    """``await open()``, then ``await read()`` again and again: what was added since, in order for each stream.

    Nothing is missed between two reads: what was sent stays in its stream for a while.
    """

    def __init__(self, bus: Bus) -> None:
        from petalbus.handlers.mqtt import words

        keys = bus.keys
        self._bus = bus
        self._out = {key for app in (words.APP, words.TELEMETRY) for key in keys.inboxes(app).values()}
        topics = (words.TOPIC, words.INVALID, words.STATE)
        self._kinds: dict[str, Direction] = dict(zip(map(keys.topic, topics), ("in", "invalid", "state"), strict=True))
        self._kinds |= dict.fromkeys(self._out, "out")
        self._after: dict[str, bytes] = {}
        self._link: Mapping[str, str] = {}

    async def open(self) -> None:
        """From now on. Raises BusError."""
        from petalbus.daemon.cli.mqtt.state import read_state

        self._link = await read_state(self._bus)
        for key in self._kinds:
            newest = await self._bus.ask("XREVRANGE", key, "+", "-", "COUNT", 1)
            self._after[key] = newest[0][0] if newest else b"0-0"

    async def read(self, *, within: float = _BLOCK_MS / 1000) -> list[Seen]:
        """What came since; waits for it ``within`` seconds at most, and a second at most. Raises BusError."""
        from petalbus.daemon.bus.errors import OutcomeUnknown

        block = max(1, min(_BLOCK_MS, round(within * 1000)))
        try:
            words = ("XREAD", "COUNT", _PAGE, "BLOCK", block, "STREAMS")
            answer = await self._bus.call(*words, *self._after, *self._after.values())
        except OutcomeUnknown:  # the connection broke; reading again does no harm
            return []
        found = []
        for key, entries in answer or ():
            self._after[key.decode()] = entries[-1][0]
            found += [one for entry in entries if (one := self._seen(key.decode(), *entry)) is not None]
        return sorted(found, key=lambda one: one.time)

    def _seen(self, key: str, entry: bytes, fields: list[bytes]) -> Seen | None:
        from petalbus.handlers.mqtt import words
        from petalbus.schemas.errors import RecordInvalid
        from petalbus.schemas.record import Record

        try:
            record = Record.from_fields(fields, stream_id=entry.decode())
            data = record.data
        except RecordInvalid:
            return None
        kind = self._kinds[key]
        if not isinstance(data, dict) or (kind == "out" and record.type != words.PUBLISH):
            return None
        if kind == "invalid":
            return invalid_of(record)
        if kind == "state":
            return Seen(kind, None, data, record)
        topic = data.get("topic") or self._below(data)
        return Seen(kind, topic, data.get("payload"), record)

    def _below(self, data: Mapping[str, Any]) -> str | None:
        """The topic of what is stored with its end only."""
        organization, device = data.get("organization") or self._link.get("organization"), self._link.get("device")
        return f"org/{organization}/device/{device}/{data.get('suffix')}" if organization and device else None


def invalid_of(record: Record) -> Seen:
    """A record of what came in and is not what its topic stands for."""
    data = record.data
    message = data.get("message") if isinstance(data.get("message"), dict) else {}
    topic = data.get("topic") or message.get("topic")
    return Seen("invalid", topic, data.get("text") or data.get("base64") or message.get("payload"), record)


def clock(ns: int) -> str:
    """Wall-clock nanoseconds as local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(ns // 1_000_000_000)) + f".{ns // 1_000_000 % 1000:03d}"
