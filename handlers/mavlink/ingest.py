"""Frames into the topic ``mavlink.rx``, and the latest of each kind as state.

Every frame becomes a record, byte for byte, unless a rate is set for its message: then so many a second, from each
sender. While a batch is under way the next one gathers, so a slow bus makes larger batches. What the bus cannot take
for longer than the waiting room lasts is lost, counted and told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mavlink.decode import CONTENT_TYPE
from petalbus.handlers.mavlink.errors import DialectError
from petalbus.handlers.mavlink.wire.dialect import Dialect
from petalbus.handlers.mavlink.wire.framing import MARKER_V2, Frame
from petalbus.schemas.compact import CompactEntry, CompactForm
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger(__name__)

TOPIC: Final = "mavlink.rx"
STATE: Final = "mavlink"

_SETUP_SIGNING: Final = 256
_MAX_WAITING: Final = 20_000
_MAX_BATCH: Final = 512
_COMPLAIN_EVERY_S: Final = 10.0
_STORE_EVERY_S: Final = 1.0
_REST_NS: Final = 25_000_000
_LONGEST_REST_S: Final = 0.035
_LARGE: Final = 8, 12
"""After a batch of so many frames there is a rest; the second number is for what a rest has gathered. So above 400
frames a second a link costs about 33 batches a second, and below that none waits.
"""

_MOST_LATEST: Final = 4096

Source = tuple[int, int, int]
"""System, component, message id."""


class Ingest:
    """Stores what came over one link. ``on_frames`` never waits; ``run`` does the storing."""

    def __init__(self, bus: Bus, dialect: Dialect, *, app: str, rates: Mapping[str, float] | None = None) -> None:
        """``rates``: message -> records a second at most from each sender; 0 for none. Raises DialectError."""
        self.published = 0
        self.lost = 0
        """Frames that could not be stored: the bus was away or full for longer than the waiting room lasts."""
        self.left_out = 0
        """Frames that a rate kept out of the topic."""
        self.latest = Latest(bus, dialect)
        self._bus = bus
        self._form = CompactForm(
            topic=TOPIC,
            type_prefix="mavlink.",
            source=app,
            content_type=CONTENT_TYPE,
            names={str(msgid): name for msgid, name in dialect.names.items()},
        )
        self._pauses = _pauses(rates or {}, dialect)
        self._due: dict[Source, float] = {}
        self._waiting: deque[CompactEntry] = deque()
        self._arrived = asyncio.Event()
        self._resting: asyncio.Future[None] | None = None
        self._rest_until = 0
        self._complained = float("-inf")

    @property
    def waiting(self) -> int:
        """Frames that are not stored yet."""
        return len(self._waiting)

    def on_frames(self, frames: Sequence[Frame], mono_ns: int) -> None:
        """Take frames that came at ``mono_ns`` (boot clock)."""
        self.latest.note(frames, mono_ns)
        waiting, pauses = self._waiting, self._pauses
        for frame in frames:
            if frame.msgid == _SETUP_SIGNING:
                continue  # it holds a key, which belongs into no record
            if pauses and frame.msgid in pauses and not self._is_due(frame, mono_ns / 1e9):
                self.left_out += 1
                continue
            waiting.append(CompactEntry(str(frame.msgid), mono_ns, frame.raw))
        while len(waiting) > _MAX_WAITING:
            waiting.popleft()
            self.lost += 1
        self._arrived.set()
        if self._resting is not None and mono_ns >= self._rest_until:
            _end_rest(self._resting)

    async def run(self) -> None:
        """Store what comes, until it is cancelled."""
        rested = False
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_MAX_BATCH, len(self._waiting)))]
                try:
                    await self._bus.publish_compact(self._form, batch)
                    self.published += len(batch)
                except (BusError, ServerError) as error:
                    self.lost += len(batch)
                    self._complain(error)
                rested = _LARGE[rested] <= len(batch) < _MAX_BATCH
                if rested:
                    await self._rest()

    async def _rest(self) -> None:
        """Gather. What ends it is a draining of the link that comes late enough: a timer would be one waking more."""
        loop = asyncio.get_running_loop()
        resting = self._resting = loop.create_future()
        self._rest_until = boot_clock_ns() + _REST_NS
        timer = loop.call_later(_LONGEST_REST_S, _end_rest, resting)
        try:
            await resting
        finally:
            timer.cancel()
            self._resting = None

    def _is_due(self, frame: Frame, now: float) -> bool:
        """Whether the message's rate has room; a little early is in time, or a rate would lose every second one."""
        pause = self._pauses[frame.msgid]
        source = frame.sysid, frame.compid, frame.msgid
        due = self._due.get(source, 0.0)
        if pause == float("inf") or now < due - 0.2 * pause:
            return False
        if len(self._due) >= _MOST_LATEST:
            self._due.clear()
        self._due[source] = due + pause if now < due + pause else now + pause
        return True

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAIN_EVERY_S:
            self._complained = now
            log.warning("MAVLink frames cannot be stored, %d lost so far: %s", self.lost, error)


