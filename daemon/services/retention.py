"""How much history stays, and what goes first when memory runs short.

What a live group has not acknowledged is never trimmed by age or number. Only above a part of the memory ceiling
something unread goes, lowest class first, never from HIGH and CRITICAL inboxes; all of it is reported (``bus.loss``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.services.losses import LOSS, report_stamps
from petalbus.daemon.services.streams import Kind, Stream
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

MOST: Final = 10_000
"""Entries that one script call takes out: the server does nothing else meanwhile."""

CALLS: Final = 100
"""Script calls of one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Entries of history that stay, for each kind of stream. What is unread stays beyond that."""

    topics: int = 100_000
    by_topic: Mapping[str, int] = field(default_factory=lambda: {"mavlink.rx": 1_000_000})
    """The vehicle's frames are compact, and a flight is only worth replaying whole."""

    bus_topics: int = 10_000
    inboxes: int = 20_000
    replies: int = 10_000
    control: int = 1_000
    dead: int = 10_000
    promised: frozenset[str] = frozenset({"bucket", "database", "mqtt"})
    """Apps whose senders were told that their work will be done, however late: it is refused before it is shed."""

    last_topics: frozenset[str] = frozenset({"mqtt.rx"})
    """Topics that are shed after everything else: a broker never sends again what was confirmed."""

    def is_promised(self, stream: Stream) -> bool:
        """True for an inbox of which nothing that is unread is ever given up."""
        return stream.kind is Kind.INBOX and (
            stream.priority in (Priority.HIGH, Priority.CRITICAL) or stream.name in self.promised
        )

    def of(self, stream: Stream) -> int | None:
        """Entries to keep of a stream; None where that is somebody else's business."""
        if stream.kind is Kind.TOPIC:
            return self.by_topic.get(stream.name, self.bus_topics if stream.internal else self.topics)
        by_kind = {
            Kind.INBOX: self.inboxes,
            Kind.REPLIES: self.replies,
            Kind.CONTROL: self.control,
            Kind.DEAD: self.dead,
        }
        return by_kind.get(stream.kind)


class Retention:
    """Trims history. ``gone_after``: seconds after which a group counts no more whose application is gone and that does
    not move; what is promised waits for its application for ever."""

    def __init__(self, keys: Keys, *, app: str, keep: Keep, gone_after: float) -> None:
        self._keys = keys
        self._app = app
        self.keep = keep
        self._gone_after = gone_after
        self._quiet: dict[tuple[str, str], tuple[tuple[bytes, int], float]] = {}
        self.trimmed = 0
        self.lost = 0

    async def trim(self, outbox: Outbox, streams: list[Stream], present: frozenset[str], now: float) -> None:
        """One pass over all streams. Raises BusError or ServerError."""
        for stream in streams:
            keep = self.keep.of(stream)
            if keep is None or await outbox.call("XLEN", stream.key) <= keep:
                continue
            if stream.kind is Kind.DEAD:
                await self._cut(outbox, stream, keep, "shed", f"more than {keep} dead letters of {stream.name}")
                continue
            gone = await self._gone_groups(outbox, stream, present, now)
            reason = f"gone for {self._gone_after:g} s: {', '.join(gone)}" if gone else ""
            await self._cut(outbox, stream, keep, "retain", reason, gone)

    async def take(
        self, outbox: Outbox, stream: Stream, *, keep: int, how: str, reason: str, most: int, ignored: list[str]
    ) -> int:
        """One call of the trim script; the number of entries taken out."""
        items = report_stamps(self._app)
        arguments: list[bytes | str | int] = [keep, most, reason, how, len(items), *items, *ignored]
        answer = await outbox.run("trim", [stream.key, self._keys.topic(LOSS)], arguments)
        taken = int(answer[0])
        self.trimmed += taken
        if len(answer) > 1:
            self.lost += taken
            first, last = answer[1].decode(), answer[2].decode()
            log.warning("%d entries of %s are lost, %s to %s: %s", taken, stream.key, first, last, reason)
        return taken

    async def _cut(
        self, outbox: Outbox, stream: Stream, keep: int, how: str, reason: str, ignored: list[str] | None = None
    ) -> None:
        for _ in range(CALLS):
            taken = await self.take(outbox, stream, keep=keep, how=how, reason=reason, most=MOST, ignored=ignored or [])
            if taken < MOST // 2:
                return

    async def _gone_groups(self, outbox: Outbox, stream: Stream, present: frozenset[str], now: float) -> list[str]:
        if self.keep.is_promised(stream):
            return []
        gone = []
        for row in await outbox.call("XINFO", "GROUPS", stream.key):
            info: dict[bytes, Any] = dict(zip(row[::2], row[1::2], strict=True))
            name = info[b"name"].decode("utf-8", "replace")
            state = (info[b"last-delivered-id"], info[b"pending"])
            before, since = self._quiet.get((stream.key, name), (None, now))
            if before != state or _belongs(stream, name, present):
                since = now
            self._quiet[(stream.key, name)] = (state, since)
            if now - since >= self._gone_after:
                gone.append(name)
        return gone


