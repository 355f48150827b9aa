"""From the plain queues of the bus's applications to the bus.

    ZRANGE queue:<app>:inbox  ->  read, urgent ones first  ->  XADD {bus}:ingest  ->  ZREM

The ingest appends each id once. The set and the ingest stream may lie in different slots, so taking is two steps, and
not atomic: a crash between them leaves the message in the set, it is added once more, and the id window knows it. So it
is never lost and never handled twice. What is no message becomes a dead letter of the application whose queue it is in.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.messages import Known
from petalbus.daemon.services.plain_forms import Taken, letter, raw_record, read
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.keys import Keys
    from petalbus.daemon.bus.outbox import Outbox
    from petalbus.daemon.services.plain import PlainOptions

log = logging.getLogger("petalbus.services")

CHUNK: Final = 64
"""Entries of a queue that are looked at in one step."""

MAX_FOLLOWED: Final = 4096
"""Messages whose progress is written back to their plain hash."""

MAX_SENDERS: Final = 1024
"""Programs of which is remembered that their replies are expected."""

_FOLLOW_AT_ONCE: Final = 256


class Inward:
    """Takes what lies in plain queues. ``senders``: called with the name of each program that sent something."""

    def __init__(self, bus: Bus, outbox: Outbox, options: PlainOptions, counts: Counter[str]) -> None:
        self._bus = bus
        self._keys = bus.keys
        self._outbox = outbox
        self._options = options
        self._counts = counts
        self._followed: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._senders: OrderedDict[str, None] = OrderedDict()
        self._bad: dict[str, str] = {}
        self.senders: dict[str, None] = {}

    async def waiting(self, apps: Sequence[str]) -> list[str]:
        """Those of the applications whose plain queue is not empty."""
        sizes = await asyncio.gather(*(self._size(app) for app in apps))
        return [app for app, size in zip(apps, sizes, strict=True) if size]

    async def take(self, app: str) -> int:
        """Bring everything in an application's queue to the bus; how many there were. Raises BusError, ServerError."""
        size = await self._size(app)
        if not size:
            return 0
        taken = 0
        if size > CHUNK:
            taken += await self._walk(app, urgent=True)  # a long line must not hold up what is urgent
        return taken + await self._walk(app, urgent=False)

    async def follow(self) -> None:
        """Write what became of taken messages into their plain hashes. Raises BusError, ServerError."""
        ids = list(self._followed)[:_FOLLOW_AT_ONCE]
        if not ids:
            return
        now = await self._outbox.ask("HMGET", self._keys.ids, *ids)
        before = await self._outbox.ask("HMGET", self._keys.ids_before, *ids)
        for message_id, *values in zip(ids, now, before, strict=True):
            value = values[0] or values[1]
            status = Known.parse(value).state if value else Status.UNKNOWN
            key, told = self._followed[message_id]
            if status.final or status is Status.PROCESSING:
                if str(status) != told:
                    await self._note(key, status=str(status))
                self._followed[message_id] = (key, str(status))
            self._followed.move_to_end(message_id)
            if status.final:
                del self._followed[message_id]

    def statistics(self) -> dict[str, Any]:
        """What is being followed, and queues that cannot be read."""
        return {"followed": len(self._followed), "unreadable": dict(self._bad)}

    async def _size(self, app: str) -> int:
        try:
            size = int(await self._outbox.ask("ZCARD", plain.inbox(app)))
        except ServerError as error:
            if app not in self._bad:
                log.warning("%s cannot be read: %s", plain.inbox(app), error)
            self._bad[app] = str(error)
            return 0
        self._bad.pop(app, None)
        return size

    async def _walk(self, app: str, *, urgent: bool) -> int:
        """Once through the queue, in the order of the scores: for one priority that is the order of sending."""
        at = taken = 0
        while True:
            members = await self._outbox.ask("ZRANGE", plain.inbox(app), at, at + CHUNK - 1)
            if not members:
                return taken
            gone = await self._take_some(app, members, urgent=urgent)
            taken += gone
            at += len(members) - gone
            if not gone and not urgent:
                return taken

    async def _take_some(self, app: str, members: list[bytes], *, urgent: bool) -> int:
        found: list[Taken] = []
        invalid: list[tuple[bytes, RecordInvalid]] = []
        for member in members:
            try:
                found.append(Taken(member, read(member, app)))
            except RecordInvalid as error:
                invalid.append((member, error))
        if urgent:
            found, invalid = [one for one in found if one.message.priority >= 3], []
        done: list[bytes] = []
        additions: list[tuple[Taken, list[bytes]]] = []
        for one in sorted(found, key=lambda one: one.order):
            try:
                additions.append((one, raw_record(one, reply_to=await self._answered(one))))
            except RecordInvalid as error:
                invalid.append((one.member, error))
        for sender in {one.message.sender for one, _ in additions}:
            await self._expect_replies(sender)
        # sent in one write and in this order; what fails stays where it is
        calls = [self._outbox.call("XADD", self._keys.ingest, "*", *fields) for _, fields in additions]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        stored = [one for (one, _), answer in zip(additions, answers, strict=True) if isinstance(answer, bytes)]
        done += [one.member for one in stored]
        for member, problem in invalid:
            await self._bury(app, member, problem)
            done.append(member)
        if done:
            await self._outbox.ask("ZREM", plain.inbox(app), *done)
        await self._noted(stored)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return len(done)

    async def _answered(self, one: Taken) -> str | None:
        """The id of the message that this one answers: as it says, else as its own id says, where that is so."""
        message = one.message
        if message.reply_to is not None:
            return message.reply_to
        claimed = one.answers
        if claimed is None:
            return None
        known = await self._bus.messages.known(bus_id(claimed))
        if known is None or (known.source, known.recipient) != (message.recipient, message.sender):
            return None
        return claimed

    async def _expect_replies(self, sender: str) -> None:
        """Before a program's first message is on the bus: its reply may be there before anything is known of it."""
        if sender not in self._senders:
            await know_replies(self._outbox, self._keys, sender)
            self._senders[sender] = None
            if len(self._senders) > MAX_SENDERS:
                self._senders.popitem(last=False)

    async def _bury(self, app: str, member: bytes, error: RecordInvalid) -> None:
        arguments, packed = letter(member, app, str(error))
        await self._outbox.append(self._keys.dead(app), arguments, packed)
        self._counts["invalid"] += 1
        log.warning("an entry of %s is a dead letter: %s", plain.inbox(app), error)

    async def _noted(self, stored: list[Taken]) -> None:
        """For people and for the programs that sent it: the copy in the sender's outbox, the message's hash."""
        for one in stored:
            message = one.message
            self._counts["taken"] += 1
            self.senders[message.sender] = None
            key = plain.message(message.id)
            await self._note(
                key, status="delivered", sender=message.sender, recipient=message.recipient,
                timestamp=str(message.timestamp), type=message.message_type,
            )  # fmt: skip
            await copy_to_outbox(self._outbox, message.sender, one.member, message.timestamp, self._options)
            if message.reply_to is None:
                self._followed[bus_id(message.id)] = (key, "delivered")
                if len(self._followed) > MAX_FOLLOWED:
                    self._followed.popitem(last=False)

    async def _note(self, key: str, **fields: str) -> None:
        await note(self._outbox, key, fields, self._options)


