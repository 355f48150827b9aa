"""Runs one record: may it start, who handles it, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any

from petalbus.daemon.bus.envelope import checked_id, payload
from petalbus.daemon.bus.errors import HandlerError
from petalbus.daemon.bus.handlers import HANDED_OVER, Handler, Registry, Reply, as_reply, is_final
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.settle import (
    CANCELLED,
    COMPLETED,
    DELIVERED,
    FAILED,
    PROCESSING,
    TIMEOUT,
    Committer,
    Output,
    plain,
)
from petalbus.daemon.bus.work import Work
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import validate_payload
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import Clock
from petalbus.schemas.vocabulary import ReplyKind

log = logging.getLogger("petalbus.bus")

MARK_AFTER = 0.005
"""Seconds after which a running record is shown as ``processing``; shorter ones are not worth a write."""

SETTLED = (COMPLETED, FAILED, TIMEOUT, CANCELLED, DELIVERED)
EXPIRED = "DEADLINE_EXPIRED"
FORGOTTEN = b""
"""What the id window says of a message that has left it: it may have begun, or ended, or neither."""


class Told:
    """The Context of one run."""

    def __init__(self, runner: Runner, work: Work) -> None:
        self.attempt = work.attempts
        self._runner = runner
        self._work = work

    async def accepted(self, data: Any = None) -> bool:
        """Tell the sender that the work has been taken on."""
        return await self._runner.tell(self._work, Reply(data, ReplyKind.ACCEPTED))

    async def progress(self, data: Any) -> bool:
        """Tell the sender how far the work is."""
        return await self._runner.tell(self._work, Reply(data, ReplyKind.PROGRESS))


class Runner:
    """Runs the work of one consumer. ``dropped``: the lease is lost; ``again``: another attempt after a delay."""

    def __init__(
        self,
        *,
        registry: Registry,
        clock: Clock,
        committer: Committer,
        outbox: Outbox,
        keys: Keys,
        options: BusOptions,
        dropped: Callable[[Work], None],
        again: Callable[[Work, float], None],
        fenced: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._committer = committer
        self._outbox = outbox
        self._keys = keys
        self._options = options
        self._dropped = dropped
        self._again = again
        self._fenced = fenced
        self._loop = asyncio.get_running_loop()
        self._marker: asyncio.TimerHandle | None = None
        self.running: set[Work] = set()
        self.retries = 0
        self._asking = 0
        self._asked = asyncio.Event()

    async def run(self, work: Work) -> None:
        """Take one record to its end: settled, retried later, or dropped because the lease is lost."""
        record = work.record
        if record is None:
            assert work.invalid is not None
            self._bury(work, "invalid", str(work.invalid), "INVALID_RECORD")
            return
        if self._options.sole:
            handler = await self._admitted_in_turn(work, record)
        else:
            handler = await self._admitted(work, record)
        if handler is not None:
            await self._handle(work, record, handler)

    async def _admitted_in_turn(self, work: Work, record: Record) -> Handler | None:
        """As ``_admitted``: what must be asked about before it may run is not overtaken by what need not."""
        if not work.suspect:
            while self._asking:
                await self._asked.wait()
            return await self._admitted(work, record)
        self._asking += 1
        self._asked.clear()
        try:
            return await self._admitted(work, record)
        finally:
            self._asking -= 1
            if not self._asking:
                self._asked.set()

    async def _admitted(self, work: Work, record: Record) -> Handler | None:
        """The handler that shall run now; None when the record was settled without one."""
        if work.suspect and await self._seen_before(work, record):
            return None
        if work.cancelled:
            self.settle_cancelled(work)
            return None
        if record.deadline is not None and record.expired(self._clock.now_ns(), self._clock.boot_id):
            self.settle_expired(work)
            return None
        handler = self._registry.find(record.type)
        if handler is None:
            self._bury(work, "no handler", f"nobody handles type {record.type!r} here", "NO_HANDLER")
            return None
        if record.content_type is None and not self._payload_fits(work, record):
            return None
        if (handler.redelivery == "report" or work.suspect) and not await self.begin(work):
            self._dropped(work)
            return None
        return handler

    def cancel(self, work: Work) -> None:
        """Cancel a record that is running, or that waits for another attempt."""
        work.cancelled = True
        if work.task is not None:
            work.task.cancel()

    def settle_cancelled(self, work: Work) -> None:
        """End a record with a reply of kind ``cancelled``."""
        data = _problem("CANCELLED", "cancelled before it had a result")
        self._committer.settle(work, CANCELLED, [self._reply(work, Reply(data, ReplyKind.CANCELLED))])

    def settle_expired(self, work: Work) -> None:
        """End a record whose deadline has passed: it is never run."""
        data = _problem(EXPIRED, "the deadline passed before the record could start; it was not run")
        self._committer.settle(work, TIMEOUT, [self._reply(work, self._no(work, data))])

    async def begin(self, work: Work) -> bool:
        """Mark a record as processing; False when the lease is lost. Raises BusError when the server is away."""
        work.marked = True
        keys = [work.stream, self._keys.ids, self._keys.fenced]
        args = self._begin_arguments(work)
        answer = await self._outbox.run("begin", keys, args)
        if answer == -1:
            self._fenced(work.owner)
        return bool(answer == 1)

    def _begin_arguments(self, work: Work) -> list[bytes | str | int]:
        return [GROUP, work.owner, work.entry, work.message_id, work.outcome(PROCESSING), work.attempts]

    async def tell(self, work: Work, reply: Reply) -> bool:
        """Append a reply that is not the last; False when the lease is lost."""
        output = self._reply(work, reply)
        return await self._committer.tell(work, output)

    async def _handle(self, work: Work, record: Record, handler: Handler) -> None:
        self._started(work)
        task = work.task
        assert task is not None
        try:
            said = await self._call(work, record, handler)
            if said is HANDED_OVER:
                state, outputs = DELIVERED, []
            else:
                reply = as_reply(said)
                state = FAILED if reply.kind is ReplyKind.ERROR else COMPLETED
                outputs = [] if said is None and not record.wants_reply else [self._reply(work, reply)]
        except asyncio.CancelledError as error:
            if work.cancelled:
                self.settle_cancelled(work)
            elif task.cancelling():
                raise  # this client is being closed: the entry stays pending for a successor
            else:
                self._broke(work, handler, error)
        except HandlerError as error:
            self._refused(work, handler, error)
        except Exception as error:  # noqa: BLE001  # whatever a handler raises becomes a retry or a dead letter, never a crash
            self._broke(work, handler, error)
        else:
            self._committer.settle(work, state, outputs)
        finally:
            if work.cancelled and task.cancelling():
                task.uncancel()
            self.running.discard(work)
            work.task = None

    async def _call(self, work: Work, record: Record, handler: Handler) -> Any:
        arguments = (record, Told(self, work)) if handler.takes_context else (record,)
        if not handler.generator:
            return await handler.function(*arguments)  # type: ignore[misc]  # checked at registration
        steps: Any = handler.function(*arguments)
        try:
            async for said in steps:
                if is_final(said):
                    return said
                await self.tell(work, said)
        finally:
            await steps.aclose()
        return None

    def _started(self, work: Work) -> None:
        self.running.add(work)
        work.task = asyncio.current_task()
        if self._marker is None and not work.marked and not self._options.sole:
            self._marker = self._loop.call_later(MARK_AFTER, self._mark)

    def _mark(self) -> None:
        self._marker = None
        for work in self.running:
            if not work.marked:
                work.marked = True
                keys = [work.stream, self._keys.ids, self._keys.fenced]
                args = self._begin_arguments(work)
                self._outbox.script("begin", keys, args, lambda _reply: None)

    async def _seen_before(self, work: Work, record: Record) -> bool:
        """For a redelivery: settle what must not run again; True when that is so."""
        known = work.known
        if known is None:
            known = await self._outbox.ask("HGET", self._keys.ids, record.id)
            known = known or await self._outbox.ask("HGET", self._keys.ids_before, record.id) or b""
        state = known[:1]
        handler = self._registry.find(record.type)
        if state in SETTLED:
            await self._outbox.ask("XACK", work.stream, GROUP, work.entry)
            self._dropped(work)
        elif state in (PROCESSING, FORGOTTEN) and handler is not None and handler.redelivery == "report":
            when = "while it worked on this" if state == PROCESSING else "so long ago that nothing is known of this"
            text = f"the consumer died {when}; whether it took effect is unknown, it is not run again"
            self._bury(work, "outcome unknown", text, "OUTCOME_UNKNOWN")
        elif state == PROCESSING and handler is not None and work.attempts > handler.max_attempts:
            self._bury(
                work,
                "attempts",
                f"its consumer died {work.attempts - 1} times while working on it",
                "ATTEMPTS_EXHAUSTED",
            )
        else:
            return False
        return True

    def _payload_fits(self, work: Work, record: Record) -> bool:
        try:
            # decoded and checked in one go: the handler's ``record.data`` finds it there
            record.__dict__["data"] = validate_payload(
                record.type, record.raw if record.encoding is None else record.body
            )
        except RecordInvalid as error:
            self._bury(work, "invalid", str(error), "INVALID_PAYLOAD")
            return False
        return True

    def _refused(self, work: Work, handler: Handler, error: HandlerError) -> None:
        if error.retry and handler.redelivery == "rerun" and work.attempts < handler.max_attempts:
            self._retry(work)
            return
        data = {**_problem(error.error_code, str(error)), **error.data}
        try:
            outputs = [self._reply(work, self._no(work, data))]
        except RecordInvalid as invalid:
            self._broke(work, handler, invalid)
            return
        if error.dead:
            detail = "".join(traceback.format_exception(error.__cause__ or error))
            # the reply stays the last one: the id window remembers where that is
            outputs.insert(0, self._committer.dead_letter(work, plain(str(error)), detail))
        late = error.error_code == EXPIRED
        self._committer.settle(work, TIMEOUT if late else FAILED, outputs)

    def _broke(self, work: Work, handler: Handler, error: BaseException) -> None:
        log.warning("handler of %s failed (attempt %d): %s", handler.type, work.attempts, _words(error))
        if handler.redelivery == "rerun" and work.attempts < handler.max_attempts:
            self._retry(work)
            return
        detail = "".join(traceback.format_exception(error))
        message = plain(_words(error))
        self._bury(work, message, detail, "HANDLER_ERROR", message=message)

    def _retry(self, work: Work) -> None:
        self.retries += 1
        delay = min(self._options.retry_most, self._options.retry_first * 2.0 ** min(work.attempts - 1, 30))
        work.attempts += 1
        work.suspect = True  # so that the next attempt is counted where a successor can see it
        work.known = b"q"
        self._again(work, delay)

    def _bury(self, work: Work, reason: str, detail: str, code: str, *, message: str | None = None) -> None:
        outputs: list[Output] = [self._committer.dead_letter(work, reason, detail)]
        if work.record is not None:
            outputs.append(self._reply(work, self._no(work, _problem(code, message or detail))))
        self._committer.settle(work, FAILED, outputs)

    def _no(self, work: Work, data: dict[str, Any]) -> Reply:
        # an id that says what it answers, for programs that look for it there
        return Reply(data, ReplyKind.ERROR, id=bus_id(f"error_{work.message_id.decode()}"))

    def _reply(self, work: Work, reply: Reply) -> Output:
        record = work.record
        assert record is not None
        extra = dict(reply.fields)
        data = {} if reply.data is None else reply.data
        answer_type = reply.type or f"{record.type}_response"
        options = self._options
        body = payload(answer_type, data, None, extra, options.compress_over, options.compression)
        reply_id = None if reply.id is None else checked_id(reply.id)
        return self._committer.reply(work, reply.kind, body, record_type=answer_type, extra=extra, reply_id=reply_id)


def _problem(code: str, message: str) -> dict[str, Any]:
    message = plain(message)
    # both shapes that deployed programs read: ``success``/``error`` and ``status``/``message``
    return {"status": "error", "success": False, "error_code": code, "error": message, "message": message}


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # an error of a handler's own making may not even have a text
        return f"{type(error).__name__} (its text cannot be had)"