class Shedding:
    """Keeps the server below its memory ceiling. ``above`` and ``down_to`` are parts of the ceiling."""

    def __init__(self, retention: Retention, *, above: float, down_to: float, ceiling: int | None) -> None:
        self._retention = retention
        self._above = above
        self._down_to = down_to
        self._ceiling = ceiling
        self._helpless = False
        self.pressure = 0.0
        """Memory in use as a part of the ceiling, at the last look; 0 where there is no ceiling."""

    async def look(self, outbox: Outbox, streams: list[Stream]) -> bool:
        """Measure the memory in use, and shed until it is below the threshold. True when something had to go.

        Raises BusError or ServerError.
        """
        used, ceiling = await self._memory(outbox)
        if ceiling == 0 or used <= self._above * ceiling:
            self._helpless = False
            return False
        target = self._down_to * ceiling
        reason = f"memory: {used} of {ceiling} bytes in use"
        for how, floor, group in _order(streams, self._retention.keep):
            used = await self._shed(outbox, group, how=how, floor=floor, target=target, reason=reason)
            if used <= target:
                return True
        if not self._helpless:
            log.error("%s, and nothing is left that may be shed: records will be refused", reason)
        self._helpless = True
        return True

    async def _shed(
        self, outbox: Outbox, streams: list[Stream], *, how: str, floor: int, target: float, reason: str
    ) -> int:
        """Take from the largest stream, again and again, down to the target; returns the memory in use then."""
        sizes = {stream: await self._size(outbox, stream) for stream in streams}
        used, _ = await self._memory(outbox)
        for _ in range(CALLS):
            stream = max(sizes, key=lambda one: sizes[one], default=None)
            if stream is None or used <= target:
                break
            length = await outbox.call("XLEN", stream.key)
            part = min(1.0, 1.25 * (used - target) / max(1, sizes[stream]))  # sizes are estimates
            count = min(MOST, max(200, int(length * part) + 1))
            taken = await self._retention.take(
                outbox, stream, keep=max(floor, length - count), how=how, reason=reason, most=count, ignored=[]
            )
            if taken:
                sizes[stream] = await self._size(outbox, stream)
            else:
                del sizes[stream]
            used, _ = await self._memory(outbox)
        return used

    async def _size(self, outbox: Outbox, stream: Stream) -> int:
        return int(await outbox.call("MEMORY", "USAGE", stream.key) or 0)

    async def _memory(self, outbox: Outbox) -> tuple[int, int]:
        """Bytes in use, and the ceiling in bytes (0: none)."""
        text = (await outbox.call("INFO", "memory")).decode()
        values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        used = int(values["used_memory"])
        ceiling = self._ceiling or int(values.get("maxmemory", 0))
        self.pressure = used / ceiling if ceiling else 0.0
        return used, ceiling


def _order(streams: list[Stream], keep: Keep) -> Iterator[tuple[str, int, list[Stream]]]:
    """What goes first: how, entries that stay, and the streams. ``shed`` never names what is promised."""
    topics = [one for one in streams if one.kind is Kind.TOPIC and not one.internal]
    inboxes = [one for one in streams if one.kind is Kind.INBOX]
    yield "history", 100, topics + inboxes
    inboxes = [one for one in inboxes if not keep.is_promised(one)]
    last = [one for one in topics if one.name in keep.last_topics]
    yield "shed", 100, [one for one in topics if one not in last]
    yield "shed", 0, [one for one in inboxes if one.priority is Priority.LOW]
    yield "shed", 100, [one for one in streams if one.kind is Kind.DEAD]
    yield "shed", 0, [one for one in inboxes if one.priority is Priority.NORMAL]
    yield "shed", 100, last


def _belongs(stream: Stream, group: str, present: frozenset[str]) -> bool:
    """True when the group's application is there. A topic's group is named like its application, or ``app.name``."""
    if stream.kind is Kind.INBOX:
        return stream.name in present
    return any(group == app or group.startswith(f"{app}.") for app in present)
