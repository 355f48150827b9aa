"""One life of a petal: from its class to a running petal, and back, in the order of the contract.

The runtime and the test kit both go through here, so what works in a test works in the daemon.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from petalbus.daemon.bus.keys import checked_name
from petalbus.handlers.mqtt.words import COMMAND
from petalbus.petals.actions import record_actions
from petalbus.petals.base import Petal
from petalbus.petals.exits import contained
from petalbus.petals.owner import acting_for
from petalbus.petals.records import Ended, register

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.petals.proxies.base import BaseProxy

log = logging.getLogger(__name__)


class PetalNotStarted(RuntimeError):
    """A petal cannot be started; the message says why. ``missing``: proxies that it requires and that are not there."""

    code = "petal_not_started"

    def __init__(self, message: str, *, missing: tuple[str, ...] = ()) -> None:
        self.missing = missing
        super().__init__(message)


P = TypeVar("P", bound=Petal)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What the place where a petal lives adds. All of it may be left out."""

    needs: tuple[str, ...] = ()
    """Proxies that the installation says the petal needs, beside those that it says itself."""

    templates: Callable[[Petal], Mapping[str, Any]] | None = None
    """Makes what ``inject_templates`` gets; called in a thread where the petal has a ``template_dir``."""

    routes: Callable[[Petal], Awaitable[None]] | None = None
    """Serves its HTTP routes, once ``startup`` has run."""

    timeout: float | None = None
    """Seconds that a handler may run where ``on`` says nothing; None for no limit."""

    ended: Ended | None = None
    """Told of each run of a handler."""


class PetalHost(Generic[P]):
    """Starts one petal and stops it. ``connect`` makes a client of the bus for an app."""

    def __init__(
        self,
        petal: type[P],
        proxies: Mapping[str, BaseProxy],
        connect: Callable[[str], Bus],
        *,
        options: HostOptions | None = None,
    ) -> None:
        self.petal: P = petal()
        self._proxies = proxies
        self._connect = connect
        self._options = options or HostOptions()
        self._bus: Bus | None = None
        self._mqtt_is_set_up = False
        self._setting_up = asyncio.Lock()

    @property
    def needs(self) -> tuple[str, ...]:
        """All proxies without which it is not started."""
        return tuple(dict.fromkeys((*self.petal.get_required_proxies(), *self._options.needs)))

    @property
    def bus(self) -> Bus | None:
        """The petal's client, while it lives."""
        return self._bus

    async def start(self) -> None:
        """Through ``async_startup``, then the inbox is served.

        Raises PetalNotStarted, and what the petal raises; nothing is left running then.
        """
        petal = self.petal
        checked_name(petal.name, what="petal name")
        petal.inject_proxies(self._proxies)
        self._require()
        bus = self._bus = petal._bus = self._connect(petal.name)
        await bus.start()
        try:
            with acting_for(petal), contained():
                await self._start(petal, bus)
        except BaseException:
            self._bus = None
            self._forget()
            await bus.close()
            raise

    async def _start(self, petal: P, bus: Bus) -> None:
        if self._options.templates is not None and petal.template_dir:
            petal.inject_templates(await asyncio.to_thread(self._options.templates, petal))
        await _finish(petal.startup())
        actions = record_actions(petal)
        if self._options.routes is not None:
            await self._options.routes(petal)
        petal._loop = asyncio.get_running_loop()
        await self.set_up_mqtt()
        if (set_up_cloud := getattr(petal, "_setup_cloud", None)) is not None:
            await _finish(set_up_cloud())
        await petal.async_startup()
        if self._wants_mqtt():
            bus.hold(COMMAND)  # a command waits until MQTT is set up: the organisation may not be known yet
        for action in actions:
            register(bus, action, timeout=self._options.timeout, ended=self._options.ended)
        if actions:
            await bus.listen()

    async def stop(self) -> None:
        """Serve the inbox no more, ``async_shutdown``, ``shutdown``, close the client. Raises what the petal raises."""
        bus, self._bus = self._bus, None
        if bus is None:
            return
        try:
            await bus.stop_listening()
            with contained():
                try:
                    await _finish(self.petal.async_shutdown())
                finally:
                    await _finish(self.petal.shutdown())
        finally:
            self._forget()
            await bus.close()

    async def set_up_mqtt(self) -> None:
        """Connect the petal to MQTT, once, as soon as the organisation is known. Raises what the petal raises."""
        petal: Any = self.petal
        mqtt = self._proxies.get("mqtt")
        async with self._setting_up:
            if self._mqtt_is_set_up or mqtt is None or getattr(mqtt, "organization_id", None) is None:
                return
            if not self._wants_mqtt():
                return
            with acting_for(petal), contained():
                await self._set_up_topics(petal)
            self._mqtt_is_set_up = True

    def _wants_mqtt(self) -> bool:
        petal = self.petal
        named = "mqtt" in (*self.needs, *petal.get_optional_proxies())
        return bool(petal.use_mqtt_proxy or named or petal.has_mqtt_actions())

    async def _set_up_topics(self, petal: Any) -> None:
        if (set_up_topics := getattr(petal, "_setup_mqtt_topics", None)) is not None:
            await _finish(set_up_topics())
        if petal.has_mqtt_actions() and petal._mqtt_actions_id is None:
            await petal._setup_mqtt_actions()

    def _require(self) -> None:
        missing = tuple(name for name in self.needs if self.petal.get_proxy(name) is None)
        if missing:
            there = ", ".join(sorted(self._proxies)) or "none"
            text = f"petal {self.petal.name!r} requires the proxies {', '.join(missing)}; there are: {there}"
            raise PetalNotStarted(text, missing=missing)

    def _forget(self) -> None:
        """What the petal has left registered at proxies ends with it: nothing may call an instance that has stopped."""
        for name, proxy in self._proxies.items():
            forget = getattr(proxy, "forget", None)
            if forget is not None and (left := forget(self.petal)):
                log.debug("petal %s left %d registrations at proxy %s", self.petal.name, left, name)


async def _finish(result: Awaitable[Any] | Any) -> None:
    """Methods of petals may be plain or async."""
    if inspect.isawaitable(result):
        await result
