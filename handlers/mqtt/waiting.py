"""Commands whose senders wait for a response, until one has left: nobody is left without any.

A petal answers by itself. Where it cannot (it raised, it never came, a crash left the outcome unknown, the command is
nobody's) an error in both shapes is sent in its place. What is known of each command stands in a hash, so a restart
of the daemon forgets none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt.words import hash_items, refusal, waiting_key
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import ReplyKind, Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.mqtt.ingress import Respond
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

MOST: Final = 10_000
_LOOK_S: Final = 0.5
_RESTART_S: Final = 3.0
_GRACE_S: Final = 0.5
"""A response that was stored just before its petal failed is on its way: it counts."""
_NOT_BEGUN: Final = (Status.PENDING, Status.DELIVERED, Status.TIMEOUT)
"""Past its deadline (which is ``within``) such an offer is never begun."""


@dataclass(slots=True)
class Asked:
    """One command. ``offers``: ids of what was offered to petals; ``stray``: no petal calls it its own.

    ``name``: what it is recognised by, where its messageId was another command's before.
    """

    message_id: str
    device: str
    command: str
    arrived_ns: int
    within: float
    offers: list[str] = field(default_factory=list)
    stray: bool = False
    boot: str = BOOT_ID
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    responding: bool = False
    """A response has been stored and is on its way: nothing is said in its place."""
    name: str | None = None

    @property
    def key(self) -> str:
        """What it is known by: two commands may have one messageId."""
        return self.name or self.message_id

    @property
    def age(self) -> float:
        """Seconds since it arrived."""
        return (boot_clock_ns() - self.arrived_ns) / 1e9

    def encode(self) -> bytes:
        """As it stands in the hash."""
        told = {"device": self.device, "command": self.command, "arrived_ns": self.arrived_ns, "within": self.within}
        more = {} if self.name is None else {"name": self.name, "message_id": self.message_id}
        return orjson.dumps({**told, "offers": self.offers, "stray": self.stray, "boot": self.boot, **more})

    @classmethod
    def decode(cls, message_id: str, raw: bytes) -> Asked:
        """From the hash; ``message_id`` where it does not say that itself. Of another boot its age is not known: it
        starts anew.
        """
        asked = cls(**{"message_id": message_id, **orjson.loads(raw)})
        if asked.boot != BOOT_ID:
            asked.boot, asked.arrived_ns = BOOT_ID, boot_clock_ns()
        return asked


class Waiting:
    """``await run()`` until it is cancelled. ``bus``: the client that offers the commands."""

    def __init__(self, bus: Bus, *, respond: Respond) -> None:
        self._bus = bus
        self._respond = respond
        self._asked: dict[str, Asked] = {}
        self._named: dict[str, Asked] = {}
        """Of these the ones whose messageId was another command's before."""
        self._by_offer: dict[str, Asked] = {}
        self._failures: asyncio.Queue[tuple[float, Asked]] = asyncio.Queue()
        self._some = asyncio.Event()
        self._gone: list[str] = []
        self._forgetting: set[asyncio.Task[None]] = set()
        self.answered_for = 0
        self.took_ms: float | None = None
        """From the arrival of a command to its response, the last time."""

    def __len__(self) -> int:
        return len(self._asked)

    async def load(self) -> None:
        """Go on with what an earlier process left. Raises BusError."""
        for raw_id, raw in hash_items(await self._bus.ask("HGETALL", waiting_key(self._bus.keys))):
            try:
                asked = Asked.decode(raw_id.decode(), raw)
                if asked.key != raw_id.decode():  # an earlier program noted all of them by their messageId
                    await self._bus.ask("HDEL", waiting_key(self._bus.keys), raw_id)
                    await self.add(asked)
                    continue
                self._take(asked)
            except (ValueError, TypeError) as error:
                log.warning("what is known of command %r cannot be read and is forgotten: %s", raw_id, error)
                await self._bus.ask("HDEL", waiting_key(self._bus.keys), raw_id)

    async def add(self, *some: Asked) -> None:
        """Somebody waits for a response to each. Before they are offered. Raises BusError."""
        for asked in some:
            if len(self._asked) >= MOST:
                oldest = next(iter(self._asked))
                log.warning("more than %d commands wait for a response; %s is not watched any more", MOST, oldest)
                self.answered(oldest)
            self._take(asked)
        flat = [part for asked in some for part in (asked.key, asked.encode())]
        if flat:
            await self._bus.ask("HSET", waiting_key(self._bus.keys), *flat)

    def watches(self, message_id: str, command: str) -> bool:
        """Whether a command of this name and messageId waits for its response."""
        return any(asked.command == command for asked in self._all_of(message_id))

    def _all_of(self, message_id: str) -> list[Asked]:
        first = self._asked.get(message_id)
        others = [asked for asked in self._named.values() if asked.message_id == message_id]
        return others if first is None else [first, *others]

    def acknowledged(self, message_id: str) -> None:
        """A petal says that the command is its own."""
        for asked in self._all_of(message_id):
            asked.stray = False

    def responding(self, message_id: str) -> None:
        """A response is stored, and waits for its way out."""
        self.acknowledged(message_id)  # somebody's own it is
        asked = self._asked.get(message_id)
        if asked is not None:
            asked.responding = True

    async def refused(self, message_id: str, text: str) -> None:
        """The response cannot leave: another one says so. Raises BusError."""
        asked = self._asked.get(message_id)
        if asked is not None:
            asked.responding = False
            await self._give_up(asked, refusal(f"the response cannot be sent: {text}", "RESPONSE_REFUSED"))

    def answered(self, key: str) -> None:
        """A response has left. By the messageId alone it is the first command's: another one under the same messageId
        ends by what becomes of its offers.
        """
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        self._named.pop(key, None)
        for offer in asked.offers:
            self._by_offer.pop(offer, None)
        self.took_ms = round(asked.age * 1e3, 3)
        if not self._gone:
            asyncio.get_running_loop().call_soon(self._forget_gone)
        self._gone.append(key)

    def _forget_gone(self) -> None:
        # Nobody waits for it: what a crash leaves behind is found to be done by the next start.
        gone, self._gone = self._gone, []
        task = asyncio.create_task(self._forget(gone), name="mqtt.answered")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def _forget(self, gone: list[str]) -> None:
        try:
            await self._bus.ask("HDEL", waiting_key(self._bus.keys), *gone)
        except BusError as error:
            log.info("%d answered commands are still noted as waiting: %s", len(gone), error)

    def on_reply(self, reply: Record) -> None:
        """A final reply to an offer: only failures matter."""
        asked = self._by_offer.get(reply.reply_to or "")
        if asked is None or reply.kind not in (ReplyKind.ERROR, ReplyKind.CANCELLED):
            return
        asked.failed[str(reply.reply_to)] = reply.data if isinstance(reply.data, dict) else {}
        if len(asked.failed) == len(asked.offers):
            self._failures.put_nowait((time.monotonic() + _GRACE_S, asked))

    async def run(self) -> None:
        """Answer for petals that do not."""
        await self._catch_up()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer_failures(), name="mqtt.failures")
            tasks.create_task(self._watch(), name="mqtt.waiting")

    async def _catch_up(self) -> None:
        """Failures that were told while this process was not there to hear of them. Raises BusError."""
        for asked in list(self._asked.values()):
            for offer in asked.offers:
                reply = await self._bus.reply(offer)
                if reply is not None:
                    self.on_reply(reply)

    def _take(self, asked: Asked) -> None:
        if (before := self._asked.get(asked.key)) is not None:
            for offer in before.offers:
                self._by_offer.pop(offer, None)
        self._asked[asked.key] = asked
        if asked.name is not None:
            self._named[asked.key] = asked
        self._some.set()
        self._by_offer.update(dict.fromkeys(asked.offers, asked))

    async def _answer_failures(self) -> None:
        while True:
            due, asked = await self._failures.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            told = next(iter(asked.failed.values()), {})
            text = str(told.get("error") or told.get("message") or "the petal failed")
            await self._give_up(asked, refusal(text, str(told.get("error_code") or "HANDLER_ERROR")))

    async def _watch(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(_LOOK_S)
            if not self._asked:
                self._some.clear()
            for asked in list(self._asked.values()):
                if asked.age > asked.within and not asked.responding:
                    try:
                        await self._look(asked)
                    except BusError as error:
                        log.warning("nobody can tell now how far command %s is: %s", asked.message_id, error)
                        break

    async def _look(self, asked: Asked) -> None:
        """It is overdue: has it begun anywhere, and does whoever has begun it still live?"""
        states = [await self._bus.status(offer) for offer in asked.offers]
        if Status.PROCESSING in states:
            if await self._lives(asked.offers[states.index(Status.PROCESSING)]):
                return
            text = f"the petal died while it worked on {asked.command}; whether that took effect is unknown"
            await self._give_up(asked, refusal(text, "OUTCOME_UNKNOWN"))
        elif any(state in _NOT_BEGUN for state in states):
            text = f"no petal has begun command {asked.command} within {asked.within:g} s; it will not be run"
            await self._give_up(asked, refusal(text, "DEADLINE_EXPIRED"))
        elif Status.COMPLETED in states and not asked.stray:
            self.answered(asked.key)  # it was carried out; its petal has nothing to say, or says it later
        elif Status.COMPLETED in states or not states:
            text = f"no petal has answered {asked.command} within {asked.within:g} s; none calls it its own"
            await self._give_up(asked, refusal(text, "NO_ANSWER"))
        else:
            text = f"command {asked.command} ended as {', '.join(sorted({state.value for state in states}))}"
            await self._give_up(asked, refusal(text, "HANDLER_ERROR"))

    async def _lives(self, offer: str) -> bool:
        """Whether the app that has an offer in hand is there; one that is restarted is given its time."""
        known = await self._bus.messages.known(offer)  # the id of an offer need not name the app
        app = known.recipient if known is not None else offer.rpartition("@")[2]
        if await self._is_online(app):
            return True
        await asyncio.sleep(_RESTART_S)
        return await self._is_online(app)

    async def _is_online(self, app: str) -> bool:
        return any(one.app == app and one.status == "online" for one in await self._bus.applications())

    async def _give_up(self, asked: Asked, data: dict[str, Any]) -> None:
        if asked.key not in self._asked or asked.responding:
            return  # a response came after all
        try:
            await self._respond(asked.device, asked.message_id, data, name=asked.name)
            self.answered_for += 1
            self.answered(asked.key)
        except BusError as error:
            log.warning("command %s is not answered yet: %s", asked.message_id, error)


def unknown_command(command: str, available: Sequence[str]) -> dict[str, Any]:
    """The answer to a command that nobody knows."""
    return refusal(f"Unknown command: {command}", "UNKNOWN_COMMAND", available_commands=sorted(available))
