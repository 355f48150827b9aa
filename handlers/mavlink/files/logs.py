"""Flight logs of a vehicle over the LOG_* messages: list them, fetch one, erase all.

A log is fetched window by window (about two seconds' worth each). Only whole windows are handed on: what is in a
file is always the log's beginning. ArduPilot answers only while it is disarmed and hears our heartbeats, ignores
requests while it sends, and numbers logs from 1; PX4 numbers them from 0 and wants a list asked for before data.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected, OrderNotPossible
from petalbus.handlers.mavlink.files.ftp_talk import settled
from petalbus.handlers.mavlink.files.log_listing import (
    LISTENED,
    Asked,
    Lister,
    LogTimeout,
    LogUnknown,
    ask_list,
    filled,
)
from petalbus.handlers.mavlink.files.log_part import FileSink, MemorySink, Sink
from petalbus.handlers.mavlink.files.log_pieces import PIECE, Listing, LogInfo, Pace, Range, Window
from petalbus.handlers.mavlink.flight.state import Autopilot, VehicleState
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox, Operation

__all__ = ["LogBusy", "LogClient", "LogInfo", "LogTimeout", "LogTooLarge", "LogUnknown", "LogUnreadable", "Tell"]

log = logging.getLogger(__name__)

Tell = Callable[[int, int], Awaitable[None]]
"""Told now and then: bytes that came, and of how many."""

TELL_EVERY_S: Final = 0.2
MOST_IN_FILE: Final = 2 << 30
MOST_IN_MEMORY: Final = 64 << 20

_DATA: Final = 120
_DATA_LAYOUT: Final = struct.Struct("<IHB90s")
_FIRST_WINDOW: Final = 256
_WINDOW: Final = 64, 8192
_WINDOW_S: Final = 2.0
_ERASED_LOOK_S: Final = 0.3
_LEAST_LOOK_S: Final = 4.0
_LIST_AGAIN_S: Final = 5.0
_LET_GO_S: Final = 0.3
_LET_GO_ASKS: Final = 3
_LIKE_HEAD: Final = 16 * PIECE
_LIKE_TAIL: Final = 48 * PIECE


class LogTooLarge(MavlinkError):
    """The log is larger than what was allowed; nothing was fetched."""

    code = "LOG_TOO_LARGE"


class LogUnreadable(MavlinkError):
    """The vehicle lists the log, and sends nothing of it."""

    code = "LOG_UNREADABLE"


class LogBusy(MavlinkError):
    """Another transfer of this vehicle's logs did not end in the time allowed."""

    code = "LOG_BUSY"


@dataclass(slots=True)
class _Job:
    """One download while it runs."""

    info: LogInfo
    system: int
    inbox: Inbox
    timeout: float
    tell: Tell | None
    total: int
    pace: Pace
    operation: Operation
    done: int = 0
    """Bytes in windows that are finished."""
    whole: int = 0
    """Bytes of PX4's file; 0: nothing is known to stay open there."""
    asked: int = 0
    at_end: bool = False
    """The file's end came, as an answer to the latest request."""
    listed_at: float = float("-inf")
    progress_at: float = 0.0
    told_at: float = float("-inf")


