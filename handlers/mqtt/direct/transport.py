"""Keeps a connection to the broker up: connect, follow the filters, and again after a pause, for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Final

from petalbus.handlers.mqtt.direct.connection import Connection, first_of
from petalbus.handlers.mqtt.direct.errors import Failure, from_error, thrown_out
from petalbus.handlers.mqtt.direct.filters import Filters, Kept
from petalbus.handlers.mqtt.direct.inbox import Inbox
from petalbus.handlers.mqtt.direct.packets import Ack, Connack, Publish
from petalbus.handlers.mqtt.direct.suspects import Suspects
from petalbus.handlers.mqtt.direct.tls import make_context
from petalbus.handlers.mqtt.direct.window import Window
from petalbus.handlers.mqtt.options import DirectOptions
from petalbus.handlers.mqtt.transport import Identity, LinkState, Outgoing, Phase, Receiver

log = logging.getLogger(__name__)

STABLE: Final = 5.0
"""Seconds after which a connection counts as good: the next pause is short again."""

GRACE: Final = 1.0
"""Seconds that an orderly end may take for acknowledgements in both directions, and again for the goodbye."""

_SOON: Final = 5.0
"""Seconds after which the bus is asked again which filters the session holds."""

_LOOK_AGAIN: Final = 300.0
"""Seconds after which a filter that the broker refused is asked for again: policies change."""

_SHORT: Final = 60.0
_OFTEN: Final = 5
"""So many connections of less than so many seconds that end without a word are no accident any more."""

_NOBODY: Final = Failure("no-identity", "the device's id is not known yet: which commands are for us?")


class DirectTransport:
    """A Transport (see ``handlers.mqtt.transport``) that speaks MQTT itself."""

    name = "direct"

    def __init__(self, options: DirectOptions, *, kept: Kept | None = None) -> None:
        """``kept``: remembers over restarts which filters the broker's session holds."""
        self.state = LinkState()
        self._options = options
        self._suspects = Suspects()
        self._window = Window(options, self._suspects)
        self._inbox = Inbox()
        self._filters = Filters(kept)
        self._client_id: str | None = None
        self._other = asyncio.Event()
        self._receiver: Receiver | None = None
        self._connection: Connection | None = None
        self._thrown_out = 0
        self._shut_out = False
        self._attempts = 0
        self._connects = 0
        self._session_present = False
        self._round_trip: float | None = None
        self._greeted: dict[str, float] = {}

    async def run(self, receiver: Receiver) -> None:
        """Work until cancelled. Every failure is a state and another attempt; only the cancellation comes out."""
        self._receiver = receiver
        writer = asyncio.create_task(self._inbox.run(receiver), name="mqtt inbox")
        try:
            await self._keep_connected()
        finally:
            writer.cancel()
            await asyncio.wait({writer})
            self._tell(LinkState())

    def want(self, filters: Mapping[str, int], identity: Identity) -> None:
        """See Transport.want."""
        self._filters.want(filters)
        # before we know which device this is nothing can be told to be for us: the broker keeps it until then
        client_id = (identity.client_id or identity.device) if identity.device else None
        if client_id != self._client_id:
            self._client_id = client_id
            self._other.set()

    async def room(self) -> None:
        """See Transport.room."""
        await self._window.room()

    def submit(self, message: Outgoing) -> asyncio.Future[int]:
        """See Transport.submit."""
        return self._window.submit(message)

    def describe(self) -> dict[str, Any]:
        """State and counters; times in milliseconds."""
        connection = self._connection
        measured = self._round_trip if connection is None else connection.round_trip
        return {
            "phase": str(self.state.phase),
            "problem": self.state.problem,
            "reason": self.state.reason,
            "code": self.state.code,
            "client_id": self._client_id,
            "version": self._options.version,
            "tls": self._options.tls,
            "session_present": self._session_present,
            "attempts": self._attempts,
            "reconnects": max(0, self._connects - 1),
            "round_trip_ms": None if measured is None else round(measured * 1000, 3),
            **self._window.describe(),
            **self._inbox.describe(),
            **self._filters.describe(),
        }

    def arrived(self, publish: Publish, connection: Connection) -> None:
        """Called by the connection."""
        self._inbox.arrived(publish, connection)

    def acknowledged(self, ack: Ack) -> None:
        """Called by the connection."""
        self._window.answered(ack)

    def flow_changed(self) -> None:
        """Called by the connection."""
        self._window.flow_changed()

    def overdue(self) -> bool:
        """Called by the connection."""
        return self._window.overdue()

    async def _keep_connected(self) -> None:
        pauses, whom = 0, self._client_id
        while True:
            self._other.clear()
            client_id = self._client_id
            if client_id is None:
                self._tell(LinkState(Phase.WAITING, _NOBODY.problem, _NOBODY.reason))
                await self._other.wait()
                continue
            if client_id != whom:  # what was learnt before was about another one
                self._suspects.forget()
                self._filters.forget()
                whom = client_id
            before = self._connects
            if not await self._may_greet(client_id):
                continue
            began = time.monotonic()
            failure = await self._attempt(client_id)
            if failure is None:  # we are to be somebody else: at once
                pauses = 0
                continue
            lasted = time.monotonic() - began if self._connects > before else 0.0
            failure = self._counted(failure, client_id, lasted)
            pauses = 0 if lasted >= STABLE else pauses
            self._tell(LinkState(Phase.WAITING, failure.problem, failure.reason, failure.code))
            await self._pause(pauses, failure.pause)
            pauses += 1

    async def _may_greet(self, client_id: str) -> bool:
        """Wait until this client id's last CONNECT is long enough ago; False: we are to be somebody else now."""
        every, now = self._options.connect_every, time.monotonic()
        self._greeted = {one: at for one, at in self._greeted.items() if now - at < every}
        if client_id not in self._greeted:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._greeted[client_id] + every - now):
                await self._other.wait()
                return False
        return True

    async def _attempt(self, client_id: str) -> Failure | None:
        """Connect and serve; returns why it ended, or None when another client id is wanted."""
        self._tell(LinkState(Phase.CONNECTING, self.state.problem, self.state.reason, self.state.code))
        self._attempts += 1
        connection = Connection(self._options, client_id, self)
        try:
            try:
                await self._connect(connection)
            except Exception as error:  # noqa: BLE001  # each is a state with a sentence
                failure = self._named(error)
                self._shut_out = self._options.tls and failure.problem == "closed-by-broker"
                self._suspects.unreachable()
                self._filters.pardon()
                return failure
            try:
                return await self._serve(connection)
            except Exception as error:  # noqa: BLE001  # the same
                return self._named(error)
        finally:
            if connection.greeted_at is not None:
                self._greeted[client_id] = connection.greeted_at
            await self._dispose(connection)

    def _named(self, error: Exception) -> Failure:
        failure = from_error(error, f"{self._options.host}:{self._options.port}", tls=self._options.tls)
        if failure.problem == "internal":
            log.error("the MQTT link met an unexpected error", exc_info=error)
        return failure

    async def _connect(self, connection: Connection) -> None:
        async with asyncio.timeout(self._options.connect_timeout):
            context = await asyncio.to_thread(make_context, self._options) if self._options.tls else None
            await connection.open(context, hesitate=self._shut_out)

    def let_in(self, connack: Connack, connection: Connection) -> None:
        """Called by the connection."""
        self._connects += 1
        self._shut_out = False
        self._session_present = connack.session_present
        topic = self._suspects.reached()
        if topic is not None:
            log.warning("messages on topic %r are not sent for a while: the broker ends the connection for them", topic)
        self._connection = connection
        self._inbox.start_session(present=connack.session_present)
        self._inbox.attach(connection)
        self._window.attach(connection, connack)
        self._filters.start_session(connection.client_id, present=connack.session_present)

    async def _serve(self, connection: Connection) -> Failure | None:
        work = asyncio.create_task(self._follow(connection), name="mqtt filters")
        other = asyncio.create_task(self._other.wait(), name="mqtt identity")
        try:
            await first_of(connection.lost, work, other)
            if connection.lost.done():
                return connection.lost.result()
            if work.done():
                work.result()
            await self._farewell(connection)
        except asyncio.CancelledError:
            await self._farewell(connection)
            raise
        finally:
            for task in (work, other):
                task.cancel()
            await asyncio.gather(work, other, return_exceptions=True)
        return None

    async def _follow(self, connection: Connection) -> None:
        """Put the filters in place; again when others are wanted, or refused ones may be granted."""
        connection.ping()
        await self._filters.establish(connection, anew=True)
        self._window.start()
        while True:
            self._tell_connected()
            anew, behind = False, self._filters.behind
            pause = _LOOK_AGAIN if self._filters.refused else None
            try:
                async with asyncio.timeout(_SOON if behind else pause):
                    await self._filters.changed.wait()
            except TimeoutError:
                if anew := not behind:
                    self._filters.pardon()
            await self._filters.establish(connection, anew=anew)

    async def _farewell(self, connection: Connection) -> None:
        """An orderly end: what is under way is acknowledged in both directions if that is quick."""
        self._window.stop()
        self._inbox.close()
        settled = asyncio.create_task(self._settled(), name="mqtt end")
        try:
            await first_of(settled, connection.lost, timeout=GRACE)
        finally:
            settled.cancel()
        await connection.leave(GRACE)

    async def _settled(self) -> None:
        await self._inbox.empty()
        await self._window.empty()

    async def _dispose(self, connection: Connection) -> None:
        """Whatever happened: nothing of the connection is left behind."""
        connection.end(Failure("stopped", "we ended the connection"))
        self._round_trip = connection.round_trip
        try:
            await asyncio.wait({connection.lost}, timeout=GRACE)
        finally:
            failure = connection.lost.result() if connection.lost.done() else Failure("stopped", "it was given up")
            self._inbox.detach()
            self._window.detach(failure)
            self._connection = None

    async def _pause(self, pauses: int, least: float) -> None:
        """Wait before the next attempt, each time twice as long; cut short when we are to be somebody else."""
        options = self._options
        delay = min(options.retry_most, options.retry_first * 2.0 ** min(pauses, 16))
        delay = max(delay * random.uniform(0.5, 1.0), least * random.uniform(1.0, 1.25))  # noqa: S311  # no secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._other.wait()

    def _counted(self, failure: Failure, client_id: str, lasted: float) -> Failure:
        """Notice that the broker lets us in and throws us out, again and again. An attempt that fails ends the row."""
        if failure.problem == "closed-by-broker" and 0.0 < lasted < _SHORT:
            self._thrown_out += 1
        else:
            self._thrown_out = 0
        return failure if self._thrown_out < _OFTEN else thrown_out(failure, client_id, self._thrown_out)

    def _tell_connected(self) -> None:
        problem = self._filters.problem()
        if problem is None:
            self._tell(LinkState(Phase.CONNECTED, None, "", 0))
        else:
            self._tell(LinkState(Phase.CONNECTED, problem[0], problem[1], problem[2]))

    def _tell(self, state: LinkState) -> None:
        if state == self.state:
            return
        self.state = state
        if state.phase in (Phase.WAITING, Phase.CONNECTED):
            level = logging.INFO if state.problem is None else logging.WARNING
            log.log(
                level, "MQTT link: %s%s", state.phase, f" ({state.problem}): {state.reason}" if state.reason else ""
            )
        if self._receiver is not None:
            try:
                self._receiver.link_changed(state)
            except Exception:
                log.exception("the receiver of the MQTT link's state failed")
