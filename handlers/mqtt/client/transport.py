"""The transport: looks whether the client program is there, subscribes, and notices when it is not any more.

absent -> probes, further and further apart -> healthy -> subscribed -> connected -> a failure of anything -> again
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mqtt.client.api import ClientApi, NotDone
from petalbus.handlers.mqtt.client.callbacks import Callbacks
from petalbus.handlers.mqtt.client.filters import Filters
from petalbus.handlers.mqtt.client.http import NoAnswer
from petalbus.handlers.mqtt.client.lanes import WINDOW, Lanes
from petalbus.handlers.mqtt.client.refusals import Refusals
from petalbus.handlers.mqtt.client.watch import Watch
from petalbus.handlers.mqtt.transport import Identity, LinkLost, LinkState, Outgoing, Phase, PublishRefused

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.options import ClientOptions
    from petalbus.handlers.mqtt.transport import Receiver

log = logging.getLogger(__name__)

_LEAVING: Final = 2.0
"""Seconds that unsubscribing may take at the end."""


class _Away(Exception):
    """The client program does not serve us now."""

    def __init__(self, problem: str, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.state = LinkState(Phase.WAITING, problem, reason, code)


class ClientTransport:
    """A Transport. ``callbacks`` takes what arrives: serve it with ``callback_routes``."""

    name = "client"

    def __init__(self, options: ClientOptions, callbacks: Callbacks | None = None) -> None:
        self.state = LinkState()
        self.callbacks = callbacks if callbacks is not None else Callbacks(options)
        self._options = options
        self._api = ClientApi(options)
        self._filters = Filters(self._api)
        self.callbacks.subscriptions = lambda: len(self._filters.placed)
        self.callbacks.known = lambda: self._identity.device is not None
        self._lanes = Lanes(self._send, self._broken)
        self._refusals = Refusals()
        self._watch = Watch(self._api.http, self._ended)
        self._identity = Identity()
        self._receiver: Receiver | None = None
        self._poke = asyncio.Event()
        self._failure: _Away | None = None
        self._restarted = False
        self._has_new_wish = False
        self._proved = False
        """Something was published, or a while passed, since the connection: the next failure begins a new series."""
        self._round_trip: float | None = None
        self._probe: float | None = None
        self._connects = 0
        self._published = 0
        self._failures = 0

    # -- the interface ------------------------------------------------------------------------------------------------

    async def run(self, receiver: Receiver) -> None:
        """Connect, and connect again, until cancelled; then unsubscribe, as far as that is possible at once."""
        self._receiver = self.callbacks.receiver = receiver
        delay = self._options.retry_first / 2
        try:
            while True:
                try:
                    await self._connect()
                    async with self._watch.while_connected():
                        await self._stay()
                except _Away as away:
                    delay = self._options.retry_first if self._proved else min(2 * delay, self._options.retry_most)
                    self._proved = False
                    self._lanes.shut(away.state.reason)
                    self._tell(away.state)
                await asyncio.sleep(delay)
        finally:
            await self._leave()

    def want(self, filters: Mapping[str, int], identity: Identity) -> None:
        """As ``Transport.want``. The quality of service of a filter is the client program's business."""
        self._identity = identity
        self._filters.want(filters)
        self._has_new_wish = True
        self._poke.set()

    async def room(self) -> None:
        """As ``Transport.room``."""
        await self._lanes.room()

    def submit(self, message: Outgoing) -> asyncio.Future[int]:
        """As ``Transport.submit``: 0 when the client program said that it succeeded. Order is kept for each topic."""
        if message.retain:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            text = "the client program cannot publish retained messages; publish without, or use mqtt_transport direct"
            future.set_exception(PublishRefused(text))
            return future
        return self._lanes.put(message)

    def describe(self) -> dict[str, Any]:
        """State and counters. Times are milliseconds."""
        return {
            "transport": self.name,
            "client": f"{self._options.host}:{self._options.port}",
            "phase": str(self.state.phase),
            "problem": self.state.problem,
            "reason": self.state.reason,
            "code": self.state.code,
            "window": WINDOW,
            "in_flight": self._lanes.in_flight,
            "round_trip_ms": _ms(self._round_trip),
            "probe_ms": _ms(self._probe),
            "reconnects": max(0, self._connects - 1),
            "published": self._published,
            "publish_failures": self._failures,
            "filters": self._filters.describe(),
            "callbacks": self.callbacks.statistics(),
        }

    # -- the state machine --------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        self._failure = None
        self._restarted = False
        await self._look()
        self._tell(LinkState(Phase.CONNECTING))
        self._filters.forget_told()
        await self._follow(first=True)
        self._connects += 1
        self._lanes.open()

    async def _stay(self) -> None:
        now = time.monotonic()
        proved_at = now + self._options.retry_most
        probe_at, tell_at = now + self._options.probe_interval, now + self._options.resubscribe
        mend_after, mend_at = self._options.retry_first, now + self._options.retry_first
        while True:
            due = [probe_at, tell_at, *([mend_at] if self._filters.is_behind else [])]
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(due) - time.monotonic())):
                    await self._poke.wait()
            self._poke.clear()
            if self._failure is not None:
                raise self._failure
            now = time.monotonic()
            self._proved = self._proved or now >= proved_at
            if now >= probe_at or self._restarted:
                await self._look()
                probe_at = time.monotonic() + self._options.probe_interval
            if now >= tell_at or self._restarted:
                self._restarted = False
                self._filters.forget_told()
                tell_at = now + self._options.resubscribe
            if self._filters.has_changed or (self._filters.is_behind and now >= mend_at):
                changed = self._filters.has_changed
                await self._follow()
                mend_after = self._options.retry_first if changed else min(2 * mend_after, self._options.retry_most)
                mend_at = time.monotonic() + mend_after

    async def _look(self) -> None:
        """Raises _Away when the client program is not there or not well."""
        try:
            self._probe = await self._api.healthy()
        except NoAnswer as error:
            raise _absent(error) from None
        except NotDone as error:
            raise _Away("client_unhealthy", str(error), error.status) from None

    async def _follow(self, *, first: bool = False) -> None:
        """Subscribe what is wanted and not told yet, and unsubscribe the rest. Raises _Away."""
        if not self._options.enable_callbacks:
            self._filters.ignore()
        again, self._has_new_wish = self._has_new_wish, False
        try:
            refused = await self._filters.follow()
        except NoAnswer as error:
            raise _absent(error) from None
        state = LinkState(Phase.CONNECTED)
        if refused:
            topic, why = next(iter(refused.items()))
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            text = f"{topic!r} is not subscribed{more}, and tried again: {why}"
            if first and self._filters.none_told:
                raise _Away("subscriptions_refused", text, why.status)
            state = LinkState(Phase.CONNECTED, "subscription_refused", text, why.status)
        self._tell(state, again=again)

    def _tell(self, state: LinkState, *, again: bool = False) -> None:
        changed = state != self.state
        self.state = state
        if changed and state.phase is not Phase.CONNECTING:
            level = logging.WARNING if state.reason else logging.INFO
            if state.problem == "client_absent" and not self._options.expected:
                level = logging.DEBUG
            log.log(level, "the MQTT client program: %s", state.reason or state.phase.value)
        if (changed or again) and self._receiver is not None:
            self._receiver.link_changed(state)

    async def _leave(self) -> None:
        """End: no message is confirmed any more that is not stored, no filter stays without somebody behind it."""
        was_connected = self.state.connected
        await self._lanes.close("the link is being stopped")
        if was_connected and self._options.enable_callbacks:
            with suppress(NoAnswer, TimeoutError):
                async with asyncio.timeout(_LEAVING):
                    await self._filters.leave()
        self.callbacks.receiver = None
        await self._api.http.close()
        self._tell(LinkState())
        self._receiver = None

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def _send(self, message: Outgoing) -> int:
        began = time.monotonic()
        try:
            await self._api.publish(message, self._identity.device)
        except NotDone as error:
            self._refusals.refused(message.id, str(error), error.status)  # raises PublishRefused in the end
            raise LinkLost(str(error)) from error
        self._round_trip = time.monotonic() - began
        self._published += 1
        self._proved = True
        self._refusals.done(message.id)
        return 0

    def _broken(self, error: LinkLost) -> None:
        self._failures += 1
        cause = error.__cause__
        code = cause.status if isinstance(cause, NotDone) else None
        problem = "publish_failed" if code is not None else "client_absent"
        away = _Away(problem, f"{error}; messages wait until it works again", code)
        self._lanes.shut(away.state.reason)
        self._failure = away
        self._poke.set()

    def _ended(self) -> None:
        self._restarted = True
        self._poke.set()


def _absent(error: NoAnswer) -> _Away:
    return _Away("client_absent", f"{error}; is the MQTT client program started? (mqtt_client_host, mqtt_client_port)")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
