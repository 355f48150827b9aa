"""Brings commands to the petals: from topic ``mqtt.rx`` into the inbox of every app that may be meant.

    get_status, restart                            -> answered here
    a petal has said that it takes this command    -> that petal
    its name begins with a petal's                 -> that petal, also before it has started: the command waits for it
    petals take any command                        -> all of those: a petal may name its commands as it likes
    none of these                                  -> an error response; while petals are being loaded, not yet

An offer's id is made of the messageId and the app: the same command that arrives twice runs once. What stops an
aircraft is offered at priority CRITICAL: it begins although a petal's places for commands are all taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import BusFull, BusUnavailable, IdConflict, QueueFull
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.waiting import Asked, Waiting, unknown_command
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import APP_RULE, Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.sender import Receipt
    from petalbus.handlers.mqtt.ingress import Respond
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

GROUP: Final = "commands"
KEPT_CHARS: Final = 64 * 1024
UNDECIDED: Final = "mqtt.undecided"
"""A command of which nobody can say yet whose it is, in the link's own inbox: petals are still being loaded."""

BUILT_IN: Final = "mqtt.built_in"
"""A command of the daemon's own, in the link's inbox: after a restart it must not be run again."""

DEADLINE: Final = 120.0
"""Seconds from its arrival after which a command that nobody has begun is not begun any more."""

_AT_ONCE: Final = 16
"""Commands that are dispatched together: the first of a burst does not wait for the last."""

_AGAIN_S: Final = 0.5
_LOADING_S: Final = 30.0
_LOADING_LOOK_S: Final = 0.1

_DEFAULTS: Final = MqttOptions()

Installed = Callable[[], Collection[str] | None]
"""Names of the petals that there are; None while they are being looked for and started."""

Work = Callable[[], Awaitable[None]]

BuiltIn = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Carries out a command of the daemon's own; the response data."""


