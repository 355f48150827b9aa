"""What is lost is said: records of type ``bus.loss`` in the topic of the same name, each with an exact range of ids.

Their data: ``stream``, ``first`` and ``last`` (stream ids, both lost), ``count``, ``reason``; where they apply
``source``, ``runs`` (several ranges ``[first, last, count]``), ``unread_by`` (the groups that had not read all of it).
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.outbox import Outbox
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns, new_id

log = logging.getLogger("petalbus.services")

LOSS: Final = "bus.loss"
"""Type and topic of loss reports."""

MAX_IDS: Final = 1000
"""Entries of one report: its acknowledgements are arguments of one script call."""


def report_stamps(app: str) -> list[bytes]:
    """The fields of a loss report beside its data, stamped now."""
    return [
        *(b"id", new_id().encode(), b"type", LOSS.encode(), b"source", app.encode(), b"time", b"%d" % time.time_ns()),
        *(b"boot_id", BOOT_ID.encode(), b"mono", b"%d" % boot_clock_ns()),
    ]


class _Refused:
    """A part of what one source sent above its rate: entry ids, and the runs that they form in what it sent."""

    __slots__ = ("broken", "entries", "runs")

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.runs: list[tuple[str, str, int]] = []
        self.broken = True

    def add(self, entry: bytes) -> None:
        self.entries.append(entry)
        name = entry.decode()
        if self.broken:
            self.runs.append((name, name, 1))
            self.broken = False
        else:
            first, _, count = self.runs[-1]
            self.runs[-1] = (first, name, count + 1)


class Losses:
    """Ingest entries that are not adopted: acknowledged only in one step with their report."""

    def __init__(self, keys: Keys, *, app: str, group: str) -> None:
        self._app = app
        self._group = group
        self._ingest = keys.ingest
        self._topic = keys.topic(LOSS)
        self._refused: dict[str, list[_Refused]] = {}
        self.reported = 0

    def __len__(self) -> int:
        return sum(len(part.entries) for parts in self._refused.values() for part in parts)

    def refuse(self, source: str, entry: bytes) -> None:
        """Take note of an entry of a source that sends too much."""
        parts = self._refused.setdefault(source, [_Refused()])
        if len(parts[-1].entries) >= MAX_IDS:
            parts.append(_Refused())
        parts[-1].add(entry)

    def accepted(self, source: str) -> None:
        """One of that source was adopted: a later refusal begins a new run."""
        parts = self._refused.get(source)
        if parts is not None:
            parts[-1].broken = True

    async def report(self, outbox: Outbox, *, rate: float) -> list[bytes]:
        """Report everything noted so far; the entries that are settled by it.

        Raises BusError or ServerError; what is not reported then is kept.
        """
        settled: list[bytes] = []
        while self._refused:
            source, parts = next(iter(self._refused.items()))
            part = parts[0]
            reason = f"{source} sends more than {rate:g} telemetry records a second"
            await self.discard(outbox, part.entries, reason=reason, source=source, runs=part.runs)
            settled += part.entries
            parts.remove(part)
            if not parts and self._refused.get(source) is parts:
                del self._refused[source]
        return settled

    async def discard(self, outbox: Outbox, entries: list[bytes], *, reason: str, **more: Any) -> None:
        """Acknowledge ingest entries (at most MAX_IDS) that are not adopted, and report them, in one step."""
        count = len(entries)
        data = {
            "stream": self._ingest,
            "first": entries[0].decode(),
            "last": entries[-1].decode(),
            "count": count,
            "reason": reason,
            **more,
        }
        fields = [b"data", encode_json(data), *report_stamps(self._app)]
        await outbox.run("discard", [self._ingest, self._topic], [self._group, count, *entries, *fields])
        self.reported += count
        log.warning("%d records in %s were not adopted: %s", count, self._ingest, reason)
