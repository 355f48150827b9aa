"""The bridge for programs that know nothing of the bus and use sorted sets, hashes and channels in plain keys.

    queue:<app>:inbox of the bus's applications  ->  the bus          (plain_inward)
    the bus  ->  queue:<program>:inbox                                (plain_relay, one for each program)
    status:<app>, app:<app>:online, who is there                      (plain_presence)
    channel:<app>, channel:broadcast                                  (plain_notices)

Woken by the channels; looks for itself once a second, because a notice may be lost. Where no such program is, that look
is all: a few reads in one write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.services.own_lane import own_lane
from petalbus.daemon.services.plain_forms import PLAIN, VIA, broadcast_record
from petalbus.daemon.services.plain_inward import Inward
from petalbus.daemon.services.plain_notices import Notices
from petalbus.daemon.services.plain_presence import PlainPresence
from petalbus.daemon.services.plain_relay import Relay
from petalbus.schemas.convert.communication import from_record
from petalbus.schemas.errors import RecordInvalid

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.outbox import Outbox
    from petalbus.schemas.record import Record

log = logging.getLogger("petalbus.services")

BROADCAST: Final = "broadcast"
MAX_RELAYS: Final = 32
"""Programs on plain keys that are served at once."""

_OWN_BROADCASTS: Final = 256
_WAITING_BROADCASTS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainOptions:
    """Settings of the bridge. Times are seconds."""

    enabled: bool = True
    """False: it does nothing."""

    announced: Sequence[str] = ("HEAR_FC",)
    """Programs that are looked for by name; others are found by their status or their first message, a little later."""

    recipients: Sequence[str] = ()
    """Applications whose plain queues are read although they never were on the bus."""

    look_every: float = 1.0
    """Time between two looks that no notice asked for."""

    ceiling: int = 1000
    """Messages that wait in a program's plain queue at most; the others wait on the bus. CRITICAL ones may be as many
    again."""

    keep_for: float = 86_400.0
    """After this time a message's hash and an outbox end by themselves."""

    keep_outbox: int = 100
    """Messages kept in an outbox for people who look."""


