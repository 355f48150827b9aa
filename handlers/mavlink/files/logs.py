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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected
from petalbus.handlers.mavlink.files.log_part import FileSink, MemorySink, Sink
from petalbus.handlers.mavlink.files.log_pieces import PIECE, Entry, Listing, LogInfo, Pace, Range, Window
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox, Operation
from petalbus.handlers.mavlink.wire.framing import Frame

__all__ = ["LogBusy", "LogClient", "LogInfo", "LogTimeout", "LogTooLarge", "LogUnknown", "Tell"]

log = logging.getLogger(__name__)

Tell = Callable[[int, int], Awaitable[None]]
"""Told now and then: bytes that came, and of how many."""

TELL_EVERY_S: Final = 0.2
MOST_IN_FILE: Final = 2 << 30
MOST_IN_MEMORY: Final = 64 << 20

_ENTRY: Final = 118
_DATA: Final = 120
_ENTRY_LAYOUT: Final = struct.Struct("<IIHHH")
_DATA_LAYOUT: Final = struct.Struct("<IHB90s")
_PX4: Final = 12
_FIRST_WINDOW: Final = 256
_WINDOW: Final = 64, 8192
_WINDOW_S: Final = 2.0
_ERASED_LOOK_S: Final = 0.3
_LIKE_HEAD: Final = 16 * PIECE
_LIKE_TAIL: Final = 48 * PIECE


class LogTimeout(MavlinkError):
    """It went quiet. ``done`` of ``total`` came: bytes of a log or entries of the list (None: not known)."""

    code = "LOG_TIMEOUT"

    def __init__(self, what: str, done: int, total: int | None, timeout: float) -> None:
        self.done = done
        self.total = total
        super().__init__(
            f"{what}: {done} of {'?' if total is None else total} came, then nothing new for {timeout:g} s. Check "
            "the link, and that the vehicle is disarmed (ArduPilot serves no logs while armed)"
        )

    @property
    def detail(self) -> dict[str, Any]:
        """How far it came."""
        return {"done": self.done, "total": self.total}


class LogUnknown(MavlinkError):
    """The vehicle has no log with this id."""

    code = "LOG_UNKNOWN"