class CommandDispatch:
    """``await run()`` until it is cancelled, on an open client of the bus, the app ``mqtt``."""

    def __init__(
        self,
        bus: Bus,
        *,
        respond: Respond,
        acknowledge: Callable[[str, str], Awaitable[None]] | None = None,
        installed: Installed = lambda: (),
        built_in: Mapping[str, BuiltIn] | None = None,
        deadline: float = DEADLINE,
        for_us: Callable[[str], bool] = words.is_command_topic,
        here: Callable[[str], bool] = words.is_command_topic,
        urgent: Callable[[str], bool] = _DEFAULTS.is_urgent,
    ) -> None:
        """``acknowledge(device topic, messageId)`` tells that a built-in command was received. ``for_us(topic)``:
        whether commands for this device arrive there; ``here(topic)``: of whichever organisation.
        ``urgent(command)``: whether it overtakes all others.
        """
        self._urgent = urgent
        self._here = here
        self._for_us = for_us
        self._bus = bus
        self._respond = respond
        self._acknowledge = acknowledge
        self._installed = installed
        self._built_in = built_in or {}
        self._deadline = deadline
        self.waiting = Waiting(bus, respond=respond)
        self.offered = 0
        self.repeated = 0
        self.refused = 0
        self.takers = 0
        """Apps that took commands when it was last looked."""

    def register(self) -> None:
        """Handle what is passed on to ourselves. Before the client begins to consume."""
        self._bus.on(UNDECIDED, concurrency=None, overtakes=_always)(self._decide_later)
        self._bus.on(BUILT_IN, redelivery="report", concurrency=None, overtakes=_always)(self._run_built_in)

    async def run(self) -> None:
        """Work until cancelled. What it was working on then is found again by the next start."""
        await self.waiting.load()
        self._bus.on_other_reply(self.waiting.on_reply)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.waiting.run(), name="mqtt.waiting")
                tasks.create_task(self._read(), name="mqtt.dispatch")
        finally:
            self._bus.on_other_reply(None)

    def statistics(self) -> dict[str, Any]:
        """Commands offered, repetitions recognised, refused ones; those that wait for a response, and answered here."""
        return {
            "offered": self.offered,
            "repeated": self.repeated,
            "refused": self.refused,
            "waiting": len(self.waiting),
            "answered_for": self.waiting.answered_for,
            "command_ms": self.waiting.took_ms,
        }

    async def _read(self) -> None:
        async with self._bus.subscribe(words.TOPIC, name=GROUP, start="oldest") as messages:
            async for records in messages.batches(_AT_ONCE):
                commands = [record for record in records if self._is_command(record)]
                while commands:
                    try:
                        await self._take(commands)
                        break
                    except (BusUnavailable, BusFull) as error:
                        # all of it is done once by its ids: what was done already is not done again
                        log.warning("%d commands are tried again: %s", len(commands), error)
                        await asyncio.sleep(_AGAIN_S)

    def _is_command(self, record: Record) -> bool:
        """``ours``: it was when it came; the organisation may have changed since."""
        data = record.data
        if not isinstance(data, dict):
            return False
        topic = str(data.get("topic", ""))
        return self._here(topic) if data.get("ours") is True else self._for_us(topic)

    async def _take(self, records: Sequence[Record]) -> None:
        """Commands that were there at one moment: with as few questions to the server as for one."""
        takers = await self._takers()
        work: list[tuple[Record, Asked | None, Work]] = []
        waiting: list[Asked] = []
        for record in records:
            message = record.data.get("payload")
            if not isinstance(message, dict) or not isinstance(message.get("command"), str):
                problem = "a command needs the members command (text) and messageId"
                work.append((record, None, partial(self._keep, record, problem)))
                continue
            asked = _asked(record, message, self._deadline)
            work.append((record, asked, self._begun(record, message, asked, takers)))
            if message.get("waitResponse") and asked.offers:
                waiting.append(asked)
        await self.waiting.add(*waiting)
        # they begin in this order, and so are offered
        await asyncio.gather(*(self._to_its_end(*one) for one in work))

    def _begun(
        self, record: Record, message: dict[str, Any], asked: Asked, takers: Mapping[str, list[str] | None]
    ) -> Work:
        """What is to be done with a command; the ids of its offers are in ``asked``."""
        if asked.age >= asked.within:
            return partial(self._too_late, record, message, asked)
        kind = BUILT_IN if asked.command in self._built_in else UNDECIDED
        meant = None if kind == BUILT_IN else self._meant(asked, takers)
        if meant is None:
            asked.offers = [_offer_id(asked, kind)]
            return partial(self._pass_on, kind, record, asked)
        asked.offers = [_offer_id(asked, app) for app in meant]
        return partial(self._offer, record, _placed(record), asked, meant)

    async def _to_its_end(self, record: Record, asked: Asked | None, work: Work) -> None:
        """One command must not keep others from being dispatched, whatever is in it."""
        try:
            await work()
        except (RecordInvalid, IdConflict, QueueFull) as error:
            log.warning("command %s cannot be dispatched: %s", record.id, error)
            await self._keep(record, str(error))
            if asked is not None:
                await self._refuse(record.data["payload"], asked, words.refusal(str(error), "NOT_TAKEN"))

    async def _too_late(self, record: Record, message: dict[str, Any], asked: Asked) -> None:
        text = f"it waited for longer than {asked.within:g} s before it could be offered to a petal"
        await self._keep(record, text)
        await self._refuse(message, asked, words.refusal(text, "DEADLINE_EXPIRED"))

    async def _pass_on(self, kind: str, record: Record, asked: Asked) -> None:
        """To ourselves, as work of our own inbox: it takes longer than others may wait for."""
        # as text: one level deeper it might be nested too deeply
        data = {"record": orjson.dumps(_placed(record)).decode(), "asked": asked.encode().decode()}
        await self._send(self._bus.app, kind, data, asked, asked.offers[0])

    async def _decide_later(self, record: Record) -> None:
        """Wait until the petals are there, or for so long that it is time to decide without them."""
        data, asked = _passed_on(record)
        message = data["payload"]
        until = time.monotonic() + min(_LOADING_S, max(0.0, asked.within - asked.age))
        while (meant := self._meant(asked, await self._takers())) is None and time.monotonic() < until:  # noqa: ASYNC110  # a rare look
            await asyncio.sleep(_LOADING_LOOK_S)
        asked.offers = [_offer_id(asked, app) for app in meant or ()]
        if meant and message.get("waitResponse"):
            await self.waiting.add(asked)
        await self._offer(record, data, asked, meant or [])

    async def _offer(self, record: Record, data: dict[str, Any], asked: Asked, apps: Collection[str]) -> None:
        message = data["payload"]
        if not apps:
            await self._refuse(message, asked, unknown_command(asked.command, await self._known_commands()))
            return
        problems = []
        for app, name in zip(apps, asked.offers, strict=True):
            try:
                # a key of its own: commands begin in order, and one that takes long holds up no other
                receipt = await self._send(app, words.COMMAND, data, asked, name, key=name)
            except (RecordInvalid, IdConflict, QueueFull) as error:
                problems.append(f"it cannot be offered to {app}: {error}")
                await self._keep(record, problems[-1])
                continue
            self.offered += not receipt.duplicate
            self.repeated += receipt.duplicate
        if len(problems) == len(apps):
            await self._refuse(message, asked, words.refusal(problems[0], "NOT_TAKEN"))

    async def _send(
        self, app: str, kind: str, data: dict[str, Any], asked: Asked, name: str, *, key: str | None = None
    ) -> Receipt:
        """Raises RecordInvalid, IdConflict, QueueFull, BusUnavailable, BusFull."""
        levels = [Priority.NORMAL, Priority.CRITICAL]
        if self._urgent(asked.command):
            levels.reverse()
        left = max(0.001, asked.within - asked.age)
        send = partial(self._bus.send, app, kind, data, id=name, key=key, deadline=left)
        try:
            return await send(priority=levels[0])
        except IdConflict:
            # its priority is a part of its identity, and was another one before the program or its settings changed:
            # it is the same command, and has had its turn
            return await send(priority=levels[1])

    def _meant(self, asked: Asked, takers: Mapping[str, list[str] | None]) -> list[str] | None:
        """The apps to which a command is offered; None while that cannot be said."""
        own = [app for app, commands in takers.items() if commands is not None and asked.command in commands]
        if own:
            return own
        prefix = asked.command.split("/", 1)[0]
        installed = self._installed()
        if prefix in takers or (APP_RULE.match(prefix) and prefix in (installed or ())):
            return [prefix]
        if installed is None:
            return None
        asked.stray = True
        return sorted(app for app, commands in takers.items() if commands is None)

    async def _takers(self) -> dict[str, list[str] | None]:
        reply = await self._bus.ask("HGETALL", words.handlers_key(self._bus.keys))
        found: dict[str, list[str] | None] = {}
        for app, raw in words.hash_items(reply):
            try:
                commands = orjson.loads(raw)
            except ValueError:
                commands = None
            found[app.decode()] = commands if isinstance(commands, list) else None
        self.takers = len(found)
        return found

    async def _known_commands(self) -> list[str]:
        takers = await self._takers()
        return sorted({*self._built_in, *(command for commands in takers.values() for command in commands or ())})

    async def _run_built_in(self, record: Record) -> None:
        data, asked = _passed_on(record)
        message = data["payload"]
        if message.get("waitAck") and self._acknowledge is not None:
            await self._acknowledge(asked.device, asked.message_id)
        try:
            told = await self._built_in[asked.command](message)
        except Exception as error:
            log.exception("built-in command %s failed", asked.command)
            told = words.refusal(f"{type(error).__name__}: {error}", "HANDLER_ERROR")
        if message.get("waitResponse"):
            await self._respond(asked.device, asked.message_id, told, name=asked.name)

    async def _refuse(self, message: dict[str, Any], asked: Asked, data: dict[str, Any]) -> None:
        self.refused += 1
        log.warning("command %s (%s) is refused: %s", asked.command, asked.message_id, data["error"])
        if message.get("waitResponse"):
            try:
                await self._respond(asked.device, asked.message_id, data, name=asked.name)
            except (RecordInvalid, IdConflict, QueueFull) as error:
                log.warning("the sender of command %s cannot be answered: %s", asked.message_id, error)
            self.waiting.answered(asked.key)

    async def _keep(self, record: Record, reason: str) -> None:
        log.warning("a message on a command topic is kept in %s: %s", words.INVALID, reason)
        text = orjson.dumps(record.data).decode()[:KEPT_CHARS]
        kept = {"reason": reason, "topic": record.data.get("topic"), "text": text, "id": record.id}
        await self._bus.publish(words.INVALID, words.INVALID, kept, id=bus_id(f"{record.id}@{words.INVALID}"))


