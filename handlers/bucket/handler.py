"""The bucket handler: uploads are records in the inbox of the app ``bucket``, and each stays there until it has ended.

inbox -> take -> Upload -> gate -> Transfer -> store
                   |                  |
                   v                  v
       progress, result or       notes on the bus: what a killed daemon's successor needs
       dead letter (the bus's)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.daemon.bus.handlers import Context
from petalbus.daemon.bus.options import SOLE_HEARTBEAT
from petalbus.handlers.bucket import words
from petalbus.handlers.bucket.errors import BucketError
from petalbus.handlers.bucket.gate import Gate
from petalbus.handlers.bucket.notes import Notes, described
from petalbus.handlers.bucket.order import PREFIX, Order
from petalbus.handlers.bucket.sweep import Sweeper
from petalbus.handlers.bucket.upload import FIRST_WAIT_S, State, Upload
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.bucket.store import Store
    from petalbus.schemas.record import Record

HELD: Final = 250
"""Uploads in our hands. More wait in the inbox, the most urgent first there, too."""

URGENT: Final = 50
"""Beside these, places for what is HIGH or CRITICAL."""

TURNS: Final = 3
"""Parts under way at once, of all uploads together: each is in memory."""

PROGRESS_S: Final = 0.5
SETTLE_S: Final = 0.5
_MANY_ATTEMPTS: Final = 1_000_000
_SHOWN_ENDED: Final = 20
_GRACE_S: Final = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BucketOptions:
    """``first_wait``: seconds before the second attempt. ``sweep_every``: seconds between two looks for old parts."""

    first_wait: float = FIRST_WAIT_S
    sweep_every: float = 600.0
    prefix: str = PREFIX


class BucketHandler:
    """Run it as ``async with BucketHandler(...) as handler: await handler.run()``.

    ``bus``: a client as the app ``bucket``. ``machine``: this machine's id, None while it is not known.
    """

    def __init__(
        self, bus: Bus, store: Store, *, machine: Callable[[], str | None], options: BucketOptions | None = None
    ) -> None:
        options = options or BucketOptions()
        self.store = store
        self.gate = Gate(TURNS)
        self.notes = Notes(bus)
        self.machine = machine
        self.first_wait = options.first_wait
        self.all_paused = False
        self.stirred = asyncio.Event()
        self._options = options
        self._bus = bus
        self._uploads: dict[str, Upload] = {}
        self._ended: deque[dict[str, Any]] = deque(maxlen=_SHOWN_ENDED)
        self._numbers = itertools.count()
        self._closing = False
        self._beginning = 0
        self._counts = dict.fromkeys((State.DONE, State.FAILED, State.CANCELLED), 0)
        self._bytes = 0
        self._sweeper = Sweeper(bus, store, self.notes, live=self._uploads, machine=machine, prefix=options.prefix)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        bus = self._bus
        # its handlers wait for the store, they do not compute; some workers are left for questions
        held = HELD + URGENT
        bus.options = replace(
            bus.options,
            workers=held + 4,
            window=2 * held,
            stop_grace=_GRACE_S,
            sole=True,
            heartbeat=SOLE_HEARTBEAT,
        )
        bus.on(
            words.UPLOAD,
            redelivery="rerun",
            concurrency=held,
            max_attempts=_MANY_ATTEMPTS,  # that the machine was switched off is no reason to give a log up
            overtakes=lambda _record: True,
        )(self._take)
        for kind, answer in ((words.UPLOADS, self._list), (words.PAUSE, self._pause), (words.RESUME, self._resume)):
            bus.on(kind, overtakes=lambda _record: True)(answer)
        await self._stack.enter_async_context(self.store)
        await bus.start()
        self._stack.push_async_callback(bus.close)
        self.all_paused = await self.notes.all_paused()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        tasks = [upload.task for upload in self._uploads.values() if upload.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="bucket.sweep")
            tasks.create_task(self._tell_progress(), name="bucket.progress")

    async def _tell_progress(self) -> None:
        """At most twice a second; never while nothing changes."""
        while True:
            await self.stirred.wait()
            self.stirred.clear()
            for upload in list(self._uploads.values()):
                await upload.tell_progress()
            if any(upload.state is State.UPLOADING for upload in self._uploads.values()):
                self.stirred.set()
            await asyncio.sleep(PROGRESS_S)

    async def _sweep(self) -> None:
        self._sweeper.due.set()  # what a killed one has left
        while True:
            try:
                async with asyncio.timeout(self._options.sweep_every):
                    await self._sweeper.due.wait()
                await asyncio.sleep(SETTLE_S)  # several that end at about the same time are one look
            except TimeoutError:
                pass
            self._sweeper.due.clear()
            await self.store.tidy()
            try:
                await self._sweeper.sweep()
            except (BusError, ServerError, BucketError) as error:
                log.info("left-over parts of uploads stay for now: %s", error)

    def worked(self) -> None:
        """The store has answered: whoever waits for it may try."""
        for upload in self._uploads.values():
            if upload.state is State.OFFLINE:
                upload.look()

    def uses(self, key: str) -> bool:
        """Whether an upload under way has this key."""
        return any(upload.note.key == key for upload in self._uploads.values())

    def statistics(self) -> dict[str, Any]:
        """How many uploads stand where, what has ended, and what was sent."""
        states = [str(upload.state) for upload in self._uploads.values()]
        errors = [upload.last_error for upload in self._uploads.values() if upload.state is State.OFFLINE]
        return {
            "bucket": self.store.bucket,
            "machine": self.machine(),
            "paused": self.all_paused,
            "uploads": {state: states.count(state) for state in sorted(set(states))},
            **{str(state): count for state, count in self._counts.items()},
            "sent_bytes": self._bytes + sum(upload.meter.sent for upload in self._uploads.values()),
            "swept": self._sweeper.swept,
            "last_error": errors[-1] if errors else None,
        }

    # -- uploads ------------------------------------------------------------------------------------------------------

    async def _take(self, record: Record, context: Context) -> dict[str, Any]:
        upload = self._uploads.get(record.id)
        full = len(self._uploads) + self._beginning >= HELD
        if upload is None and full and record.priority < Priority.HIGH:
            # back for a while: many that wait or are paused must not shut an urgent one out
            raise HandlerError("many uploads are waiting already", error_code="BUSY", retry=True)
        if upload is None:
            self._beginning += 1
            try:
                upload = await self._begin(record, context)
            finally:
                self._beginning -= 1
        else:
            upload.tell = context.progress  # our lease was lost, and this is the same record again
        try:
            return await asyncio.shield(upload.done)
        except asyncio.CancelledError:
            if not self._closing and upload.task is not None:
                upload.state = State.CANCELLED
                upload.task.cancel()
            raise

    async def _begin(self, record: Record, context: Context) -> Upload:
        try:
            order = Order.of(record, next(self._numbers))
        except RecordInvalid as error:
            raise HandlerError(str(error), error_code="INVALID_UPLOAD", dead=True, data={"status": 400}) from None
        except BucketError as error:
            data = {"status": error.status}
            raise HandlerError(str(error), error_code=error.code.upper(), dead=True, data=data) from None
        note = await self.notes.get(record.id)
        note.over = False
        if (upload := self._uploads.get(record.id)) is not None:
            return upload
        upload = self._uploads[record.id] = Upload(order, self, note, context.progress)
        upload.task = asyncio.create_task(self._carry_out(upload), name=f"bucket.upload-{record.id}")
        return upload

    async def _carry_out(self, upload: Upload) -> None:
        """Run an upload to its end, and tell whoever handles its record."""
        result: dict[str, Any] | None = None
        refused: HandlerError | None = None
        try:
            result = await upload.run()
            upload.state = State.DONE
        except asyncio.CancelledError:
            if self._closing:
                return  # it stays in the inbox, and its note stays
            upload.state = State.CANCELLED
        except HandlerError as error:
            refused = error
        except Exception as error:  # a fault of ours: the record must get its end, and nobody gains by repeating it
            log.exception("upload %s", upload.order.id)
            refused = HandlerError(f"{type(error).__name__}: {error}", dead=True, data={"status": 500})
            refused.__cause__ = error
        if refused is not None:
            upload.state, upload.last_error = State.FAILED, str(refused)
            log.warning("upload %s of %s failed: %s", upload.order.id, upload.order.path, refused)
        self._counts[upload.state] += 1
        self._bytes += upload.meter.sent
        self._uploads.pop(upload.order.id, None)
        before = next((one for one in self._ended if one["id"] == upload.order.id), None)
        if before is not None:
            self._ended.remove(before)  # it was put back
        self._ended.append(upload.describe())
        if not upload.done.done():
            if result is not None:
                upload.done.set_result(result)
            elif refused is not None:
                upload.done.set_exception(refused)
            else:
                upload.done.cancel()
        await self._clean_up(upload)

    async def _clean_up(self, upload: Upload) -> None:
        """Let the sweeper take the note away once the record is settled: a repetition before that finds its object."""
        note = upload.note
        note.strays = note.strays or note.beginning
        if upload.state is State.DONE:
            if not note.strays:
                self._sweeper.finished.add(upload.order.id)
            self._sweeper.store_answers = True
            self.worked()
        else:
            note.over = True
            try:
                await self.notes.save(upload.order.id, note)
            except (BusError, ServerError) as error:
                log.info("upload %s is cleaned up after later: %s", upload.order.id, error)
        self._sweeper.due.set()

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _list(self, _record: Record) -> dict[str, Any]:
        live = sorted(self._uploads.values(), key=lambda upload: upload.order.rank)
        shown = [upload.describe() for upload in live]
        seen = {one["id"] for one in [*shown, *self._ended]}
        seen |= self._sweeper.finished
        noted = {name: note for name, note in (await self.notes.all()).items() if name not in seen and not note.over}
        shown += [described(name, note) for name, note in noted.items()]
        return {"uploads": shown, "ended": list(self._ended), "paused": self.all_paused}

    async def _pause(self, record: Record) -> dict[str, Any]:
        return await self._set_paused(record, paused=True)

    async def _resume(self, record: Record) -> dict[str, Any]:
        return await self._set_paused(record, paused=False)

    async def _set_paused(self, record: Record, *, paused: bool) -> dict[str, Any]:
        wanted = record.data.get("id") if isinstance(record.data, dict) else None
        if wanted is not None:
            upload = self._uploads.get(str(wanted))
            if upload is None:
                raise HandlerError(f"there is no upload {wanted!r} under way", error_code="NO_SUCH_UPLOAD")
            upload.note.paused = paused
            await self.notes.save(upload.order.id, upload.note)
            upload.look()
            return {"id": wanted, "paused": upload.paused}
        await self.notes.pause_all(paused=paused)
        self.all_paused = paused
        for upload in list(self._uploads.values()):
            if not paused and upload.note.paused:
                upload.note.paused = False
                await self.notes.save(upload.order.id, upload.note)
            upload.look()
        return {"id": None, "paused": paused}
