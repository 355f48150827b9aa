"""The database handler of the daemon: writes to the cloud's tables wait on the bus until they are done.

inbox of the app database -> one write of an item at a time -> link (tries when it is time) -> tables -> result
local database's queue    ->                                                                          -> dead letter
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.daemon.bus.handlers import Context
from petalbus.handlers.database import words
from petalbus.handlers.database.aside import Aside, Place, SetAside
from petalbus.handlers.database.attempts import Attempts, Turns
from petalbus.handlers.database.ended import Ended
from petalbus.handlers.database.errors import Busy, NotThere, Refused, TableError
from petalbus.handlers.database.link import FIRST_WAIT_S, MOST_WAIT_S, GiveUp, Link, Tell
from petalbus.handlers.database.numbers import Numbers, RecordNumber, Source
from petalbus.handlers.database.older import Older, item_of
from petalbus.handlers.database.tables import Done
from petalbus.handlers.database.values import is_plain
from petalbus.handlers.database.writes import Policy, Verdict, Write

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.database.tables import Tables
    from petalbus.schemas.record import Record

HELD: Final = 256
"""Writes in our hands, each of another item. More wait in the inbox."""

AT_ONCE: Final = 8
MOST_TRIES: Final = 1500
"""Answers 5xx to one write, one a minute at last, after which it is given up: a day. One counts if others were done
since the one before."""

_CROWD: Final = HELD * 3 // 4
"""So many such at a time leave too little room for the others: more of them are set aside, and come back."""

_ASIDE_FIRST_S: Final = 1.0
_ASIDE_MOST_S: Final = 60.0
_MANY_ATTEMPTS: Final = 1_000_000
_GRACE_S: Final = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseOptions:
    """``policy``: of all tables but those in ``other``. ``first_wait``, ``most_wait``: seconds between two attempts.

    ``most_tries``: see MOST_TRIES.
    """

    policy: Policy = Policy.LAST_WRITER
    other: Mapping[str, Policy] = field(default_factory=dict)
    first_wait: float = FIRST_WAIT_S
    most_wait: float = MOST_WAIT_S
    most_tries: int = MOST_TRIES

    def policy_of(self, table: str) -> Policy:
        """What is done about items of a table that others have written."""
        return self.other.get(table, self.policy)


class Parked(Protocol):
    """The local database's changes that were given up, where there are such."""

    async def retry(self, seq: int) -> bool:
        """Try one again."""

    async def retry_all(self) -> int:
        """Try all again; how many."""

    async def drop(self, seq: int) -> bool:
        """Forget one."""

    async def describe(self) -> dict[str, Any]:
        """How many wait, by table, and which are parked."""


