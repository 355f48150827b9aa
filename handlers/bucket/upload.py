"""One upload, from the record to the result: attempts, the pauses between them, and why it does not move just now."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.bucket.body import Meter
from petalbus.handlers.bucket.errors import Away, BucketError, Denied, FileRefused, Refusal, WrongBytes
from petalbus.handlers.bucket.files import FlightLog, check_file
from petalbus.handlers.bucket.notes import Note, Noted, Notes
from petalbus.handlers.bucket.owner import Owner
from petalbus.handlers.bucket.store import Occupied
from petalbus.handlers.bucket.transfer import Transfer, options_of

if TYPE_CHECKING:
    from petalbus.handlers.bucket.gate import Gate
    from petalbus.handlers.bucket.order import Order
    from petalbus.handlers.bucket.store import Store

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
REFUSED_S: Final = 6 * 3600.0
"""An upload is given up when the session token service has said no for so long: until then somebody may log in there,
or the page of a network in between may be passed."""

_KEYS_TRIED: Final = 8
MAX_WRONG: Final = 5
"""Attempts without getting further, whose bytes arrived as others than were sent, before it is given up."""

log = logging.getLogger(__name__)

_TOLD: Final = ("bytes", "total", "rate", "state", "key")

Tell = Callable[[dict[str, Any]], Awaitable[Any]]


class State(StrEnum):
    """Where an upload stands."""

    WAITING = "waiting"
    UPLOADING = "uploading"
    OFFLINE = "offline"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Surroundings(Protocol):
    """What the uploads of one handler share."""

    store: Store
    gate: Gate
    notes: Notes
    first_wait: float
    all_paused: bool
    stirred: asyncio.Event

    def machine(self) -> str | None:
        """This machine's id; None while it is not known."""

    def worked(self) -> None:
        """The store has answered: whoever waits for it may try."""

    def uses(self, key: str) -> bool:
        """Whether an upload under way has this key."""


