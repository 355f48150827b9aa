"""The MQTT handler of the daemon: what the broker brings becomes records, records become messages to the broker.

transport -> Ingress -> topic mqtt.rx -> CommandDispatch -> inboxes of the petals
inboxes of the apps mqtt, mqtt.telemetry -> Egress -> transport
who we are, which topics are wanted -> transport.want; how the link is -> hash {bus}:mqtt:link, topic mqtt.state
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.options import SOLE_HEARTBEAT
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.dispatch import BuiltIn, CommandDispatch, Installed
from petalbus.handlers.mqtt.egress import Egress
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.ours import Ours
from petalbus.handlers.mqtt.transport import Identity, Incoming, LinkState, Phase, Transport
from petalbus.handlers.mqtt.wishes import Wishes
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

_MANY_ATTEMPTS: Final = 1_000_000
_COMMAND_WORKERS: Final = 64
"""Commands whose petal is still to be loaded wait in them."""
_LOOK_S: Final = 10.0
"""Wishes for topics are told; this look is for those whose telling was lost."""


class WhoWeAre(Protocol):
    """Tells the organisation and the device, and when they change."""

    def identity(self) -> Identity:
        """As it is known now."""

    async def changed(self) -> None:
        """Wait until it is another one."""


class MqttHandler:
    """Run it as ``async with MqttHandler(...) as handler: await handler.run()``.

    It has three clients of the bus: the apps ``mqtt``, ``mqtt.telemetry`` and ``mqtt.commands``.
    """

    def __init__(
        self,
        connect: Callable[[str], Bus],
        transport: Transport,
        *,
        who: WhoWeAre,
        options: MqttOptions | None = None,
        installed: Installed = lambda: (),
        built_in: Mapping[str, BuiltIn] | None = None,
    ) -> None:
        """``connect`` makes a client of the bus for an app."""
        self.options = options = options or MqttOptions()
        self.transport = transport
        self.bus = bus = connect(words.APP)
        """The client of the app ``mqtt``."""
        self._bus = bus
        self._telemetry = connect(words.TELEMETRY)
        self._commands = connect(words.COMMANDS)
        self._who = who
        self._ours = Ours(options)
        self.dispatch = CommandDispatch(
            self._commands,
            respond=self._respond,
            acknowledge=self._acknowledge,
            installed=installed,
            built_in=built_in,
            deadline=options.command_deadline,
            for_us=self._ours.are_from,
            here=self._ours.is_here,
            urgent=options.is_urgent,
        )
        self.ingress = Ingress(
            bus,
            options,
            respond=self._respond,
            for_us=self._ours.are_from,
            watched=self.dispatch.waiting.watches,
        )
        self.egress = Egress(transport, options.egress, answers=self.dispatch.waiting, response=options.response)
        self.filters: dict[str, int] = {}
        """Topic filters that are wanted, with their quality of service."""
        self._look = asyncio.Event()
        self.wishes = Wishes(bus, options.egress, changed=self._look.set, installed=installed)
        self._state = LinkState()
        self._tell = asyncio.Event()
        self._since_ns = boot_clock_ns()
        self._stack = AsyncExitStack()
        self._later_leaves = False

    # -- what the transport calls -------------------------------------------------------------------------------------

    async def received(self, message: Incoming) -> None:
        """See Receiver."""
        if not self.egress.is_echo(message.topic, message.payload):
            await self.ingress.received(message)

    async def invalid(self, topic: str, raw: bytes, reason: str) -> None:
        """Something came that is no message; it is kept. Raises BusError."""
        await self.ingress.invalid(topic, raw, reason)

    def link_changed(self, state: LinkState) -> None:
        """See Receiver."""
        if state.connected != self._state.connected:
            self._since_ns = boot_clock_ns()
            self.egress.link_changed(connected=state.connected)
        self._state = state
        self._tell.set()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        held = self.options.egress.held
        for bus in (self._bus, self._telemetry):
            # its handlers wait for the broker, they do not compute
            bus.options = replace(bus.options, workers=held, sole=True, heartbeat=SOLE_HEARTBEAT)
            self._take(bus, words.PUBLISH)
            bus.hold(words.LATER)
        self._commands.options = replace(
            self._commands.options, workers=_COMMAND_WORKERS, sole=True, heartbeat=SOLE_HEARTBEAT
        )
        self._commands.on(words.FILTERS, overtakes=lambda _record: True)(self._on_filters)
        self.dispatch.register()
        for bus in (self._bus, self._telemetry, self._commands):
            await bus.start()
            self._stack.push_async_callback(bus.close)
        return self

    def _take(self, bus: Bus, kind: str) -> None:
        on = bus.on(
            kind,
            redelivery="rerun",
            concurrency=None,
            max_attempts=_MANY_ATTEMPTS,  # that the daemon was restarted is no reason to give a message up
            overtakes=lambda _record: True,
        )
        on(self.egress.take)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._say(LinkState(Phase.OFF, reason="the daemon has stopped"))
        except BusError as problem:
            log.info("that the MQTT link is closed could not be told: %s", problem)
        await self._stack.aclose()

    async def run(self) -> None:
        """Until cancelled. Raises what no further attempt can mend."""
        last = await self._bus.ask("GET", words.organization_key(self._bus.keys))
        self._ours.last = last.decode() if last else None
        await self._follow()
        async with asyncio.TaskGroup() as tasks:
            for name, work in (
                ("link", self.transport.run(self)),
                ("egress", self.egress.run()),
                ("dispatch", self.dispatch.run()),
                ("identity", self._watch_identity()),
                ("filters", self._watch_filters()),
                ("wishes", self.wishes.run()),
                ("state", self._tell_state()),
            ):
                tasks.create_task(work, name=f"mqtt.{name}")

    def statistics(self) -> dict[str, Any]:
        """The link's state and counters, what came in, what goes out, commands."""
        state = self._state
        return {
            "transport": self.transport.name,
            "connected": state.connected,
            "phase": state.phase.value,
            "problem": state.problem,
            "reason": state.reason,
            "code": state.code,
            "since_s": round((boot_clock_ns() - self._since_ns) / 1e9, 1),
            "organization": self._ours.identity.organization,
            "device": self._ours.identity.device,
            "filters": dict(self.filters),
            "wishes": self.wishes.statistics(),
            "link": self.transport.describe(),
            "in": self.ingress.statistics(),
            "out": self.egress.statistics(),
            "commands": self.dispatch.statistics(),
        }

    # -- who we are, and what is wanted -------------------------------------------------------------------------------

    async def _watch_identity(self) -> None:
        while True:
            await self._who.changed()
            self._look.set()

    async def _on_filters(self, _record: Record) -> None:
        self._look.set()

    async def _watch_filters(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._follow()
            except BusError as error:
                log.warning("wanted MQTT topics cannot be read now: %s", error)

    async def _follow(self) -> None:
        """Tell the transport and the outbox who we are and what is wanted, where that has changed."""
        identity = self._who.identity()
        filters = self._own_filters(identity)
        wished = await self.wishes.read()
        if identity.organization and identity.organization != self._ours.last:
            await self._bus.ask("SET", words.organization_key(self._bus.keys), identity.organization)
            self._ours.last = identity.organization
        for name, qos in wished.items():
            filters[name] = max(filters.get(name, 0), qos)
        self._expect_echoes(identity, wished)
        if (identity, filters) == (self._ours.identity, self.filters):
            return
        self._let_later_leave(bool(identity.organization and identity.device))
        self._ours.become(identity)
        self.filters = filters
        self.egress.follow(identity)
        self.transport.want(filters, identity)
        self._tell.set()

    def _expect_echoes(self, identity: Identity, wished: Mapping[str, int]) -> None:
        """Our own responses come back. Nobody hears them again, unless an app here listens to that topic."""
        topic = _topic_of(identity, self.options.response)
        listened = topic is not None and any(words.matches(wish, topic) for wish in wished)
        self.egress.expect_echoes(() if topic is None or listened else (topic,))

    def _let_later_leave(self, known: bool) -> None:  # noqa: FBT001  # a condition
        """What was stored without an organisation waits in the inbox, where it holds up nothing else."""
        if known == self._later_leaves:
            return
        self._later_leaves = known
        for bus in (self._bus, self._telemetry):
            if known:
                self._take(bus, words.LATER)
            else:
                bus.off(words.LATER)
                bus.hold(words.LATER)

    def _own_filters(self, identity: Identity) -> dict[str, int]:
        if not identity.organization or not identity.device:
            return {}
        base = words.base_topic(identity.organization, identity.device)
        ends = (self.options.command_edge, self.options.command_plain, self.options.response)
        return {f"{base}/{end}": 1 for end in ends}

    # -- answers of our own -------------------------------------------------------------------------------------------

    async def _respond(self, device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        """See Respond: answer for a petal that does not."""
        head = {"messageId": message_id, "phase": "result", "timestamp": words.stamp()}
        topic = f"{device}/{self.options.response}"
        await self._store(topic, {**head, **data}, f"{name or message_id}@mqtt.answer", aside=name is not None)

    async def _acknowledge(self, device: str, message_id: str) -> None:
        told = {"messageId": message_id, "phase": "ack", "ackType": "service-received", "service": "petalbus"}
        await self._store(f"{device}/{words.ACK}", {**told, "timestamp": words.stamp()}, f"{message_id}@mqtt.ack")

    async def _store(self, topic: str, payload: dict[str, Any], name: str, *, aside: bool = False) -> None:
        data = {"topic": topic, "payload": {**payload, "deviceId": topic.split("/")[3]}, "qos": 1}
        if aside:
            data["aside"] = True
        await self._bus.send(words.APP, words.PUBLISH, data, id=bus_id(name), priority=Priority.HIGH)

    # -- how the link is ----------------------------------------------------------------------------------------------

    async def _tell_state(self) -> None:
        told: LinkState | None = None
        while True:
            try:
                async with asyncio.timeout(words.TOLD_S):
                    await self._tell.wait()
            except TimeoutError:
                pass
            self._tell.clear()
            try:
                await self._say(self._state)
                if self._state != told:
                    told = self._state
                    await self._bus.publish(words.STATE, words.STATE, _described(told))
            except BusError as error:
                log.info("the state of the MQTT link could not be told: %s", error)

    async def _say(self, state: LinkState) -> None:
        out, link = self.egress.statistics(), self.transport.describe()
        fields: dict[str, Any] = {
            **_described(state),
            "transport": self.transport.name,
            "organization": self._ours.identity.organization,
            "device": self._ours.identity.device,
            "topics": ",".join(sorted(self.filters)),
            "command_topic": _topic_of(self._ours.identity, self.options.command_edge),
            "response_topic": _topic_of(self._ours.identity, self.options.response),
            "outbox": out["waiting"],
            "oldest_s": out["oldest_s"],
            "round_trip_ms": link.get("round_trip_ms"),
            "in_flight": link.get("in_flight"),
            "window": link.get("window"),
            "since_ns": self._since_ns,
            "told_ns": boot_clock_ns(),
            "boot_id": BOOT_ID,
        }
        flat = [part for name, value in fields.items() for part in (name, "" if value is None else value)]
        await self._bus.ask("HSET", words.link_key(self._bus.keys), *flat)


def _topic_of(identity: Identity, end: str) -> str | None:
    """A topic of this device; None while we do not know who we are."""
    if not identity.organization or not identity.device:
        return None
    return f"{words.base_topic(identity.organization, identity.device)}/{end}"


def _described(state: LinkState) -> dict[str, Any]:
    told = {"connected": int(state.connected), "phase": state.phase.value, "problem": state.problem or ""}
    return {**told, "reason": state.reason, "code": "" if state.code is None else state.code}
