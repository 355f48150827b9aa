"""How work ends: outcomes, and the committer that makes them happen in one atomic step each.

Outcomes of one event-loop tick leave as one call of the commit script per inbox stream. The script acknowledges,
appends
the replies (or the dead letter) and remembers the outcome, or does nothing when the lease was lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.envelope import NO_FIELDS, Fields, Route, bulk
from petalbus.daemon.bus.errors import BusError, BusUnavailable
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.lane import RESTART_ERRORS
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.scripts import load
from petalbus.daemon.bus.work import Work
from petalbus.schemas.stamps import Clock, new_id
from petalbus.schemas.vocabulary import ReplyKind

log = logging.getLogger("petalbus.bus")

MAX_HEADS: Final = 1024
MAX_DEAD_ITEMS: Final = 1000
RETRY_AFTER: Final = 0.5
MAX_SETTLED_AT_ONCE: Final = 64
MAX_TEXT: Final = 16_384
COMPLETED: Final = b"c"
FAILED: Final = b"f"
TIMEOUT: Final = b"t"
CANCELLED: Final = b"x"
PROCESSING: Final = b"p"
DELIVERED: Final = b"d"


class Output(NamedTuple):
    """One record that follows from settled work: its stream, how many entries to keep there, the packed fields."""

    stream: str
    keep: int
    items: int
    packed: bytes


class _Entry(NamedTuple):
    work: Work
    state: bytes
    outputs: list[Output]


class _Way:
    """On which connection settlements of one stream are under way, and how many."""

    __slots__ = ("beside", "unanswered")

    def __init__(self) -> None:
        self.beside = False
        self.unanswered = 0


class Committer:
    """Settles the work of one consumer."""

    def __init__(
        self,
        *,
        app: str,
        clock: Clock,
        outbox: Outbox,
        keys: Keys,
        options: BusOptions,
        settled: Callable[[Work], None],
        fenced: Callable[[str], None],
        free_connection: Callable[[str], Connection | None],
    ) -> None:
        self._app = app
        self._clock = clock
        self._outbox = outbox
        self._keys = keys
        self._options = options
        self._settled = settled
        self._fenced = fenced
        self._free_connection = free_connection
        self._entries: dict[tuple[str, str], list[_Entry]] = {}
        self._ways: dict[str, _Way] = {}
        self._unconfirmed = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._confirmed: asyncio.Event = asyncio.Event()
        self._routes: dict[tuple[str, str], Route] = {}
        self._sha = load("commit").sha
        self._heads: dict[tuple[str, ...], bytes] = {}
        self.counts: dict[bytes, int] = {}

    def settle(self, work: Work, state: bytes, outputs: list[Output]) -> None:
        """End a piece of work at the end of this tick. ``settled`` is called when the server has confirmed it."""
        self.counts[state] = self.counts.get(state, 0) + 1
        self._unconfirmed += 1
        entries = self._entries.get((work.stream, work.owner))
        if entries is None:
            entries = self._entries[(work.stream, work.owner)] = []
            self._outbox.at_tick_end(self.flush)
        entries.append(_Entry(work, state, outputs))

    def reply(
        self,
        work: Work,
        kind: ReplyKind,
        data: bytes,
        *,
        record_type: str | None,
        extra: Fields = NO_FIELDS,
        reply_id: str | None = None,
    ) -> Output:
        """A reply record to the work's sender."""
        record = work.record
        assert record is not None
        answer_type = record_type or f"{record.type}_response"
        route = self._routes.get((record.source, answer_type))
        if route is None:
            stream = self._keys.replies(record.source)
            route = Route(stream, answer_type, self._app, clock=self._clock, recipient=record.source)
            if len(self._routes) < 4096:
                self._routes[(record.source, answer_type)] = route
        fields = {b"reply_to": record.id.encode(), b"kind": kind.encode(), **extra}
        if record.traceparent is not None:
            fields[b"traceparent"] = record.traceparent.encode()
        items, packed = route.fields((reply_id or new_id()).encode(), data, fields)
        return Output(route.stream, self._options.keep_replies, items, packed)

    def clock_changed(self) -> None:
        """The bus counts on another boot's clock now: routes carry its id."""
        self._routes.clear()

    async def tell(self, work: Work, output: Output) -> bool:
        """Append a reply that is not the last; False when the lease is lost. It may be lost itself, never doubled."""
        head = pack((b"EVALSHA", load("tell").sha, 3, work.stream, output.stream, self._keys.fenced))
        size = head.index(b"\r\n")
        owner = pack((GROUP, work.owner, work.entry, output.keep)).split(b"\r\n", 1)[1]
        request = b"*%d%b%b%b" % (int(head[1:size]) + 4 + output.items, head[size:], owner, output.packed)
        try:
            answer = await self._outbox.once(request)
        except (BusError, ServerError) as error:
            # a note that is lost must not stop the work that it was about
            log.warning("a %s note could not be sent: %s", output.stream, error)
            if isinstance(error, ServerError) and error.prefix in RESTART_ERRORS:
                self._outbox.lane.restart(error)
            return True
        if answer == b"FENCED":
            self._fenced(work.owner)
            return False
        return bool(answer)

    def dead_letter(self, work: Work, reason: str, detail: str) -> Output:
        """The work's record as it came, with why it is dead."""
        notes = {
            b"dead_reason": plain(reason).encode(),
            b"dead_detail": plain(detail).encode(),
            b"dead_attempts": b"%d" % work.attempts,
            b"dead_stream": work.stream.encode(),
            b"dead_entry": work.entry,
        }
        kept = work.fields[:MAX_DEAD_ITEMS]
        if len(kept) < len(work.fields):
            notes[b"dead_detail"] += b"; %d further fields were cut off" % ((len(work.fields) - len(kept)) // 2)
        fields = [*kept, *(part for note in notes.items() for part in note)]
        return Output(self._keys.dead(self._app), self._options.keep_dead, len(fields), b"".join(map(bulk, fields)))

    def flush(self, *, more: bool = False) -> None:
        """Send what was settled so far. ``more``: the next read follows on the same connections, for one write."""
        if not self._entries:
            return
        batches, self._entries = self._entries, {}
        for (stream, owner), entries in batches.items():
            via = self._free_connection(stream)
            way = self._ways.get(stream)
            if way is not None and way.unanswered:
                # Settlements of one stream keep their order: never two ways at once.
                if way.beside and via is None:
                    self._entries[(stream, owner)] = entries  # sent when the way is clear: see _submit
                    continue
                if not way.beside:
                    via = None
            for start in range(0, len(entries), MAX_SETTLED_AT_ONCE):
                self._send(stream, owner, entries[start : start + MAX_SETTLED_AT_ONCE], via)
            if via is not None and not more:
                via.flush()

    def _send(self, stream: str, owner: str, entries: list[_Entry], via: Connection | None) -> None:
        keys = [stream, self._keys.ids, self._keys.fenced]
        index: dict[str, bytes] = {}
        arguments = 0
        chunks: list[bytes] = []
        for work, state, outputs in entries:
            outcome = work.outcome(state)
            message_id = work.message_id
            chunks.append(
                b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$1\r\n%d\r\n"
                % (len(work.entry), work.entry, len(message_id), message_id, len(outcome), outcome, len(outputs))
            )
            arguments += 4
            for target, keep, items, packed in outputs:
                position = index.get(target)
                if position is None:
                    keys.append(target)
                    position = index[target] = bulk(b"%d" % len(keys))
                chunks.append(b"%b%b%b%b" % (position, bulk(b"%d" % keep), bulk(b"%d" % items), packed))
                arguments += 3 + items
        head = self._heads.get((owner, *keys))
        if head is None:
            head = b"".join(map(bulk, (b"EVALSHA", self._sha.encode(), b"%d" % len(keys), *(k.encode() for k in keys))))
            head += bulk(GROUP.encode()) + bulk(owner.encode())
            if len(self._heads) > MAX_HEADS:
                self._heads.clear()
            self._heads[(owner, *keys)] = head
        arguments += 6 + len(keys)
        packed_call = b"*%d\r\n%b%b%b" % (arguments, head, bulk(b"%d" % len(entries)), b"".join(chunks))
        way = self._ways.get(stream)
        if way is None:
            way = self._ways[stream] = _Way()
        way.beside = via is not None
        way.unanswered += 1
        self._submit(packed_call, owner, entries, via)

    def _submit(self, call: bytes, owner: str, entries: list[_Entry], via: Connection | None = None) -> None:
        def answered(reply: Any) -> None:
            if isinstance(reply, BusUnavailable) and not self._closed:
                # the disk is full: nothing was settled, and finished work must not be done again because of that
                log.warning("settling %d records on %s: %s; trying again", len(entries), entries[0].work.stream, reply)
                self._loop.call_later(RETRY_AFTER, self._submit, call, owner, entries)
            else:
                self._answered(reply, owner, entries)
                way = self._ways[entries[0].work.stream]
                way.unanswered -= 1
                if not way.unanswered and self._entries:
                    self.flush()

        # lasting: what is held bounds it, and work that is done must not be forgotten over an outage
        self._outbox.submit(call, answered, via=via, lasting=True)

    def _answered(self, reply: Any, owner: str, entries: list[_Entry]) -> None:
        if reply == b"FENCED":
            self._fenced(owner)
        elif isinstance(reply, BaseException):
            log.error("%d settlements on %s were not confirmed: %s", len(entries), entries[0].work.stream, reply)
        elif -1 in reply:
            log.error(
                "a reply or dead letter of %s could not be appended: a key of another type?", entries[0].work.stream
            )
        for entry in entries:
            self._settled(entry.work)
        self._unconfirmed -= len(entries)
        if not self._unconfirmed:
            self._confirmed.set()

    def close(self) -> None:
        """Give up what cannot be settled now: it stays pending for a successor."""
        self._closed = True

    async def confirmed(self, timeout: float) -> bool:
        """Wait until the server has confirmed every settlement; False after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._unconfirmed:
                    self._confirmed.clear()
                    await self._confirmed.wait()
        except TimeoutError:
            return False
        return True


def plain(text: str) -> str:
    """A text from a handler, fit for a record: valid UTF-8, and of its length only the end."""
    return text[-MAX_TEXT:].encode("utf-8", "replace").decode()