class Upload:
    """``run`` returns the result, or raises HandlerError with the reason."""

    def __init__(self, order: Order, around: Surroundings, note: Note, tell: Tell) -> None:
        self.order = order
        self.note = note
        self.tell = tell
        self.meter = Meter()
        self._state = State.WAITING
        self._told: tuple[int, State] | None = None
        self.last_error: str | None = None
        self.done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._around = around
        self._wake = asyncio.Event()
        self._attempt: asyncio.Task[dict[str, Any]] | None = None
        self._failures = 0
        self._wrong = 0
        self._seen = 0
        self._best = 0
        self._refused_since: float | None = None
        self._began = time.monotonic()

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._around.stirred.set()

    @property
    def paused(self) -> bool:
        """By itself, or with all."""
        return self.note.paused or self._around.all_paused

    def look(self) -> None:
        """Something has changed: the store answers, or a pause begins or ends."""
        if self.paused and self._attempt is not None:
            self._attempt.cancel()
        self._wake.set()

    def describe(self) -> dict[str, Any]:
        """What a list shows. ``rate`` in bytes a second."""
        moving = self.state is State.UPLOADING
        return {
            "id": self.order.id,
            "file": str(self.order.path),
            "key": self.note.key,
            "bytes": self.meter.done,
            "total": self.meter.total or (self.note.stamp[0] if self.note.stamp else None),
            "rate": round(self.meter.rate()) if moving else 0,
            "state": str(self.state),
            "priority": self.order.priority.name.lower(),
            "attempts": self.note.attempts,
            "last_error": self.last_error,
        }

    async def tell_progress(self) -> None:
        """Tell the sender how far it is, when that has changed."""
        meter = self.meter
        if (meter.done, self._state) == self._told:
            return
        self._told = (meter.done, self._state)
        if meter.stored > self._seen and self._state is State.UPLOADING:
            self._seen, self._failures, self._refused_since = meter.stored, 0, None
            self._around.worked()
        shown = {name: told for name, told in self.describe().items() if name in _TOLD}
        await self.tell({**shown, "error": self.last_error if self._state is State.OFFLINE else None})

    async def run(self) -> dict[str, Any]:
        """Until it is stored, or cannot be."""
        while True:
            try:
                await self._until_allowed()
                result = await self._attempted()
            except HandlerError:
                raise
            except (BucketError, BusError, ServerError, TimeoutError) as error:
                me = asyncio.current_task()
                if me is not None and me.cancelling():
                    # the attempt failed in the moment in which it was cancelled, and told only that
                    raise asyncio.CancelledError from error
                await self._go_on_after(error)
                continue
            if result is not None:
                return result

    async def _until_allowed(self) -> None:
        while self.paused:
            self.state = State.PAUSED
            self._refused_since = None
            await self._sleep(None)
        self._require_time()

    async def _attempted(self) -> dict[str, Any] | None:
        """The result; None when a pause has ended the attempt."""
        self.state = State.WAITING
        self._attempt = asyncio.create_task(self._try(), name=f"bucket.attempt-{self.order.id}")
        me = asyncio.current_task()
        assert me is not None
        try:
            async with asyncio.timeout(self.order.left()):
                return await self._attempt
        except asyncio.CancelledError:
            if me.cancelling():
                raise
            return None
        finally:
            attempt, self._attempt = self._attempt, None
            if not attempt.done():
                attempt.cancel()
                await asyncio.wait([attempt])

    async def _go_on_after(self, error: Exception) -> None:
        """Wait where waiting helps. Raises HandlerError where it does not."""
        self.last_error = str(error)
        self._require_time()
        self._require_hope(error)
        if isinstance(error, WrongBytes):
            reached = self.meter.kept + self.meter.stored
            self._wrong = 1 if reached > self._best else self._wrong + 1
            self._best = max(self._best, reached)
            if self._wrong >= MAX_WRONG:
                raise _dead(error, f"{error} ({self._wrong} times)")
        elif isinstance(error, BucketError) and not error.passes:
            raise _dead(error, str(error)) from error
        self.state = State.OFFLINE
        self._failures += 1
        wait = min(LONGEST_WAIT_S, self._around.first_wait * 2 ** min(self._failures - 1, 10))
        log.log(
            logging.INFO if self._failures == 1 else logging.DEBUG,
            "upload %s of %s waits: %s", self.order.id, self.order.path, error,
        )  # fmt: skip
        await self._sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311  # so that not all come back at once

    def _require_hope(self, error: Exception) -> None:
        """Raises HandlerError when the token service has refused us for long, and nothing else came between."""
        if not isinstance(error, Refusal):
            self._refused_since = None
            return
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since >= REFUSED_S:
            raise _dead(error, f"{error}, for {(now - self._refused_since) / 3600:.1f} hours") from error

    async def _sleep(self, seconds: float | None) -> None:
        left = self.order.left()
        if left is not None:
            seconds = max(0.0, left) if seconds is None else min(seconds, max(0.0, left))
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            self._require_time()

    def _require_time(self) -> None:
        left = self.order.left()
        if left is not None and left <= 0:
            why = f"; before that: {self.last_error}" if self.last_error else ""
            text = f"the deadline passed before {self.order.path} was stored{why}"
            raise HandlerError(text, error_code="DEADLINE_EXPIRED", data={"status": 504})

    # -- one attempt --------------------------------------------------------------------------------------------------

    async def _try(self) -> dict[str, Any]:
        order, note, around = self.order, self.note, self._around
        found = await asyncio.to_thread(check_file, order.path, accept_documented=order.documented)
        self.meter.total, self._seen = found.size, 0
        machine = around.machine()
        if machine is None:
            raise Away("the machine id is not known")
        key = await self._noted(found, machine)
        async with around.gate.turn(order.rank):
            self.state = State.UPLOADING
            owner = Owner(around.store, machine, order.prefix)
            if not order.may_repeat:
                await owner.free_or_ours(key)
            elif note.upload is None:
                key = await self._unused(owner, key)
        transfer = Transfer(
            around.store,
            found,
            key,
            options_of(found, machine, order.metadata),
            progress=Noted(around.notes, order.id, note),
            turn=lambda: around.gate.turn(order.rank),
            meter=self.meter,
            prefix=order.prefix,
            upload=order.id if order.may_repeat else None,
        )
        try:
            size, etag = await transfer.run()
        except Occupied:
            await self._rename(machine)
            raise
        return self._result(found, key, size, etag)

    async def _noted(self, found: FlightLog, machine: str) -> str:
        """Note what is about to be done, before it is begun; the key."""
        note = self.note
        if note.stamp is not None and note.upload is not None and note.stamp != found.stamp:
            raise FileRefused(
                f"File validation failed: {found.path} changed while it was uploaded; upload it when it is complete"
            )
        note.path, note.stamp, note.machine = str(found.path), found.stamp, machine
        note.key = note.key or await self._made_key(machine)
        note.attempts += 1
        await self._around.notes.save(self.order.id, note)
        return note.key

    async def _made_key(self, machine: str, *, apart: bool = False) -> str:
        """The key, one that no other unfinished upload has where it was not asked for. Raises BucketError."""
        order, around = self.order, self._around
        if not order.may_repeat:
            return order.make_key(machine)
        noted = {note.key for name, note in (await around.notes.all()).items() if name != order.id}
        for tried in range(_KEYS_TRIED):
            key = order.make_key(machine, apart=apart or tried > 0)
            if key not in noted and not around.uses(key):
                return key  # nothing is waited for until it is in our note: no other upload can take it in between
        raise Denied(f"Access denied: {order.template!r} makes one key for all logs, and {key!r} is another's")

    async def _unused(self, owner: Owner, key: str) -> str:
        """The key, or another one where another log is stored under it: each log is an object of its own."""
        try:
            await owner.require_unused(key, self.order.id)
        except Occupied:
            return await self._rename(owner.machine)
        return key

    async def _rename(self, machine: str) -> str:
        """Another log has our key: take another one, and note that."""
        note = self.note
        before, note.key = note.key, await self._made_key(machine, apart=True)
        log.info("upload %s is stored as %s: another log is %s already", self.order.id, note.key, before)
        await self._around.notes.save(self.order.id, note)
        return note.key

    def _result(self, found: FlightLog, key: str, size: int, etag: str) -> dict[str, Any]:
        url = self._around.store.url(key)
        meter = self.meter
        return {
            "success": True,
            "message": "File uploaded successfully",
            "s3_key": key,
            "url": url,
            "file_url": url,
            "size": size,
            "etag": etag,
            **({} if found.indexed is None else {"indexed": found.indexed}),
            "sent_bytes": meter.sent,
            "kept_bytes": meter.kept,
            "attempts": self.note.attempts,
            "seconds": round(time.monotonic() - self._began, 3),
        }


def _dead(error: BucketError, text: str) -> HandlerError:
    return HandlerError(text, error_code=error.code.upper(), dead=True, data={"status": error.status})