class Latest:
    """The newest frame of each message from each sender; in memory at once, and once a second in the state's hash.

    A field of the hash is ``<system>/<component>/<message>``, its value the boot-clock time in ns as eight bytes
    (little endian) and the frame.
    """

    def __init__(self, bus: Bus, dialect: Dialect) -> None:
        self._bus = bus
        self._dialect = dialect
        self._frames: dict[bytes, tuple[int, Frame]] = {}
        """By system, component and message id, as five bytes of a MAVLink 2 header."""
        self._changed: set[bytes] = set()

    def note(self, frames: Sequence[Frame], mono_ns: int) -> None:
        """Remember them. Senders that nobody can have so many of (a wire that invents them) are not remembered."""
        known, changed = self._frames, self._changed
        for frame in frames:
            raw = frame.raw
            source = raw[5:10] if raw[0] == MARKER_V2 else raw[3:6] + b"\0\0"
            if frame.msgid != _SETUP_SIGNING and (source in known or len(known) < _MOST_LATEST):
                known[source] = mono_ns, frame
                changed.add(source)

    def told(self, messages: Sequence[str] = (), system: int | None = None) -> dict[str, Any]:
        """Decoded: ``{"1/1/ATTITUDE": {"mono": ns, "message": {...}}}``; all messages where none is named."""
        wanted = {self._dialect.ids.get(name, name) for name in messages}
        told = {}
        for mono, frame in self._frames.values():
            if (not wanted or frame.msgid in wanted) and system in (None, frame.sysid):
                told[self._field(frame)] = {"mono": mono, "message": self._dialect.decode(frame)}
        return told

    async def run(self) -> None:
        """Keep the hash up to date, until it is cancelled."""
        key = self._bus.keys.state(STATE)
        while True:
            await asyncio.sleep(_STORE_EVERY_S)
            changed, self._changed = self._changed, set()
            if not changed:
                continue
            flat: list[bytes | str] = []
            for source in changed:
                mono, frame = self._frames[source]
                flat += [self._field(frame), mono.to_bytes(8, "little") + frame.raw]
            try:
                await self._bus.call("HSET", key, *flat)
            except (BusError, ServerError) as error:
                self._changed |= changed
                log.debug("the latest messages cannot be stored now: %s", error)

    def _field(self, frame: Frame) -> str:
        return f"{frame.sysid}/{frame.compid}/{self._dialect.names.get(frame.msgid, str(frame.msgid))}"


def _end_rest(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)


def read_rates(text: str) -> dict[str, float]:
    """``ATTITUDE=10, HIGHRES_IMU=0`` -> records a second. Raises ValueError that says what is wrong."""
    rates: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        name, separator, number = part.partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = -1.0
        if not separator or not name.strip() or not 0 <= rate <= 10_000:
            raise ValueError(f"{part!r}: write MESSAGE=RATE, the rate in records a second (0 for none)")
        rates[name.strip()] = rate
    return rates


def _pauses(rates: Mapping[str, float], dialect: Dialect) -> dict[int, float]:
    pauses = {}
    for name, rate in rates.items():
        msgid = int(name) if name.isdigit() else dialect.ids.get(name)
        if msgid is None:
            raise DialectError(f"a rate is set for {name!r}, which is not in the dialect {dialect.name!r}")
        pauses[msgid] = 1.0 / rate if rate > 0 else float("inf")
    return pauses
