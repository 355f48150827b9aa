"""What is lost is said: records of type ``bus.loss`` in the topic of the same name, each with an exact range of ids.

Their data: ``stream``, ``first`` and ``last`` (stream ids, both lost), ``count``, ``reason``; where they apply ``source``,
``runs`` (several ranges ``[first, last, count]``), ``unread_by`` (the groups that had not read all of it).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Refused:
    """What one source sent above its rate: entry ids, and the runs that they form in what it sent."""

    entries: list[bytes] = field(default_factory=list)
    runs: list[list[Any]] = field(default_factory=list)
    broken: bool = True

    def add(self, entry: bytes) -> None:
        self.entries.append(entry)
        name = entry.decode()
        if self.broken:
            self.runs.append([name, name, 1])
            self.broken = False
        else:
            run = self.runs[-1]
            run[1] = name
            run[2] += 1


class Losses:
    """Telemetry above a source's rate: left unacknowledged until the report is written in one step with it."""

    def __init__(self, keys: Keys, *, app: str, group: str) -> None:
        self._keys = keys
        self._app = app
        self._group = group
        self._refused: dict[str, _Refused] = {}
        self.reported = 0

    def __len__(self) -> int:
        return sum(len(refused.entries) for refused in self._refused.values())

    def add(self, source: str, entry: bytes) -> None:
        """Take note of one entry that is not adopted."""
        self._refused.setdefault(source, _Refused()).add(entry)

    def accepted(self, source: str) -> None:
        """One of that source was adopted: a later refusal begins a new run."""
        refused = self._refused.get(source)
        if refused is not None:
            refused.broken = True

    def held(self) -> set[bytes]:
        """The entries that wait for their report."""
        return {entry for refused in self._refused.values() for entry in refused.entries}

    async def report(self, outbox: Outbox, *, rate: float) -> None:
        """Write the reports of everything noted so far. Raises BusError or ServerError; nothing is forgotten then."""
        for source in list(self._refused):
            refused = self._refused[source]
            reason = f"{source} sends more than {rate:g} telemetry records a second"
            await self.discard(outbox, refused.entries, reason=reason, source=source, runs=refused.runs)
            if self._refused.get(source) is refused:
                del self._refused[source]

    async def discard(self, outbox: Outbox, entries: list[bytes], *, reason: str, **more: Any) -> None:
        """Acknowledge ingest entries that are not adopted, and report them."""
        for at in range(0, len(entries), MAX_IDS):
            part = entries[at : at + MAX_IDS]
            data = {
                "stream": self._keys.ingest,
                "first": part[0].decode(),
                "last": part[-1].decode(),
                "count": len(part),
                "reason": reason,
                **{name: value for name, value in more.items() if name != "runs" or len(entries) <= MAX_IDS},
            }
            fields = [b"data", encode_json(data), *report_stamps(self._app)]
            streams = [self._keys.ingest, self._keys.topic(LOSS)]
            await outbox.run("discard", streams, [self._group, len(part), *part, *fields])
            self.reported += len(part)
        log.warning("%d records in %s were not adopted: %s", len(entries), self._keys.ingest, reason)
