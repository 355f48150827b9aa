"""Adopts raw records: what any program in any language appends to the ingest stream with a bare XADD.

    XADD {bus}:ingest * id .. type .. source .. data ..   ->  read  ->  admit  ->  one script: append and acknowledge

The append (deduplicated by ``id``) and the acknowledgement are one atomic step, so a crash at any moment leaves an
entry either waiting or adopted. What is not valid becomes a dead letter of the app ``ingest`` that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.messages import Known
from petalbus.daemon.services.admission import Admission, admit
from petalbus.daemon.services.adoption import BatchCall, Limits, letter_fields, refusal
from petalbus.daemon.services.ingest_reader import INGEST_GROUP, IngestReader, Raw
from petalbus.daemon.services.losses import Losses
from petalbus.daemon.services.own_lane import own_lane
from petalbus.daemon.services.rates import SourceRates
from petalbus.schemas.errors import RecordInvalid

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

INGEST_APP: Final = "ingest"
"""The application whose dead letters are the raw records that could not be adopted."""

T = TypeVar("T")


class _Admitted(NamedTuple):
    entry: bytes
    fields: list[bytes]
    admission: Admission


class _Letter(NamedTuple):
    entry: bytes
    fields: list[bytes]
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """Settings of the ingest service. Times are seconds of monotonic time."""

    telemetry_rate: float | None = None
    """Telemetry (and other LOW records) a second that one source may send; None for no limit. A burst of one second is
    allowed; what is above is not adopted, and reported as ``bus.loss``."""

    batch: int = 64
    """Raw records in one script call."""

    batch_bytes: int = 256 * 1024
    """Bytes in one script call, as far as whole records allow: the server does nothing else meanwhile."""

    short_window_ids: int = 20_000
    """Ids of topic records and replies in one generation of their own window; two are kept. It covers a program that
    repeats an XADD whose answer was lost; for messages to applications the bus's window counts."""

    refusals: float = 20.0
    """Error replies a second to one source whose messages are refused; what is above has its dead letter only."""

    report_every: float = 1.0
    """Time between two reports of what was not adopted."""

    pause: float = 0.5
    """Waiting time after the server refused to store (memory or disk full) or could not be reached."""


