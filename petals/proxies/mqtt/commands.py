"""Command handlers of petals: each petal's commands come through its own inbox, so none delays another's.

A command that a crash interrupted is not run a second time: whether it took effect is unknown, and it is left as a dead
letter for a person.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mqtt.words import COMMAND, COMMANDS_AT_ONCE, STOPPED, handlers_key, mirrored, place_of
from petalbus.petals.base import Petal
from petalbus.petals.exits import contained
from petalbus.petals.heavy import overtaking, run_heavy
from petalbus.petals.owner import acting, is_of
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

log = logging.getLogger("MQTTProxy")

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
_LOOK_S: Final = 0.1
_AGAIN_S: Final = 0.5
_MOST_SENDERS: Final = 4096
_FADES_NS: Final = 120 * 10**9
"""A stop undoes nothing that was offered so long after it: the bus's server may have come back without its data, and
with a clock that is behind."""


class Commands:
    """Who takes commands, by the bus client through which they come."""

    def __init__(self, own_bus: Callable[[], Awaitable[Bus]], *, may_run: Callable[[], bool] = lambda: True) -> None:
        """``may_run``: False while petals could do nothing with a command; it waits then, until its deadline."""
        self._own_bus = own_bus
        self._may_run = may_run
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self._buses: dict[str, Bus] = {}
        self._served: dict[int, list[str]] = {}
        self._next = itertools.count(1).__next__
        self._senders: OrderedDict[str, str] = OrderedDict()
        self._registered_by: dict[str, object | None] = {}
        self._joining: set[asyncio.Task[None]] = set()

    def add(self, handler: Handler, *, cpu_heavy: bool) -> str:
        """Register a handler; its id, at once. Raises TypeError when it is not async."""
        if not inspect.iscoroutinefunction(handler):
            raise TypeError(f"an MQTT command handler must be 'async def', {handler!r} is not")
        name = f"handler-{self._next()}"
        self._handlers[name] = (handler, cpu_heavy)
        self._registered_by[name] = acting()
        return name

    def join(self, name: str) -> None:
        """Connect a handler that was added to the inbox it is served from. On the proxy's loop."""
        task = asyncio.create_task(self._keep_joining(name), name=f"mqtt-{name}")
        self._joining.add(task)
        task.add_done_callback(self._joined)

    def join_all(self) -> None:
        """Connect all handlers that were added so far."""
        for name in self._handlers:
            if name not in self._buses:
                self.join(name)

    def remove(self, name: str) -> bool:
        """Forget a handler; False when there is none of that id."""
        if self._handlers.pop(name, None) is None:
            return False
        del self._registered_by[name]
        bus = self._buses.pop(name, None)
        if bus is not None:
            served = self._served[id(bus)]
            served.remove(name)
            if not served:
                del self._served[id(bus)]
                bus.off(COMMAND)
                task = asyncio.create_task(self._leave(bus), name=f"mqtt-leave-{bus.app}")
                self._joining.add(task)
                task.add_done_callback(self._joined)
        return True

    def remove_of(self, owner: object) -> int:
        """Forget the handlers of a petal; how many there were."""
        theirs = [name for name, (one, _) in self._handlers.items() if is_of(owner, one, self._registered_by[name])]
        return sum(self.remove(name) for name in theirs)

    async def settled(self) -> None:
        """Wait until all that were added so far are connected."""
        while self._joining:
            await asyncio.wait(self._joining)

    async def stop(self) -> None:
        """Forget all handlers."""
        for name in list(self._handlers):
            self.remove(name)
        await self.settled()

    @property
    def count(self) -> int:
        """Handlers registered."""
        return len(self._handlers)

    async def _keep_joining(self, name: str) -> None:
        joined = False
        while not joined and name in self._handlers:
            try:
                await self._join(name)
                joined = True
            except BusError as error:
                log.warning("MQTT commands do not reach %s yet: %s", name, error)
                await asyncio.sleep(_AGAIN_S)

    async def _join(self, name: str) -> None:
        handler, _ = self._handlers[name]
        bus = await self._bus_of(handler)
        if name not in self._handlers:
            return
        if name in self._buses:  # only telling it failed the last time
            await self._declare(bus, self._served[id(bus)])
            return
        self._buses[name] = bus
        served = self._served.setdefault(id(bus), [])
        served.append(name)
        if len(served) == 1:
            bus.on(COMMAND, redelivery="report", concurrency=COMMANDS_AT_ONCE)(self._serving(served, bus.app))
            await bus.listen()
        await self._declare(bus, served)

    async def _declare(self, bus: Bus, served: list[str]) -> None:
        """Say which commands are taken: null where a handler takes any, and decides by itself."""
        known: set[str] | None = set()
        for handler, _ in [self._handlers[name] for name in served if name in self._handlers]:
            commands = _commands_of(handler)
            known = None if known is None or commands is None else known | commands
        told = orjson.dumps(None if known is None else sorted(known))
        await bus.call("HSET", handlers_key(bus.keys), bus.app, told)

    async def _bus_of(self, handler: Handler) -> Bus:
        """The petal's own client where the handler is a petal's method, else the proxy's."""
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, Petal):
            try:
                return owner.bus
            except RuntimeError:  # it has none (yet)
                log.debug("petal %s has no client of the bus; its commands come through the proxy's", owner.name)
        return await self._own_bus()

    async def _leave(self, bus: Bus) -> None:
        await bus.call("HDEL", handlers_key(bus.keys), bus.app)

    def _joined(self, task: asyncio.Task[None]) -> None:
        self._joining.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("MQTT commands do not reach a handler: %s", task.exception())

    def _note_sender(self, topic: str, message: dict[str, Any]) -> None:
        parts = topic.split("/", 2)
        if len(parts) == 3 and parts[0] == "org":
            self._senders[str(message.get("messageId"))] = parts[1]
            if len(self._senders) > _MOST_SENDERS:
                self._senders.popitem(last=False)

    def organization_of(self, message_id: str) -> str | None:
        """The organisation under which a command came; None where that is not known (any more)."""
        return self._senders.get(str(message_id))

    async def _until_it_may_run(self, record: Record) -> None:
        if not self._may_run():
            log.warning("command %s waits: the organisation is not known", record.data["payload"].get("command"))
        while not self._may_run():
            if record.expired(boot_clock_ns()):
                text = "the deadline passed while the organisation was not known; the command was not run"
                raise HandlerError(text, error_code="DEADLINE_EXPIRED")
            await asyncio.sleep(_LOOK_S)

    def _serving(self, served: list[str], app: str) -> Callable[[Record], Awaitable[None]]:
        stop = _LatestStop()

        async def command(record: Record) -> None:
            stop.note(record)
            await self._until_it_may_run(record)
            stop.check(record)
            topic, message = record.data["topic"], mirrored(record.data["payload"])
            self._note_sender(topic, message)
            failure: Exception | None = None
            for handler, heavy in [self._handlers[name] for name in served]:
                copy = dict(message)  # one that changes it must not change it for the others
                try:
                    with contained(), overtaking(app, urgent=record.priority is Priority.CRITICAL):
                        await (run_heavy(handler, topic, copy) if heavy else handler(topic, copy))
                except Exception as error:  # noqa: BLE001  # raised below, when the others have had their turn
                    failure = failure or error
            if failure is not None:
                raise failure

        return command