class DatabaseHandler:
    """Run it as ``async with DatabaseHandler(...)``; all it does is answer records.

    ``bus``: a client as the app ``database``. ``machine``: this machine's id, None while it is not known.
    """

    def __init__(
        self,
        bus: Bus,
        tables: Tables,
        *,
        machine: Callable[[], str | None],
        options: DatabaseOptions | None = None,
    ) -> None:
        self.options = options = options or DatabaseOptions()
        self.tables = tables
        self.link = Link(at_once=AT_ONCE, first_wait=options.first_wait, most_wait=options.most_wait)
        self.local: Parked | None = None
        self.numbers = Numbers(bus)
        self._ended = Ended(bus)
        self._aside = Aside(self.numbers.ask, bus.keys)
        self._older = Older()
        self._turns = Turns()
        self._failing = 0
        self._bus = bus
        self._machine = machine
        self._held = 0
        self._counts = dict.fromkeys(("done", "repeated", "superseded", "refused"), 0)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        bus = self._bus
        # its handlers wait for the cloud, they do not compute; some workers are left for questions
        bus.options = replace(bus.options, workers=HELD + 4, window=2 * HELD, stop_grace=_GRACE_S, sole=True)
        bus.options = replace(bus.options, retry_first=_ASIDE_FIRST_S, retry_most=_ASIDE_MOST_S)
        bus.hold(words.WRITE)
        for kind, answer in ((words.STATUS, self._status), (words.RETRY, self._retry), (words.DROP, self._drop)):
            bus.on(kind, overtakes=lambda _record: True)(answer)
        self._stack.push_async_callback(self.tables.close)
        self._stack.push_async_callback(bus.close)
        try:
            await self._listen()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _listen(self) -> None:
        bus = self._bus
        await bus.start()
        await self.numbers.start()
        # What a predecessor left comes in several pieces, the older ones not always first: none starts before all are
        # there, else writes of one item could be done in another order.
        await bus.listen()
        await self._older.look(bus)
        bus.on(
            words.WRITE,
            redelivery="rerun",
            concurrency=HELD,
            max_attempts=_MANY_ATTEMPTS,  # that the machine was switched off is no reason to give a write up
        )(self._take)
        self.link.changed.set()
        for name, work in (("state", self._tell_state()), ("ended", self._ended.run())):
            self._stack.push_async_callback(_cancelled, asyncio.create_task(work, name=f"database.{name}"))

    async def carry(
        self,
        make: Callable[[str], Write],
        tell: Tell,
        source: Source,
        give_up: GiveUp,
        *,
        begun: Callable[[], None] = lambda: None,
        place: Place | None = None,
    ) -> Done:
        """Do a write, whenever that is possible, and after those of its item that came before.

        ``make``: the write of a machine; ``source``: of its number; ``begun``: called when it has its item's turn.
        ``place``: of a record. Raises TableError; SetAside for what comes after a write that is set aside.
        """
        self._held += 1
        try:
            policy = self.options.policy_of
            attempt = Attempts(self.tables, make, source, machine=self._machine, policy=policy)
            write = attempt.looked_at()
            async with self._turns.of(write):
                await self._aside.check(words.order_key(write.table, write.key, write.value), place)
                begun()
                await attempt.numbered()
                done = await self.link.run(attempt, tell, give_up)
        except TableError as error:
            self._counts["refused"] += not error.passes
            raise
        finally:
            self._held -= 1
        self._counts["done" if done.verdict is Verdict.APPLY else done.verdict.value] += 1
        return done

    def statistics(self) -> dict[str, Any]:
        """The cloud's state, and counters."""
        return {
            "backend": self.tables.kind,
            "where": self.tables.where,
            "machine": self._machine(),
            "held": self._held,
            **self.link.statistics(),
            **self._counts,
        }

    async def _take(self, record: Record, context: Context) -> dict[str, Any]:
        place = self._aside.place(item_of(record) or "", record.id)

        async def tell(reason: str) -> None:
            if reason not in place.told:  # a reason is told once: the sender's inbox shall not fill up while we wait
                place.told = {reason}
                await context.progress({"state": "waiting", "error": reason})

        self._older.started(record)
        async for older in self._older.before(record, self.numbers.ask):
            try:
                await self._done(older, tell, self._aside.place(place.item, older.id))
            except TableError as error:  # it says so itself, when it has its turn
                log.info("write %s, which was stored before %s, is refused: %s", older.id, record.id, error)
        try:
            done = await self._done(record, tell, place)
        except SetAside as error:
            await tell(str(error))
            raise HandlerError(str(error), retry=True) from None
        except NotThere as error:  # nothing was lost: there was nothing to delete
            self._ended.note(record.id, dead=False)
            raise HandlerError(str(error), error_code="NO_ITEM", data={"status": error.status}) from None
        except TableError as error:
            self._ended.note(record.id, dead=True)
            log.warning("write %s of %s is refused: %s", record.id, record.source, error)
            data = {"status": error.status}
            raise HandlerError(str(error), error_code=error.code.upper(), dead=True, data=data) from None
        self._ended.note(record.id, dead=False)
        if done.verdict is Verdict.SUPERSEDED:
            log.info("write %s of %s came too late: the item has a later one", record.id, record.source)
        extra = {} if done.verdict is Verdict.APPLY else {done.verdict.value: True}
        return {"success": True, "data": plain_answer(done.answer), **extra}

    async def _done(self, record: Record, tell: Tell, place: Place) -> Done:
        number, patience, stays = record_number(record), _Patience(self, place), False
        source = RecordNumber(self.numbers, record.id, number, _own_number(record))

        def make(machine: str) -> Write:
            return Write.of(record.data, machine=machine, seq=number)

        try:
            with patience:
                return await self.carry(make, tell, source, patience.over, place=place)
        except SetAside:
            stays = True
            raise
        finally:
            if not stays:
                self._aside.drop(place)

    async def _tell_state(self) -> None:
        """Whether the cloud is away, where senders see it."""
        key = words.away_key(self._bus.keys)
        while True:
            await self.link.changed.wait()
            self.link.changed.clear()
            problem = self.link.problem
            try:
                await (self._bus.ask("SET", key, problem) if problem else self._bus.ask("DEL", key))
            except BusError as error:
                log.info("the state of the cloud's tables could not be told: %s", error)
                await asyncio.sleep(1)
                self.link.changed.set()

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _status(self, _record: Record) -> dict[str, Any]:
        local = await self.local.describe() if self.local is not None else None
        return {**self.statistics(), "local": local}

    async def _retry(self, record: Record) -> dict[str, Any]:
        return await self._act(record, "retry")

    async def _drop(self, record: Record) -> dict[str, Any]:
        return await self._act(record, "drop")

    async def _act(self, record: Record, what: str) -> dict[str, Any]:
        told = record.data if isinstance(record.data, dict) else {}
        if what == "retry" and told.get("all") is True:
            return {"retried": await self.local.retry_all() if self.local is not None else 0}
        seq = told.get("seq")
        act: Callable[[int], Awaitable[bool]] | None = getattr(self.local, what, None)
        if not isinstance(seq, int) or act is None or not await act(seq):
            raise HandlerError(f"there is no parked change {seq!r}", error_code="NO_SUCH_CHANGE")
        return {"seq": seq, what: True}