class Ingest:
    """The service that adopts raw records. ``await run()`` until it is cancelled, or until ``stop``."""

    def __init__(self, bus: Bus, *, options: IngestOptions | None = None) -> None:
        self._bus = bus
        self._keys = bus.keys
        self.options = options or IngestOptions()
        self._limits = Limits(
            group=INGEST_GROUP,
            window_ids=bus.options.window_ids,
            short_window_ids=self.options.short_window_ids,
            inbox_limit=bus.options.inbox_limit,
            keep_replies=bus.options.keep_replies,
        )
        self._losses = Losses(bus.keys, app=bus.app, group=INGEST_GROUP)
        rate = self.options.telemetry_rate
        self._telemetry = SourceRates(rate) if rate is not None else None
        self._refusals = SourceRates(self.options.refusals)
        self._last_error = ""
        self._reader: IngestReader | None = None
        self._outbox: Outbox | None = None
        self._stopping = asyncio.Event()
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Adopt until stopped. Raises BusUnavailable or ServerRefused when there is no server at the beginning."""
        async with own_lane(self._bus) as outbox:
            self._outbox = outbox
            reader = self._reader = IngestReader(self._bus, outbox)
            reader.lane.start()
            reporting = asyncio.create_task(self._report(), name="petalbus-ingest-report")
            stopping = asyncio.create_task(self._end(reader), name="petalbus-ingest-stop")
            try:
                while batch := await reader.take(most=self.options.batch, size=self.options.batch_bytes):
                    await self._adopt(batch)
            finally:
                reporting.cancel()
                stopping.cancel()
                await asyncio.gather(reporting, stopping, return_exceptions=True)
                await reader.stop()
                await self._report_now()

    def stop(self) -> None:
        """Ask ``run`` to end in order."""
        self._stopping.set()

    def statistics(self) -> dict[str, Any]:
        """What became of the entries so far, and what waits."""
        reader = self._reader
        return {
            **{name: self.counts[name] for name in ("adopted", "duplicates", "invalid", "refused", "limited", "lost")},
            "waiting": reader.waiting if reader is not None else 0,
            "unreported": len(self._losses),
            "reported": self._losses.reported,
            "lane": reader.lane.statistics() if reader is not None else None,
        }

    # -- one batch ----------------------------------------------------------------------------------------------------

    async def _adopt(self, batch: list[Raw]) -> None:
        """Take a batch to its end."""
        admitted: list[_Admitted] = []
        letters: list[_Letter] = []
        for entry, fields in batch:
            if fields is None:
                await self._persist(self._deleted, [entry])
                continue
            try:
                admission = admit(fields, self._keys)
            except RecordInvalid as error:
                letters.append(_Letter(entry, fields, "INVALID_RECORD", f"invalid: {error}"))
            else:
                if self._within_rate(entry, admission):
                    admitted.append(_Admitted(entry, fields, admission))
        if admitted:
            letters += await self._persist(self._append, admitted)
        if letters:
            await self._persist(self._bury, letters)

    async def _persist(self, step: Callable[[list[T]], Awaitable[list[_Letter]]], items: list[T]) -> list[_Letter]:
        """Do a step again and again while the server is away or cannot store: every step may be repeated."""
        while True:
            try:
                return await step(items)
            except (BusError, ServerError) as error:
                if str(error) != self._last_error:
                    log.warning("%d raw records wait: %s", len(items), error)
                self._last_error = str(error)
            if self._stopping.is_set():
                return []  # they stay pending, and come first at the next start
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.pause):
                    await self._stopping.wait()

    async def _append(self, admitted: list[_Admitted]) -> list[_Letter]:
        """Append valid records; what the state of the bus forbids comes back, to become a dead letter."""
        call = BatchCall(self._keys, self._limits)
        for one in admitted:
            call.admission(one.entry, one.admission)
        letters = []
        for one, answer in zip(admitted, await self._run(call), strict=True):
            if answer[:1] == b"!":
                letters.append(_Letter(one.entry, one.fields, *_forbidden(answer.decode(), one.admission)))
                continue
            self.counts["adopted" if answer[:1].isdigit() or not answer else "duplicates"] += 1
            self._settled(one.entry)
        return letters

    async def _bury(self, letters: list[_Letter]) -> list[_Letter]:
        """Make dead letters, and tell who sent them, within bounds."""
        call = BatchCall(self._keys, self._limits)
        positions = []
        now = time.monotonic()
        for letter in letters:
            positions.append(len(call))
            kept = letter_fields(letter.fields, reason=letter.reason, entry=letter.entry, stream=self._keys.ingest)
            call.letter(letter.entry, self._keys.dead(INGEST_APP), kept)
            told = refusal(letter.fields, app=self._bus.app, code=letter.code, message=letter.reason)
            if told is not None and self._refusals.take(told[0], now):
                call.also(self._keys.replies(told[0]), told[1])
        answers = await self._run(call)
        for letter, position in zip(letters, positions, strict=True):
            if answers[position][:1] == b"!":
                # nothing more can be done with it here: it stays pending, and the others go on
                log.error("raw record %s cannot be settled: %s", letter.entry.decode(), answers[position].decode())
                continue
            self.counts["invalid" if letter.code == "INVALID_RECORD" else "refused"] += 1
            self._settled(letter.entry)
        # one line a batch: a flood of poison must not become a flood of log lines
        first = letters[0]
        log.warning("%d raw records are dead letters; %s: %s", len(letters), first.entry.decode(), first.reason)
        return []

    async def _deleted(self, entries: list[bytes]) -> list[_Letter]:
        await self._losses.discard(self._live(), entries, reason="deleted by somebody before it was read")
        self.counts["lost"] += len(entries)
        for entry in entries:
            self._settled(entry)
        return []

    def _within_rate(self, entry: bytes, admission: Admission) -> bool:
        """False, and noted, when the source sends more telemetry than it may."""
        if self._telemetry is None or not admission.telemetry:
            return True
        source = admission.record.source
        if self._telemetry.take(source, time.monotonic()):
            self._losses.accepted(source)
            return True
        self.counts["limited"] += 1
        self._losses.refuse(source, entry)
        return False

    async def _run(self, call: BatchCall) -> list[bytes]:
        answers: list[bytes] = await self._live().run("adopt", call.keys, call.arguments)
        self._last_error = ""
        return answers

    def _live(self) -> Outbox:
        assert self._outbox is not None, "run() opens the lane"
        return self._outbox

    def _settled(self, entry: bytes) -> None:
        if self._reader is not None:
            self._reader.settled(entry)

    # -- beside it ----------------------------------------------------------------------------------------------------

    async def _end(self, reader: IngestReader) -> None:
        await self._stopping.wait()
        await reader.stop()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self.options.report_every)
            await self._report_now()

    async def _report_now(self) -> None:
        rate = self.options.telemetry_rate
        if rate is None or not len(self._losses):
            return
        try:
            for entry in await self._losses.report(self._live(), rate=rate):
                self._settled(entry)
        except (BusError, ServerError) as error:
            log.warning("what was not adopted cannot be reported yet: %s", error)


def _forbidden(answer: str, admission: Admission) -> tuple[str, str]:
    """Code and sentence for what the adopt script did not allow: ``!word`` and what the window knows."""
    word, _, value = answer[1:].partition(" ")
    record = admission.record
    if word == "full":
        text = f"queue full: field 'recipient': the inbox of {record.recipient!r} at this priority is full"
        return "QUEUE_FULL", text
    if word == "refused":
        return "REFUSED", f"the server refused it: {value}"
    known = Known.parse(value.encode())
    if word == "conflict":
        text = (
            f"id conflict: field 'id': {record.id!r} was used before by {known.source!r} for {known.recipient!r} at "
            f"priority {known.priority} (expected a new id for a new message)"
        )
        return "ID_CONFLICT", text
    if word == "stranger":
        text = (
            f"not your message: field 'reply_to': {record.reply_to!r} is from {known.source!r} to {known.recipient!r} "
            f"(expected a reply from source {known.recipient!r} to recipient {known.source!r})"
        )
        return "NOT_YOUR_MESSAGE", text
    return "SETTLED", f"too late: field 'reply_to': message {record.reply_to!r} is settled already ({known.state})"