def cursors_key(keys: Keys) -> str:
    """The hash of how far the replies to each program were handed over; its fields name all that were ever served."""
    return f"{keys.prefix}plain:replies"


async def know_replies(outbox: Outbox, keys: Keys, app: str) -> None:
    """Replies to a program that was never seen before begin now; to others they go on where they were."""
    rows = await outbox.ask("XREVRANGE", keys.replies(app), "+", "-", "COUNT", 1)
    await outbox.ask("HSETNX", cursors_key(keys), app, rows[0][0] if rows else "0-0")


async def note(outbox: Outbox, key: str, fields: dict[str, str], options: PlainOptions) -> None:
    """Write a message's plain hash, which ends by itself after a time. Raises BusError."""
    flat = [part for item in fields.items() for part in item]
    try:
        await asyncio.gather(outbox.ask("HSET", key, *flat), outbox.ask("EXPIRE", key, int(options.keep_for)))
    except ServerError as error:
        log.debug("%s cannot be written: %s", key, error)  # a key of another type: it is for people only


async def copy_to_outbox(outbox: Outbox, sender: str, member: bytes, timestamp: float, options: PlainOptions) -> None:
    """Keep a message in the sender's bounded outbox, the newest ones. Raises BusError."""
    key = plain.outbox(sender)
    try:
        await asyncio.gather(
            outbox.ask("ZADD", key, timestamp, member),
            outbox.ask("ZREMRANGEBYRANK", key, 0, -1 - options.keep_outbox),
            outbox.ask("EXPIRE", key, int(options.keep_for)),
        )
    except ServerError as error:
        log.debug("%s cannot be written: %s", key, error)