class _Patience:
    """How long one record's write is tried that the cloud cannot serve, while it serves others. The tries outlast us.

    When it serves none at all, they all wait for it.
    """

    def __init__(self, handler: DatabaseHandler, place: Place) -> None:
        self._handler = handler
        self._place = place
        self._fails = False

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *exc: object) -> None:
        self._handler._failing -= self._fails

    async def over(self, error: TableError) -> TableError | None:
        """Count a try, if others were done since the last one. The end of it, if it was the last one of these.

        SetAside, if too many others fail as well.
        """
        handler, place = self._handler, self._place
        handler._failing += not self._fails
        self._fails = True
        successes = handler.link.successes
        serves_others = place.seen is not None and successes > place.seen
        place.seen = successes
        if serves_others and not isinstance(error, Busy):
            tries = await handler.numbers.tried(place.record)
            if tries >= handler.options.most_tries:
                end = Refused(f"given up after {tries} tries, while others were done: {error}", error.status)
                end.code = "given_up"
                return end
        if handler._failing < _CROWD:
            return None
        handler._aside.put(place)
        return SetAside(str(error))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _own_number(record: Record) -> int | None:
    """The number that a record brings along; ``Write.of`` refuses what is none."""
    seq = record.data.get("seq") if isinstance(record.data, dict) else None
    return seq if isinstance(seq, int) else None


def record_number(record: Record) -> int:
    """The lowest number that a record may get: the microseconds at which it was stored."""
    milliseconds, _, count = (record.stream_id or "1-0").partition("-")
    return int(milliseconds) * 1000 + min(999, int(count or 0))


def plain_answer(answer: Any) -> Any:
    """An answer as JSON says it: what it has no words for becomes text."""
    if is_plain(answer):
        return answer
    if isinstance(answer, Mapping):
        return {str(name): plain_answer(one) for name, one in answer.items()}
    if isinstance(answer, Collection) and not isinstance(answer, str | bytes):
        return [plain_answer(one) for one in answer]
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