class _LatestStop:
    """What came before a stop and has not begun must not undo it. Of this process: what a restart forgets has a
    deadline of its own.
    """

    def __init__(self) -> None:
        self._place = (0, 0)
        self._noted_ns = 0

    def note(self, record: Record) -> None:
        """A command is about to begin."""
        place = place_of(record.data)
        if record.priority is Priority.CRITICAL and place is not None and not self._is_before(place, record):
            self._place, self._noted_ns = place, boot_clock_ns()

    def check(self, record: Record) -> None:
        """Raises HandlerError for one that came before the stop."""
        place = place_of(record.data)
        if record.priority is not Priority.CRITICAL and place is not None and self._is_before(place, record):
            text = f"a stop came after {record.data['payload'].get('command')}, which had not begun; it is not run"
            raise HandlerError(text, error_code=STOPPED)

    def _is_before(self, place: tuple[int, int], record: Record) -> bool:
        """Places are by the clock of the bus's server: of what was offered long after the stop they say nothing."""
        same_boot = record.mono is not None and record.boot_id == BOOT_ID
        offered = record.mono if record.mono is not None and same_boot else boot_clock_ns()
        return place < self._place and offered < self._noted_ns + _FADES_NS


def _commands_of(handler: Handler) -> set[str] | None:
    """The commands that a handler takes; None: any, for all that is known."""
    owner = getattr(handler, "__self__", None)
    if isinstance(owner, Petal) and getattr(handler, "__func__", None) is Petal._mqtt_master_command_handler:
        return set(owner._mqtt_command_handlers or ())
    return None
