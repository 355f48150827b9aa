"""A member of an app's consumer group: reads by priority, runs handlers, settles their work.

readers (two lanes) -> scheduler -> workers -> handler -> committer
                           ^
              takeover of dead members' work (reaper)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container
from typing import Any

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import BusError, BusUnavailable
from petalbus.daemon.bus.handlers import Registry, held
from petalbus.daemon.bus.heartbeat import Heartbeat, consumer_name
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.lease import RELEASED
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.reader import Reader
from petalbus.daemon.bus.reaper import Reaper
from petalbus.daemon.bus.runner import Runner
from petalbus.daemon.bus.scheduler import Scheduler
from petalbus.daemon.bus.settle import PROCESSING, Committer
from petalbus.daemon.bus.url import Address
from petalbus.daemon.bus.work import Work
from petalbus.schemas.stamps import Clock
from petalbus.schemas.vocabulary import Priority

_CRITICAL_WORKERS = 4  # that take nothing else: urgent records of several senders do not wait for each other

log = logging.getLogger("petalbus.bus")

SLICE = 0.0005
"""Seconds that short handlers may run one after the other before the loop looks at its sockets again."""


class Consumer:
    """Consumes one app's inbox."""

    def __init__(
        self,
        app: str,
        *,
        address: Address,
        keys: Keys,
        outbox: Outbox,
        registry: Registry,
        options: BusOptions,
        clock: Clock,
        cancelled: Container[bytes] = (),
    ) -> None:
        self.app = app
        self.name = consumer_name(app)
        self.lost_entries = 0
        self.fenced_times = 0
        self._keys = keys
        self._outbox = outbox
        self._registry = registry
        self._options = options
        self._loop = asyncio.get_running_loop()
        self.scheduler: Scheduler[Work] = Scheduler(others=options.others, apart=dict(options.reserved))
        self._cancelled = cancelled
        self._unseen: set[tuple[str, bytes]] = set()
        self._held: dict[tuple[str, bytes], Work] = {}
        self._resting: set[Work] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._idle_critical: list[asyncio.Future[None]] = []
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._succeeded = False
        self.committer = self._make_committer(clock)
        self.runner = self._make_runner(clock)
        streams = keys.inboxes(app)
        urgent = {level: streams[level] for level in (Priority.CRITICAL, Priority.HIGH)}
        bulk = {level: streams[level] for level in (Priority.NORMAL, Priority.LOW)}
        self._readers = [self._reader(f"{app}-urgent", address, urgent), self._reader(f"{app}-bulk", address, bulk)]
        self._reader_of = {stream: reader for reader in self._readers for stream in reader.streams}
        self._heartbeat = Heartbeat(address, keys=keys, app=app, name=self.name, period=options.heartbeat)
        self.reaper = Reaper(
            app=app,
            keys=keys,
            outbox=outbox,
            options=options,
            me=lambda: self.name,
            taken=self._taken,
            room=self._room,
            audit=self._check_pending,
        )
        self.handlers_changed()

    def _make_committer(self, clock: Clock) -> Committer:
        return Committer(
            app=self.app,
            clock=clock,
            outbox=self._outbox,
            keys=self._keys,
            options=self._options,
            settled=self._settled,
            fenced=self._fenced,
            free_connection=self._free_connection,
        )

    def _make_runner(self, clock: Clock) -> Runner:
        return Runner(
            registry=self._registry,
            clock=clock,
            committer=self.committer,
            outbox=self._outbox,
            keys=self._keys,
            options=self._options,
            dropped=self._settled,
            again=self._again,
            fenced=self._fenced,
        )

    async def start(self) -> None:
        """Announce the lease, then read. Raises BusUnavailable when the server is away; may then be called again."""
        # the first beat comes before the first read: nobody may see work of a consumer that never beat
        await self._outbox.run("beat", *self._heartbeat.arguments())
        if not self._workers:
            self._heartbeat.start()
            for index in range(self._options.workers + _CRITICAL_WORKERS):
                self._start_worker(index, critical_only=index >= self._options.workers)
            self._outbox.on_reconnect.append(self._redrain)
        if self._options.sole and not self._succeeded:
            await self.reaper.succeed()
            self._succeeded = True
        self.reaper.start()
        for reader in self._readers:  # one after the other: the urgent levels have a head start on the bulk
            if not reader.lane.started:
                reader.lane.start()
            await reader.lane.wait_live(self._options.connect_timeout)

    def _start_worker(self, index: int, *, critical_only: bool) -> None:
        name = f"petalbus-worker-{self.app}-{'critical-' * critical_only}{index}"
        self._workers.append(asyncio.create_task(self._work(critical_only=critical_only), name=name))

    async def stop(self) -> None:
        """Stop in order (I10): end the reads, let running handlers finish, give everything else away at once."""
        self._stopping = True
        if self._redrain in self._outbox.on_reconnect:
            self._outbox.on_reconnect.remove(self._redrain)
        end = time.monotonic() + self._options.stop_grace
        await self.reaper.stop()
        await asyncio.gather(*(reader.stop(timeout=2.0) for reader in self._readers))
        self._wake_all()
        await self._give_away()
        if self._workers:
            await asyncio.wait(self._workers, timeout=max(0.0, end - time.monotonic()))
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self.committer.confirmed(max(0.5, end - time.monotonic()))
        self.committer.close()
        await self._heartbeat.stop()
        if self._outbox.lane.connection is None:
            log.warning("consumer %s stops without the server; its work is taken over when its lease ends", self.name)
            return
        try:
            keys = [self._keys.beats, *self._keys.inboxes(self.app).values()]
            left = await self._outbox.run("retire", keys, [GROUP, self.name, self._heartbeat.field])
        except BusError as error:
            log.warning("consumer %s could not say that it stopped: %s", self.name, error)
        else:
            log.debug("consumer %s stopped; %d entries wait for a successor", self.name, left)

    async def _give_away(self) -> None:
        """Hand over what has not begun: a sibling starts it while our last handlers still run."""
        mine = [work for work in (*self.scheduler, *self._resting) if work.owner == self.name]
        streams = self._keys.inboxes(self.app).values()
        args: list[bytes | str | int] = [GROUP, self.name, f"{self.name}.left", f"{self._heartbeat.field}.left"]
        for stream in streams:
            entries = [work.entry for work in mine if work.stream == stream]
            args += [len(entries), *entries]
        for work in mine:
            self.scheduler.remove(work)
            self._settled(work)
        if not mine or self._outbox.lane.connection is None:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._outbox.run("release", [self._keys.beats, self._keys.fenced, *streams], args)
        except (BusError, ServerError, TimeoutError) as error:
            log.info("consumer %s keeps %d entries until it has stopped: %r", self.name, len(mine), error)

    def handlers_changed(self) -> None:
        """Handlers were added or removed: take their limits over."""
        for handler in self._registry:
            self.scheduler.limit(handler.type, handler.concurrency)
        for work in [one for one in self.scheduler if one.waits]:
            found = self._registry.find(work.type)
            if found is not None and found.function is not held and self.scheduler.remove(work):
                work.schedule(found)
                self.scheduler.push(work, older=True)  # what comes after it has the same lane now
        if self.scheduler.ready:
            self._wake()

    def cancel(self, message_id: str) -> bool:
        """Cancel a record that this consumer holds; False when it holds no such record now.

        One that it reads later is found in ``cancelled``.
        """
        for work in self._held.values():
            if work.record is not None and work.record.id == message_id:
                if self.scheduler.remove(work):
                    self.runner.settle_cancelled(work)
                else:
                    self.runner.cancel(work)
                return True
        return False

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and what is under way."""
        return {
            "consumer": self.name,
            "waiting": {level.name.lower(): self.scheduler.waiting(level) for level in Priority},
            "held": len(self._held),
            "running": len(self.runner.running),
            "settled": {state.decode(): count for state, count in self.committer.counts.items()},
            "retries": self.runner.retries,
            "taken_over": self.reaper.taken_over,
            "fenced": self.fenced_times,
            "lost_entries": self.lost_entries,
            "lanes": {reader.lane.name: reader.lane.statistics() for reader in self._readers},
        }

    def _reader(self, name: str, address: Address, streams: dict[Priority, str]) -> Reader:
        return Reader(
            name,
            address,
            streams=streams,
            consumer=lambda: self.name,
            room=self._room,
            deliver=self._deliver,
            delivered=self._wake,
            groups=self._keys.groups,
            unblock=self._unblock,
            options=self._options,
        )

    async def _work(self, *, critical_only: bool) -> None:
        idle = self._idle_critical if critical_only else self._idle
        scheduler = self.scheduler
        slice_start = time.monotonic()
        while not self._stopping:
            work = scheduler.pop(critical_only=critical_only)
            if work is None:
                future = self._loop.create_future()
                idle.append(future)
                await future
                slice_start = time.monotonic()
                continue
            if scheduler.ready:
                self._wake()
            for reader in self._readers:
                reader.credit()
            try:
                await self.runner.run(work)
            except (BusError, ServerError) as error:
                # the server is away: the entry stays pending and comes back when the lane drains
                log.warning("record %r is left pending: %s", work.message_id, error)
                self._settled(work)
            except Exception:  # a fault of ours: it must not end the worker, or nothing would be handled any more
                log.exception("record %r is left pending", work.message_id)
            finally:
                scheduler.done(work)
            if not scheduler.ready:
                self.committer.flush(more=True)
                for reader in self._readers:
                    reader.go_on()
            if time.monotonic() - slice_start > SLICE:
                # twice: once for the sockets to be read, once for what they brought to be scheduled
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                slice_start = time.monotonic()

    def _wake(self) -> None:
        if self.scheduler.waiting(Priority.CRITICAL) and self._idle_critical:
            _release(self._idle_critical)
        if self._idle:
            _release(self._idle)

    def _wake_all(self) -> None:
        while self._idle:
            _release(self._idle)
        while self._idle_critical:
            _release(self._idle_critical)

    def _room(self, level: Priority) -> int:
        waiting = self.scheduler.waiting(level)
        if level is Priority.CRITICAL:
            return max(0, 16 * self._options.window - waiting)
        # HIGH reads further ahead, as lower levels start meanwhile; who keeps places, as they may be for the last one
        window = self._options.window
        ahead = window * (16 if self._options.reserved else 4 if level is Priority.HIGH else 1)
        if waiting > ahead // 2 or len(self._held) > 16 * window:
            return 0  # half of it at a time: a read for every single record would cost more than it brings
        return min(ahead - waiting, 4 * window)

    def _deliver(self, level: Priority, stream: str, entry: bytes, fields: list[bytes] | None, *, found: bool) -> None:
        if (stream, entry) in self._held:
            return
        if fields is None:
            self._lost(stream, entry)
            return
        work = Work(self.app, level, stream, entry, fields, self.name)
        work.suspect = found
        self._hold(work, older=found)

    def _taken(self, level: Priority, stream: str, row: list[Any]) -> None:
        entry, attempts, fields, known = row
        if not fields:
            self._lost(stream, entry)
            return
        held = self._held.get((stream, entry))
        if held is not None:
            held.attempts = max(held.attempts, attempts + 1)  # a look at our own pending list was quicker
            return
        work = Work(self.app, level, stream, entry, fields, self.name)
        work.suspect = True
        work.known = known
        work.attempts = attempts + 1
        work.alone = known[:1] == PROCESSING and not self._options.sole  # one by one they would come out of order
        self._hold(work, older=True)
        self._wake()

    def _hold(self, work: Work, *, older: bool) -> None:
        self._held[(work.stream, work.entry)] = work
        if work.message_id in self._cancelled:
            work.cancelled = True
        work.schedule(self._registry.find(work.type))
        self.scheduler.push(work, older=older)

    def _lost(self, stream: str, entry: bytes) -> None:
        self.lost_entries += 1
        log.error("entry %s of %s was trimmed away before it was handled", entry.decode(), stream)
        self._outbox.submit(pack(("XACK", stream, GROUP, entry)), lambda _reply: None)

    def _settled(self, work: Work) -> None:
        if self._held.get((work.stream, work.entry)) is work:
            del self._held[(work.stream, work.entry)]

    def _check_pending(self, pending: set[tuple[str, bytes]]) -> None:
        """Entries pending and not held, at two looks in a row, were delivered and never seen: look for them."""
        unseen = {entry for entry in pending if entry not in self._held}
        if unseen & self._unseen:
            log.warning("%d pending entries were never seen by %s: looking for them", len(unseen), self.name)
            unseen.clear()
            self._redrain()
        self._unseen = unseen

    def _again(self, work: Work, delay: float) -> None:
        self._resting.add(work)

        def back() -> None:
            self._resting.discard(work)
            if self._held.get((work.stream, work.entry)) is work and not self._stopping:
                self.scheduler.push(work, older=True)
                self._wake()

        self._loop.call_later(delay, back)

    def _free_connection(self, stream: str) -> Connection | None:
        return self._reader_of[stream].free_connection

    def _unblock(self, client_id: int, answered: Callable[[Any], None]) -> None:
        self._outbox.submit(pack(("CLIENT", "UNBLOCK", client_id)), answered)

    def _fenced(self, name: str) -> None:
        """Somebody declared us dead (we were stopped, or cut off): everything we held is theirs. Come back
        as a new one.
        """
        if name != self.name:
            return
        self.fenced_times += 1
        self.name = consumer_name(self.app)
        log.warning("consumer %s was declared dead and lost its work; going on as %s", name, self.name)
        for work in list(self.scheduler):
            self.scheduler.remove(work)
        self._held.clear()
        self._heartbeat.rename(self.name)
        # what the server still delivers under the old name is to be taken at once
        self._outbox.submit(pack(("HSET", self._keys.beats, f"{self.app}|{name}", RELEASED)), lambda _reply: None)
        self._outbox.script("beat", *self._heartbeat.arguments(), lambda _reply: None)
        self._redrain()

    def _redrain(self) -> None:
        for reader in self._readers:
            reader.lane.restart(BusUnavailable("looking for own pending entries again"))


def _release(idle: list[asyncio.Future[None]]) -> None:
    future = idle.pop()
    if not future.done():
        future.set_result(None)