def _always(_record: Record) -> bool:
    return True


def _offer_id(asked: Asked, app: str) -> str:
    return bus_id(f"{asked.name or asked.message_id}@{app}")


def _placed(record: Record) -> dict[str, Any]:
    """A command's data, with its place in the topic: of two commands everybody can tell which one came first."""
    return {**record.data, "place": record.stream_id}


def _passed_on(record: Record) -> tuple[dict[str, Any], Asked]:
    data: dict[str, Any] = orjson.loads(record.data["record"])
    return data, Asked.decode(str(data["payload"].get("messageId")), record.data["asked"].encode())


def _asked(record: Record, message: dict[str, Any], within: float) -> Asked:
    expiry, waited = _number(record.data.get("expiry")), _number(record.data.get("waited"))
    return Asked(
        message_id=str(message.get("messageId", record.id)),
        device=words.device_of(str(record.data["topic"])) or "",
        command=str(message["command"]),
        arrived_ns=boot_clock_ns() - round((_age(record) + (waited or 0.0)) * 1e9),
        within=within if expiry is None else min(within, expiry),
        name=record.id if record.data.get("reused") is True else None,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _age(record: Record) -> float:
    """Seconds since it was recorded; by the wall clock where it was in another boot."""
    if record.mono is not None and record.boot_id == BOOT_ID:
        return (boot_clock_ns() - record.mono) / 1e9
    stored_ms = int((record.stream_id or "0").partition("-")[0])
    return max(0.0, time.time() - stored_ms / 1000)
