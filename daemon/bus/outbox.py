"""The command lane: everything that is written, with the only retry there is.

Appends of one event-loop tick to one stream leave as one call of the append script, settlements as one call of the
commit script. Both are idempotent, so a call whose answer was lost is sent again, in the old order, when the lane is
live again. A plain command or XADD is never repeated: it fails with OutcomeUnknown.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from petalbus.daemon.bus.connection import Connection, ServerError, pack, settle
from petalbus.daemon.bus.envelope import bulk
from petalbus.daemon.bus.errors import BusError, NotOpen, OutcomeUnknown
from petalbus.daemon.bus.jobs import Batch, Job, Once, Several, translated
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.lane import RESTART_ERRORS, Lane
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.scripts import all_scripts, load
from petalbus.daemon.bus.url import Address

log = logging.getLogger("petalbus.bus")
MAX_BATCH_RECORDS = 128
"""Records in one script call: the server does nothing else meanwhile, so this bounds everybody's latency."""

MAX_BATCH_BYTES = 256 * 1024
CHECK_EVERY = 8
MAX_UNWRITTEN = 32 * 1024 * 1024


class Outbox:
    """The writer of one bus client."""

    def __init__(self, address: Address, keys: Keys, options: BusOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._batches: dict[str, Batch] = {}
        self._again: deque[Job] = deque()
        self.next_number = itertools.count().__next__
        self._expiry: asyncio.TimerHandle | None = None
        self._tick: list[Callable[[], None]] = []
        self._beside = False
        self._adding: set[asyncio.Task[None]] = set()
        self.repeated = 0
        self.on_reconnect: list[Callable[[], None]] = []
        sha = load("append").sha.encode()
        self._append_keys = bulk(keys.ids.encode()) + bulk(keys.ids_before.encode())
        self._unchecked = bulk(b"0") * 2
        self._checked = bulk(b"%d" % options.window_ids) + bulk(b"%d" % options.inbox_limit)
        self._batches_sent = 0
        self._full: set[str] = set()
        self._append_head = b"$7\r\nEVALSHA\r\n" + bulk(sha) + bulk(b"3")
        self.lane = Lane(
            "command",
            address,
            prepare=self._prepare,
            on_live=self._resume,
            on_lost=self._watch_expiry,
            connect_timeout=options.connect_timeout,
            patience=options.patience,
        )

    def append(self, stream: str, arguments: int, chunk: bytes) -> asyncio.Future[bytes]:
        """Append one record once. The future gives the stream id, or what the window knows (begins with a letter).

        It raises BusFull, QueueFull, or BusUnavailable when the time allowed is over.
        """
        future: asyncio.Future[bytes] = self._loop.create_future()
        if self.idle:
            # nothing to wait for: one record at a time is fastest without a detour through the end of the tick
            single = Batch()
            single.add(future, arguments, chunk)
            self._send_batch(stream, single)
            return future
        batch = self._batches.get(stream)
        if batch is None:
            batch = self._batches[stream] = Batch()
            self.at_tick_end(self._flush_batches)
        elif len(batch.chunks) >= MAX_BATCH_RECORDS or batch.size > MAX_BATCH_BYTES:
            self._send_batch(stream, batch)
            batch = self._batches[stream] = Batch()
        batch.add(future, arguments, chunk)
        return future

    def append_beside(
        self,
        stream: str,
        arguments: int,
        chunk: bytes,
        beside: Connection,
        done: Callable[[bytes | BaseException], None],
    ) -> None:
        """As ``append``, on another connection, kept for one write with the next request there.

        Only while ``idle``: until this one is answered, nothing else may overtake it on the command lane.
        """
        self._beside = True
        packed = self._packed(stream, arguments, [chunk])

        def answered(reply: Any) -> None:
            done(reply if isinstance(reply, BaseException) else reply[0])

        beside.send(packed, Job(self, packed, answered, beside=True), more=True)

    @property
    def congested(self) -> bool:
        """True when so many bytes wait to be written that more would only cost memory."""
        connection = self.lane.connection
        return connection is not None and connection.unwritten > MAX_UNWRITTEN

    @property
    def idle(self) -> bool:
        """True when nothing is waiting for an answer or for its turn."""
        connection = self.lane.connection
        return (
            connection is not None
            and not connection.waiting
            and not self._batches
            and not self._again
            and not self._beside
        )

    def add(self, packed: bytes) -> asyncio.Future[bytes]:
        """One packed XADD, never repeated. The future raises OutcomeUnknown, BusFull or BusUnavailable."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._add(packed, Once(future))
        return future

    def add_all(self, packed: bytes, count: int) -> asyncio.Future[list[bytes]]:
        """``count`` packed XADDs (at least one) in one write, never repeated. The future gives their stream ids, or
        raises the first error: OutcomeUnknown, BusFull or BusUnavailable.
        """
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._add(packed, Several(future, count), count)
        return future

    def _add(self, packed: bytes, waiter: Once | Several, count: int = 1) -> None:
        connection = self.lane.connection
        if connection is None:
            later = self._add_later(packed, waiter, count)
            self._adding.add(task := self._loop.create_task(later, name="petalbus-add"))
            task.add_done_callback(self._adding.discard)
        else:
            connection.send(packed, waiter, replies=count)

    async def _add_later(self, packed: bytes, waiter: Once | Several, count: int) -> None:
        try:
            connection = await self.lane.wait_live(self._options.send_timeout)
        except BusError as error:
            settle(waiter.future, error)
        else:
            connection.send(packed, waiter, replies=count)

    @property
    def any_full(self) -> bool:
        """True while some stream was found full."""
        return bool(self._full)

    def note_full(self, stream: str, *, full: bool) -> None:
        """Remember whether a stream is at its limit: while it is, every send to it is checked."""
        if full:
            self._full.add(stream)
        else:
            self._full.discard(stream)

    def at_tick_end(self, action: Callable[[], None]) -> None:
        """Run ``action`` once at the end of this tick, in one write with everything else of it."""
        if not self._tick:
            self._loop.call_soon(self._end_tick)
        if action not in self._tick:
            self._tick.append(action)

    def script(
        self, name: str, keys: list[str], args: Sequence[bytes | str | int], done: Callable[[Any], None]
    ) -> None:
        """Run an idempotent script; ``done`` gets its reply or an error. Repeated until answered."""
        self.submit(pack(("EVALSHA", load(name).sha, len(keys), *keys, *args)), done)

    async def run(self, name: str, keys: list[str], args: Sequence[bytes | str | int]) -> Any:
        """Run an idempotent script and wait for its reply."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.script(name, keys, args, lambda reply: settle(future, reply))
        return await future

    async def ask(self, *args: bytes | str | float) -> Any:
        """Run one plain command that may run twice (it reads, or repeating it changes
        nothing): repeated until answered.

        Raises ServerError, or OutcomeUnknown when the time allowed is over.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self.submit(pack(args), lambda reply: settle(future, reply))
        return await future

    async def call(self, *args: bytes | str | float) -> Any:
        """Run one plain command, once. Raises OutcomeUnknown, ServerError or BusUnavailable."""
        return await self.once(pack(args))

    async def once(self, packed: bytes) -> Any:
        """Send a packed request, once. Raises OutcomeUnknown, ServerError or BusUnavailable."""
        connection = self.lane.connection
        if connection is None:
            connection = await self.lane.wait_live(self._options.send_timeout)
        future: asyncio.Future[Any] = self._loop.create_future()
        connection.send(packed, lambda reply: settle(future, reply))
        return await future

    def submit(
        self, packed: bytes, done: Callable[[Any], None], *, via: Connection | None = None, lasting: bool = False
    ) -> None:
        """Send a repeatable request now, or as soon as the lane is live.

        ``via``: another connection that is free. ``lasting``: never give up (only for what is bounded otherwise).
        """
        job = Job(self, packed, done, lasting=lasting)
        if self.lane.closing and not lasting:
            done(NotOpen("the bus client is closed; nothing was sent"))
            return
        connection = via or self.lane.connection
        if connection is None or self._again or (self._beside and via is None):
            self._again.append(job)
            self._watch_expiry()
        else:
            connection.send(packed, job, more=via is not None)

    def answered_beside(self, job: Job, reply: Any) -> None:
        """What went beside the command lane is answered: the lane goes on."""
        self._beside = False
        lost = isinstance(reply, OutcomeUnknown) or (isinstance(reply, ServerError) and reply.prefix in RESTART_ERRORS)
        if lost:
            self.repeated += 1
            self._again.appendleft(job)  # it came before everything that was held back for it
        else:
            job.done(translated(reply) if isinstance(reply, ServerError) else reply)
        if self._again:
            connection = self.lane.connection
            if connection is not None:
                self._send_again(connection)
            self._watch_expiry()

    def failed(self, job: Job, error: Exception) -> None:
        """An answer that is none: repeat what certainly may be repeated, fail the rest."""
        if isinstance(error, ServerError):
            if error.prefix not in RESTART_ERRORS:
                job.done(translated(error))
                return
            self.lane.restart(error)
        self.repeated += 1
        self._again.append(job)
        connection = self.lane.connection
        if connection is not None and not connection.closed.done() and not self._beside and not connection.broken:
            self._send_again(connection)  # it was lost on another connection; the command lane is alive
        self._watch_expiry()

    def _flush_batches(self) -> None:
        batches, self._batches = self._batches, {}
        for stream, batch in batches.items():
            self._send_batch(stream, batch)

    def _send_batch(self, stream: str, batch: Batch) -> None:
        self.submit(self._packed(stream, batch.arguments, batch.chunks), batch.done)

    def _packed(self, stream: str, arguments: int, chunks: list[bytes]) -> bytes:
        # Limits are checked now and then: an inbox may exceed its limit by what a client sends between two checks.
        self._batches_sent += 1
        due = stream in self._full or self._batches_sent % CHECK_EVERY == 1
        limits = self._checked if due else self._unchecked
        return b"".join(
            [
                b"*%d\r\n" % (9 + arguments),
                self._append_head,
                bulk(stream.encode()),
                self._append_keys,
                limits,
                bulk(b"%d" % len(chunks)),
                *chunks,
            ]
        )

    def _end_tick(self) -> None:
        actions, self._tick = self._tick, []
        for action in actions:
            action()
        connection = self.lane.connection
        if connection is not None:
            connection.flush()

    async def _prepare(self, connection: Connection) -> None:
        await asyncio.gather(*(connection.call("SCRIPT", "LOAD", script.text) for script in all_scripts()))

    def _resume(self, connection: Connection) -> None:
        if not self._beside:
            self._send_again(connection)
        if self.lane.connects > 1:
            for action in self.on_reconnect:
                action()

    def _send_again(self, connection: Connection) -> None:
        # Between an error reply and the end of its connection newer requests queue up before older ones have failed.
        again, self._again = sorted(self._again, key=_number), deque()
        for job in again:
            connection.send(job.packed, job)

    def _watch_expiry(self) -> None:
        if self._expiry is None and self._again:
            self._expiry = self._loop.call_later(0.1, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        oldest = time.monotonic() - self._options.send_timeout
        expired = [job for job in self._again if job.born < oldest]
        if expired:
            self._again = deque(job for job in self._again if job.born >= oldest)
        reason = self.lane.last_error or "no connection"
        text = f"not confirmed within {self._options.send_timeout:g} s ({reason}); stored or not is unknown"
        for job in expired:
            job.done(OutcomeUnknown(f"{text}; sending it again with the same id is safe"))
        self._watch_expiry()

    async def close(self) -> None:
        """Close the lane; what is unanswered fails with OutcomeUnknown."""
        if self._expiry is not None:
            self._expiry.cancel()
        await self.lane.close()
        while self._again:
            self._again.popleft().done(OutcomeUnknown("the bus client was closed before the answer came"))


def _number(job: Job) -> int:
    return job.number