class LogClient:
    """The logs of one vehicle; one transfer at a time."""

    def __init__(
        self,
        calls: Calls,
        vehicle: Vehicle,
        *,
        most_in_file: int = MOST_IN_FILE,
        most_in_memory: int = MOST_IN_MEMORY,
    ) -> None:
        """``most_*`` are the largest logs, in bytes, that ``download_to`` and ``download`` fetch."""
        self._calls = calls
        self._vehicle = vehicle
        self._most_in_file = most_in_file
        self._most_in_memory = most_in_memory
        self._free = asyncio.Lock()

    async def list_logs(self, *, timeout: float = 10.0) -> list[LogInfo]:
        """All logs by id. Raises NotConnected, LogBusy, LogTimeout when some are missing after ``timeout`` s.

        Empty: PX4 told none. It says nothing where it has none, and also where its card has no room for the list.
        """
        return (await self._listed(timeout, None)).logs

    async def _listed(self, timeout: float, operation: Operation | None) -> Listing:
        """The same; ``operation``: the one that it is a part of."""
        state = self._vehicle.heard_lately()
        asked = self._asked(state, operation)
        async with self._turn(timeout):
            listing = Listing(first=asked.first)
            end = time.monotonic() + timeout
            with self._calls.listen(LISTENED, state.system) as inbox:
                try:
                    await Lister(self._calls, inbox, asked, Pace()).list_all(listing, end)
                finally:
                    if listing.total is not None:  # who did not answer may be busy with somebody else's transfer
                        self._end(state.system)
            if not listing.complete():
                raise LogTimeout("the list of logs", len(listing.infos), listing.total, timeout)
        return listing

    def _asked(self, state: VehicleState, operation: Operation | None = None) -> Asked:
        return Asked(operation or Operation(state.system), px4=state.autopilot == Autopilot.PX4)

    async def download(
        self, log_id: int, *, size: int | None = None, tell: Tell | None = None, timeout: float = 10.0
    ) -> bytes:
        """The bytes of a log, at most the first ``size``; fewer than listed where the vehicle ends it earlier.

        ``tell(done, total)`` is told bytes five times a second at most. Raises NotConnected, LogBusy, LogUnknown,
        LogTooLarge, LogUnreadable when it is listed and nothing of it comes, and LogTimeout when nothing new comes for
        ``timeout`` seconds.
        """
        sink = MemorySink()
        await self._download(log_id, size, tell, timeout, self._most_in_memory, sink)
        return bytes(sink.data)

    async def download_to(
        self,
        log_id: int,
        path: str | os.PathLike[str],
        *,
        size: int | None = None,
        tell: Tell | None = None,
        timeout: float = 10.0,
    ) -> LogInfo:
        """Fetch a log into a file; says what is in it. Arguments and errors as ``download``, and OSError.

        Until it is whole, what came is in ``<path>.part``, and which log it is in ``<path>.part.json``: the same
        call goes on from there, as long as the vehicle's log still has the same id, size and time, and the same bytes
        at its beginning and where the part ends.
        """
        return await self._download(log_id, size, tell, timeout, self._most_in_file, FileSink(Path(path)))

    async def erase_all(self, *, timeout: float = 30.0) -> list[LogInfo]:
        """Erase all logs; returns the ones that are still there, such as the one being written.

        The protocol has no answer to it: the list is looked at before and after, and the order repeated while no
        log is gone, for ``timeout`` seconds. Where PX4 tells no logs it leaves once all the same: a full card has no
        room for the list. Raises NotConnected, LogBusy, LogTimeout, and OrderNotPossible while the vehicle is armed:
        PX4 would erase the log of this flight, too.
        """
        end = time.monotonic() + timeout
        operation = Operation(self._disarmed().system)
        before = await self._listed(timeout, operation)
        left, blind = before.logs, before.silent
        while blind or (before.logs and len(left) >= len(before.logs) and time.monotonic() < end):
            blind = False
            system = self._disarmed().system
            self._calls.send("LOG_ERASE", system, part_of=operation, target_system=system, target_component=1)
            await asyncio.sleep(_ERASED_LOOK_S)
            left = (await self._listed(max(_LEAST_LOOK_S, end - time.monotonic()), operation)).logs
        return left

    def _disarmed(self) -> VehicleState:
        state = self._vehicle.heard_lately()
        if state.armed:
            raise OrderNotPossible(
                f"vehicle {state.system} is armed, and the log of this flight would be lost; nothing is erased now"
            )
        return state

    async def _download(
        self,
        log_id: int,
        size: int | None,
        tell: Tell | None,
        timeout: float,
        most: int,
        sink: Sink,
    ) -> LogInfo:
        """Fetch a log's windows in their order; returns what came."""
        state = self._vehicle.heard_lately()
        system = state.system
        async with self._turn(timeout):
            pace, asked = Pace(), self._asked(state)
            info, number = await self._entry(log_id, asked, timeout, pace)
            total = info.size if size is None else min(size, info.size)
            if total > most:
                raise LogTooLarge(
                    f"log {log_id} has {total} bytes, {most} are allowed; give a smaller size, or raise the limit"
                )
            with self._calls.listen({_DATA}, system) as inbox:
                job = _Job(info._replace(size=total), system, inbox, timeout, tell, total, pace, asked.operation)
                job.whole = info.size if asked.px4 else 0
                async with self._ending(job):
                    if asked.px4 and number > 1:
                        # it may still have a file open under this id, of a download that somebody broke off
                        self._ask(job, 1 if log_id == 0 else 0, Range(0, 1))
                    await self._begin(job, sink, info.size)
                    await self._windows(job, sink)
            await sink.finish(job.done)  # still in our turn: the next one may be for the same file
        if job.total < total:
            log.warning("log %d of vehicle %d ends after %d of %d bytes", log_id, system, job.done, total)
        return info._replace(size=job.done)

    async def _begin(self, job: _Job, sink: Sink, whole: int) -> None:
        """Find out how much of it is there. A log of the same number, size and time may still be another one.

        Numbers are used again after a format, and a clock that was never set tells the same time for each log.
        """
        note = {"system": job.system, **job.info._asdict(), "log_size": whole}
        job.done = there = await sink.begin(note)
        if not there:
            return
        # logs of one vehicle may begin alike for kilobytes, with formats and parameters; no two flights go on alike
        tail = max(0, there - _LIKE_TAIL)
        for begin, end in ((0, min(tail, _LIKE_HEAD)), (tail, there)):
            if begin < end and await sink.peek(begin, end - begin) != await self._fetched(job, begin, end):
                log.warning("what is there of log %d is of another one; it is fetched anew", job.info.id)
                await sink.anew(note)
                job.done = 0
                return

    async def _fetched(self, job: _Job, begin: int, end: int) -> bytes:
        """These bytes, as the vehicle has them now."""
        look = replace(job, tell=None, done=0, progress_at=time.monotonic())
        window = Window(begin, end - begin)
        try:
            while not window.complete:
                await self._range(look, window)
        finally:
            job.asked, job.at_end, job.listed_at = look.asked, look.at_end, look.listed_at
        return bytes(window.data)

    async def _entry(self, log_id: int, asked: Asked, timeout: float, pace: Pace) -> tuple[LogInfo, int]:
        """What a log is, and how many there are; PX4 serves none that was not asked for like this."""
        system = asked.operation.system
        with self._calls.listen(LISTENED, system) as inbox:
            try:
                return await Lister(self._calls, inbox, asked, pace).find(log_id, time.monotonic() + timeout)
            except TimeoutError:
                raise LogTimeout(f"log {log_id}", 0, None, timeout) from None
            except LogUnknown:
                self._end(system)  # ArduPilot goes on through all numbers when it has no such log
                raise

    async def _windows(self, job: _Job, sink: Sink) -> None:
        pieces = _FIRST_WINDOW
        while job.done < job.total:
            began = job.progress_at = time.monotonic()
            window = Window(job.done, min(job.total - job.done, pieces * PIECE))
            while not window.complete:
                await self._range(job, window)
            await sink.store(job.done, bytes(window.data))
            job.done += len(window.data)
            if window.cut:
                job.total = job.done
                if not job.done:
                    raise self._unreadable(job)
            rate = pieces / max(0.001, time.monotonic() - began)
            pieces = min(_WINDOW[1], 4 * pieces, max(_WINDOW[0], int(rate * _WINDOW_S)))
        if job.tell is not None:
            await job.tell(job.done, job.total)

    def _unreadable(self, job: _Job) -> LogUnreadable:
        return LogUnreadable(
            f"log {job.info.id} of vehicle {job.system} is listed with {job.info.size} bytes, and none of them comes; "
            "it may have been erased. List the logs again; if it stays so, reboot the autopilot"
        )

    async def _range(self, job: _Job, window: Window) -> None:
        """Ask for what is missing, and take what comes until it ends or the vehicle goes quiet."""
        wanted = window.gap(job.pace.merge())
        self._ask_data(job, wanted)
        while not window.complete:
            now = time.monotonic()
            if now - job.progress_at >= job.timeout:
                raise LogTimeout(f"log {job.info.id}", job.done + window.received, job.total, job.timeout)
            if now >= job.pace.quiet_at():
                return
            frame = await job.inbox.get(min(job.pace.quiet_at(), job.progress_at + job.timeout) - now)
            if frame is None:
                continue
            offset, log_id, count, data = _DATA_LAYOUT.unpack(filled(frame, _DATA_LAYOUT.size))
            if log_id != job.info.id or count > PIECE or offset % PIECE or offset > job.total:
                continue
            now = time.monotonic()
            job.pace.came(now, answers=offset == wanted.offset)
            # PX4 closes the file then; what was asked for after that opened it again
            job.at_end = job.at_end or (count > 0 and wanted.offset + wanted.size >= job.whole <= offset + count)
            if window.put(offset, data[:count], job.asked):
                job.progress_at = now
            if job.tell is not None and now - job.told_at >= TELL_EVERY_S:
                job.told_at = now
                await job.tell(job.done + window.received, job.total)
                job.progress_at += time.monotonic() - now
            if count < PIECE or offset == wanted.last:
                return

    def _ask_data(self, job: _Job, wanted: Range) -> None:
        now = time.monotonic()
        if job.pace.silent > 1 and now - job.listed_at > _LIST_AGAIN_S:
            # it may have started again, and PX4 then wants to be asked for the list first, which takes it long
            job.listed_at = now
            ask_list(self._calls, job.operation, job.info.id, job.info.id)
        job.asked += 1
        job.at_end = False
        self._ask(job, job.info.id, wanted)
        job.pace.asked(time.monotonic())

    def _ask(self, job: _Job, log_id: int, wanted: Range) -> None:
        target = {"target_system": job.system, "target_component": 1}
        wish = {"id": log_id, "ofs": wanted.offset, "count": wanted.size}
        self._calls.send("LOG_REQUEST_DATA", job.system, part_of=job.operation, **target, **wish)

    def _end(self, system: int) -> None:
        with suppress(NotConnected):
            self._calls.send("LOG_REQUEST_END", system, target_system=system, target_component=1)

    @asynccontextmanager
    async def _ending(self, job: _Job) -> AsyncIterator[None]:
        """At the end, however it comes, the vehicle is told that nothing more is wanted."""
        try:
            yield
        finally:
            await settled(self._let_go(job))

    async def _let_go(self, job: _Job) -> None:
        """PX4 closes a file only when its end was sent, and would serve an old file under the same id later."""
        try:
            if job.whole and job.asked and not job.at_end:
                last = Range((job.whole - 1) // PIECE * PIECE, PIECE)
                for _ in range(_LET_GO_ASKS):
                    self._ask(job, job.info.id, last)
                    if await self._came(job, last.offset):
                        break
        except NotConnected as error:
            log.info("vehicle %d was not told that log %d is not needed: %s", job.system, job.info.id, error)
        self._end(job.system)

    async def _came(self, job: _Job, offset: int) -> bool:
        """Whether the piece there comes soon."""
        until = time.monotonic() + _LET_GO_S
        while (left := until - time.monotonic()) > 0:
            frame = await job.inbox.get(left)
            if frame is not None and _DATA_LAYOUT.unpack(filled(frame, _DATA_LAYOUT.size))[0] == offset:
                return True
        return False

    @asynccontextmanager
    async def _turn(self, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError:
            raise LogBusy(f"another log transfer is under way and did not end within {timeout:g} s") from None
        try:
            yield
        finally:
            self._free.release()