class PlainKeys:
    """The service. ``await run()`` until it is cancelled, or until ``stop``."""

    def __init__(self, bus: Bus, *, options: PlainOptions | None = None) -> None:
        self._bus = bus
        self.options = options or PlainOptions()
        self.counts: Counter[str] = Counter()
        self._relays: dict[str, Relay] = {}
        self._recipients: frozenset[str] | set[str] = frozenset()
        self._due: set[str] = set()
        self._told: deque[bytes] = deque()
        self._own: deque[str] = deque(maxlen=_OWN_BROADCASTS)
        self._notices: Notices | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._looked_at = 0.0
        self._last_error = ""
        self._unreadable: dict[str, str] = {}

    async def run(self) -> None:
        """Serve until stopped. Raises BusUnavailable or ServerRefused when there is no server at the beginning."""
        if not self.options.enabled:
            while not self._stopping:
                await self._pause(None)
            return
        async with own_lane(self._bus) as outbox:
            inward = Inward(self._bus, outbox, self.options, self.counts)
            presence = PlainPresence(self._bus.keys, outbox, announced=self.options.announced)
            notices = self._notices = Notices(self._bus, heard=self._heard)
            notices.lane.start()
            broadcasts = asyncio.create_task(self._tell_broadcasts(outbox), name="petalbus-plain-broadcasts")
            try:
                await self._serve(outbox, inward, presence, broadcasts)
            finally:
                broadcasts.cancel()
                await asyncio.gather(broadcasts, return_exceptions=True)
                await notices.close()
                await self._close_relays(list(self._relays))
                await self._hide(presence)

    def stop(self) -> None:
        """Ask ``run`` to end in order."""
        self._stopping = True
        self._wake.set()

    def statistics(self) -> dict[str, Any]:
        """What was carried so far, and for whom."""
        names = ("taken", "handed", "invalid", "expired", "broadcasts")
        return {
            "enabled": self.options.enabled,
            **{name: self.counts[name] for name in names},
            "programs": {app: relay.statistics() for app, relay in sorted(self._relays.items())},
            "hears": self._notices is not None and self._notices.subscribed,
            "unreadable": dict(self._unreadable),
            "last_error": self._last_error or None,
        }

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _serve(
        self, outbox: Outbox, inward: Inward, presence: PlainPresence, broadcasts: asyncio.Task[None]
    ) -> None:
        while not self._stopping:
            if broadcasts.done():
                broadcasts.result()  # it never ends by itself: what ended it ends us, and whoever runs us starts anew
            self._wake.clear()
            try:
                await self._take_due(outbox, inward)
                left = self._looked_at + self.options.look_every - time.monotonic()
                if left <= 0:
                    self._looked_at = time.monotonic()
                    await self._look(outbox, inward, presence)
                    left = self.options.look_every
                self._last_error = ""
            except (BusError, ServerError) as error:
                if str(error) != self._last_error:
                    log.warning("the plain keys wait: %s", error)
                self._last_error = str(error)
                left = self.options.look_every
            await self._pause(left)

    async def _look(self, outbox: Outbox, inward: Inward, presence: PlainPresence) -> None:
        ours = {app: relay.consumer for app, relay in self._relays.items()}
        found = await presence.look(inward.senders, ours)
        self._recipients = (found.recipients | {*self.options.recipients}) - found.programs
        for app in await inward.waiting(sorted(self._recipients)):
            await inward.take(app)
        await inward.follow()
        await self._close_relays([app for app in self._relays if app not in found.programs])
        for app in sorted(found.programs - self._relays.keys()):
            await self._open_relay(outbox, app)
        for relay in self._relays.values():
            await relay.look()
        await presence.mirror(self._recipients)
        self._unreadable = inward.statistics()["unreadable"]

    async def _take_due(self, outbox: Outbox, inward: Inward) -> None:
        while self._told:
            said = self._told[0]
            try:
                fields = broadcast_record(said)
            except RecordInvalid as error:
                log.warning("a broadcast on the plain channel is no record, and is not passed on: %s", error)
                self.counts["invalid"] += 1
            else:
                await outbox.call("XADD", self._bus.keys.ingest, "*", *fields)
                self.counts["broadcasts"] += 1
            self._told.popleft()
        while self._due:
            await inward.take(self._due.pop())

    def _heard(self, name: str, said: bytes) -> None:
        """A notice: ``channel:<name>`` said something."""
        if name == BROADCAST:
            if not self._is_own(said):
                if len(self._told) < _WAITING_BROADCASTS:
                    self._told.append(said)
                else:
                    self.counts["invalid"] += 1
                    log.warning("broadcasts on the plain channel come too fast; one is not passed on")
        elif name in self._recipients:
            self._due.add(name)
        else:
            return  # for a program, perhaps from ourselves; one that has come since the last look is found by the next
        self._wake.set()

    # -- programs -----------------------------------------------------------------------------------------------------

    async def _open_relay(self, outbox: Outbox, app: str) -> None:
        if len(self._relays) >= MAX_RELAYS:
            log.warning("%s is not served on plain keys: %d programs are already", app, MAX_RELAYS)
            return
        relay = Relay(self._bus, outbox, app, self.options, self.counts)
        try:
            await relay.start()
        except BaseException:
            await relay.close()
            raise
        self._relays[app] = relay
        log.info("%s lives on plain keys: its messages are handed over there", app)

    async def _close_relays(self, apps: list[str]) -> None:
        for app in apps:
            await self._relays.pop(app).close()
            log.info("messages to %s are not handed over on plain keys any more", app)

    async def _hide(self, presence: PlainPresence) -> None:
        try:
            async with asyncio.timeout(1.0):
                await presence.hide()
        except (BusError, ServerError, TimeoutError) as error:
            log.warning("the plain statuses stay as they are: %r", error)

    # -- what is told to everybody ------------------------------------------------------------------------------------

    async def _tell_broadcasts(self, outbox: Outbox) -> None:
        async with self._bus.subscribe(BROADCAST, name="plain") as records:
            async for record in records:
                if _field(record, VIA) != PLAIN:
                    await self._tell(outbox, record)

    async def _tell(self, outbox: Outbox, record: Record) -> None:
        try:
            said = from_record(record, carry=False).to_json()
        except RecordInvalid as error:
            log.debug("broadcast %s has no plain form: %s", record.id, error)
            return
        self._own.append(record.id)
        try:
            await outbox.ask("PUBLISH", plain.BROADCAST, said)
        except (BusError, ServerError) as error:
            log.warning("broadcast %s is not told on the plain channel: %s", record.id, error)

    def _is_own(self, said: bytes) -> bool:
        return any(f'"{own}"'.encode() in said for own in self._own)

    async def _pause(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return


def _field(record: Record, name: bytes) -> bytes:
    value = record.extra.get(name.decode(), b"")
    return value if isinstance(value, bytes) else str(value).encode()