class LogTooLarge(MavlinkError):
    """The log is larger than what was allowed; nothing was fetched."""

    code = "LOG_TOO_LARGE"


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
    asked: int = 0
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
        """All logs by id. Raises NotConnected, LogBusy, LogTimeout when some are missing after ``timeout`` s."""
        return await self._listed(timeout, None)

    async def _listed(self, timeout: float, operation: Operation | None) -> list[LogInfo]:
        """The same; ``operation``: the one that it is a part of."""
        state = self._vehicle.heard_lately()
        operation = operation or Operation(state.system)
        async with self._turn(timeout):
            listing = Listing(first=0 if state.autopilot == _PX4 else 1)
            end = time.monotonic() + timeout
            with self._calls.listen({_ENTRY}, state.system) as inbox:
                try:
                    await self._list(listing, inbox, operation, end)
                finally:
                    if listing.total is not None:  # who did not answer may be busy with somebody else's transfer
                        self._end(state.system)
            if not listing.complete():
                raise LogTimeout("the list of logs", len(listing.infos), listing.total, timeout)
        return [listing.infos[number] for number in sorted(listing.infos)]

    async def _list(self, listing: Listing, inbox: Inbox, operation: Operation, end: float) -> None:
        pace = Pace()
        while not listing.complete() and time.monotonic() < end:
            self._ask_list(operation, *listing.missing())
            pace.asked(time.monotonic())
            while (now := time.monotonic()) < min(end, pace.quiet_at()):
                frame = await inbox.get(min(end, pace.quiet_at()) - now)
                if frame is not None:
                    pace.came(time.monotonic(), answers=True)
                    listing.take(_read_entry(frame))
                if listing.complete():
                    return

    async def download(
        self, log_id: int, *, size: int | None = None, tell: Tell | None = None, timeout: float = 10.0
    ) -> bytes:
        """The bytes of a log, at most the first ``size``; fewer than listed where the vehicle ends it earlier.

        ``tell(done, total)`` is told bytes five times a second at most. Raises NotConnected, LogBusy, LogUnknown,
        LogTooLarge, and LogTimeout when nothing new comes for ``timeout`` seconds.
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
        log is gone, for ``timeout`` seconds. Raises NotConnected, LogBusy, LogTimeout.
        """
        end = time.monotonic() + timeout
        operation = Operation(self._vehicle.heard_lately().system)
        before = left = await self._listed(timeout, operation)
        while before and len(left) >= len(before) and time.monotonic() < end:
            system = self._vehicle.heard_lately().system
            self._calls.send("LOG_ERASE", system, part_of=operation, target_system=system, target_component=1)
            await asyncio.sleep(_ERASED_LOOK_S)
            left = await self._listed(max(1.0, end - time.monotonic()), operation)
        return left

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
        system = self._vehicle.heard_lately().system
        async with self._turn(timeout):
            pace, operation = Pace(), Operation(system)
            info = await self._entry(log_id, operation, timeout, pace)
            total = info.size if size is None else min(size, info.size)
            if total > most:
                raise LogTooLarge(
                    f"log {log_id} has {total} bytes, {most} are allowed; give a smaller size, or raise the limit"
                )
            with self._calls.listen({_DATA}, system) as inbox, self._ending(system):
                job = _Job(info._replace(size=total), system, inbox, timeout, tell, total, pace, operation)
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
        while not window.complete:
            await self._range(look, window)
        job.asked = look.asked
        return bytes(window.data)

    async def _entry(self, log_id: int, operation: Operation, timeout: float, pace: Pace) -> LogInfo:
        """Ask what a log is; PX4 serves none that was not asked for like this. Raises LogUnknown, LogTimeout."""
        end = time.monotonic() + timeout
        others, system = 0, operation.system
        with self._calls.listen({_ENTRY}, system) as inbox:
            while time.monotonic() < end:
                self._ask_list(operation, log_id, log_id)
                pace.asked(time.monotonic())
                while (now := time.monotonic()) < min(end, pace.quiet_at()):
                    frame = await inbox.get(min(end, pace.quiet_at()) - now)
                    if frame is None:
                        continue
                    entry = _read_entry(frame)
                    pace.came(time.monotonic(), answers=True)
                    if entry.number and entry.info.id == log_id <= max(entry.number, entry.last):
                        return entry.info
                    others += 1
                    if entry.number == 0 or entry.info.id == log_id or others > 2:
                        self._end(system)  # ArduPilot goes on through all numbers when it has no such log
                        raise LogUnknown(f"vehicle {system} has no log {log_id} (it has {entry.number} of them)")
        raise LogTimeout(f"log {log_id}", 0, None, timeout)

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
            rate = pieces / max(0.001, time.monotonic() - began)
            pieces = min(_WINDOW[1], 4 * pieces, max(_WINDOW[0], int(rate * _WINDOW_S)))
        if job.tell is not None:
            await job.tell(job.done, job.total)

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
            offset, log_id, count, data = _DATA_LAYOUT.unpack(_filled(frame, _DATA_LAYOUT.size))
            if log_id != job.info.id or count > PIECE or offset % PIECE or offset > job.total:
                continue
            now = time.monotonic()
            job.pace.came(now, answers=offset == wanted.offset)
            if window.put(offset, data[:count], job.asked):
                job.progress_at = now
            if job.tell is not None and now - job.told_at >= TELL_EVERY_S:
                job.told_at = now
                await job.tell(job.done + window.received, job.total)
                job.progress_at += time.monotonic() - now
            if count < PIECE or offset == wanted.last:
                return

    def _ask_data(self, job: _Job, wanted: Range) -> None:
        if job.pace.silent > 1:
            # it may have started again, and PX4 then wants to be asked for the list first
            self._ask_list(job.operation, job.info.id, job.info.id)
        job.asked += 1
        self._calls.send(
            "LOG_REQUEST_DATA",
            job.system,
            part_of=job.operation,
            target_system=job.system,
            target_component=1,
            id=job.info.id,
            ofs=wanted.offset,
            count=wanted.size,
        )
        job.pace.asked(time.monotonic())

    def _ask_list(self, operation: Operation, first: int, last: int) -> None:
        target = {"target_system": operation.system, "target_component": 1}
        self._calls.send("LOG_REQUEST_LIST", operation.system, part_of=operation, **target, start=first, end=last)

    def _end(self, system: int) -> None:
        with suppress(NotConnected):
            self._calls.send("LOG_REQUEST_END", system, target_system=system, target_component=1)

    @contextmanager
    def _ending(self, system: int) -> Iterator[None]:
        """At the end, however it comes, the vehicle is told that nothing more is wanted."""
        try:
            yield
        finally:
            self._end(system)

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


def _filled(frame: Frame, size: int) -> bytes:
    """The payload with the zeros that MAVLink 2 cut off."""
    return frame.payload[:size].ljust(size, b"\0")


def _read_entry(frame: Frame) -> Entry:
    at, size, number, total, last = _ENTRY_LAYOUT.unpack(_filled(frame, _ENTRY_LAYOUT.size))
    return Entry(LogInfo(number, size, at), total, last)
