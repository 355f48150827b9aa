"""Keeps a bus in order while it runs: history, memory, presence, the age of the deduplication window, the boot clock.

Every age here is monotonic time that was seen to pass; the wall clock is written for people and never read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.services.attendance import Attendance
from petalbus.daemon.services.own_lane import own_lane
from petalbus.daemon.services.retention import Keep, Retention, Shedding
from petalbus.daemon.services.streams import Stream, find_streams
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.keys import Keys
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

KEEP_BOOTS: Final = 256
"""Boots whose marks are kept; history of older ones loses its order between boots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JanitorOptions:
    """Settings of the janitor. Times are seconds of monotonic time."""

    keep: Keep = field(default_factory=Keep)
    """Entries of history that stay."""

    gone_after: float = 3600.0
    """After so long without a heartbeat or a read, a group does not hold history back any more."""

    dead_after: float = 3.0
    """An application none of whose heartbeats moved for so long is offline."""

    forget_after: float = 30.0
    """The heartbeat of a dead consumer that holds nothing is removed after so long."""

    look_every: float = 1.0
    """Time between two looks at heartbeats and memory."""

    trim_every: float = 5.0
    """Time between two passes over all streams."""

    hurry_above: float = 0.7
    """Part of the memory ceiling above which memory is looked at four times as often."""

    shed_above: float = 0.85
    """Part of the memory ceiling above which the lowest class is shed."""

    shed_down_to: float = 0.8
    """Part of the memory ceiling at which shedding ends."""

    memory_ceiling: int | None = None
    """The ceiling in bytes; None for the server's ``maxmemory``."""

    window_ids: int = 100_000
    """Ids that a generation of the deduplication window holds at least before a new one begins."""

    window_age: float = 86_400.0
    """Age of a generation before a new one may begin."""

    fenced: int = 10_000
    """Names of consumers that lost their lease, worth a purge of those that are a generation old."""


class Janitor:
    """The service that keeps order. ``await run()`` until it is cancelled, or until ``stop``.

    ``boot_clock``: nanoseconds of a clock that is never set; its differences age the deduplication window.
    """

    def __init__(
        self, bus: Bus, *, options: JanitorOptions | None = None, boot_clock: Callable[[], int] = boot_clock_ns
    ) -> None:
        self._bus = bus
        self._keys = bus.keys
        self._boot_clock = boot_clock
        self.options = chosen = options or JanitorOptions()
        self.attendance = Attendance(bus.keys, term=chosen.dead_after, forget_after=chosen.forget_after)
        self.retention = Retention(bus.keys, app=bus.app, keep=chosen.keep, gone_after=chosen.gone_after)
        self.shedding = Shedding(
            self.retention, above=chosen.shed_above, down_to=chosen.shed_down_to, ceiling=chosen.memory_ceiling
        )
        self._stopping = asyncio.Event()
        self._streams: list[Stream] = []
        self._trimmed_at: float | None = None
        self._last_error = ""
        self.boot: int | None = None
        self.window: dict[str, int] = {"ids": 0, "age": 0, "rotations": 0, "purges": 0}

    async def prepare(self) -> None:
        """Note that this boot has begun, before anything is written in it. Raises BusError or ServerError.

        Replay tells the boots of a recording apart by these marks: call this before applications start.
        """
        async with own_lane(self._bus) as outbox:
            await self._note_boot(outbox)

    async def run(self) -> None:
        """Keep order until stopped. Raises BusUnavailable or ServerRefused when there is no server at the beginning."""
        async with own_lane(self._bus) as outbox:
            while not self._stopping.is_set():
                try:
                    if self.boot is None:
                        await self._note_boot(outbox)
                    await self.look(outbox)
                    self._last_error = ""
                except (BusError, ServerError) as error:
                    if str(error) != self._last_error:
                        log.warning("the janitor tries again: %s", error)
                    self._last_error = str(error)
                await self._pause()

    def stop(self) -> None:
        """Ask ``run`` to end."""
        self._stopping.set()

    async def look(self, outbox: Outbox) -> None:
        """One look at everything that is due. Raises BusError or ServerError."""
        now = time.monotonic()
        await self.attendance.look(outbox, now)
        await outbox.call("HSET", self._keys.clock, "boot_id", BOOT_ID, "mono", self._boot_clock())
        if self._trimmed_at is None or now - self._trimmed_at >= self.options.trim_every:
            self._trimmed_at = now
            self._streams = await find_streams(outbox, self._keys)
            await self.retention.trim(outbox, self._streams, self.attendance.present, now)
            await self._age_window(outbox)
        await self.shedding.look(outbox, self._streams)

    def statistics(self) -> dict[str, Any]:
        """What was done so far."""
        return {
            "streams": len(self._streams),
            "trimmed": self.retention.trimmed,
            "lost": self.retention.lost,
            "pressure": round(self.shedding.pressure, 3),
            "present": sorted(self.attendance.present),
            "window": dict(self.window),
            "boot": self.boot,
            "last_error": self._last_error or None,
        }

    async def _age_window(self, outbox: Outbox) -> None:
        keys = [self._keys.ids, self._keys.ids_before, self._keys.window, self._keys.fenced, fenced_before(self._keys)]
        age = int(self.options.window_age * 1e9)
        arguments: list[bytes | str | int] = [
            BOOT_ID,
            self._boot_clock(),
            self.options.window_ids,
            age,
            self.options.fenced,
        ]
        ids, old, rotated, purged = await outbox.run("rotate", keys, arguments)
        self.window["ids"], self.window["age"] = ids, int(old) // 10**9
        self.window["rotations"] += rotated
        self.window["purges"] += purged
        if rotated:
            log.info("the deduplication window began a new generation; the one before holds %d ids", ids)

    async def _note_boot(self, outbox: Outbox) -> None:
        streams = await find_streams(outbox, self._keys)
        boots, marks = boot_keys(self._keys)
        keys = [boots, marks, *(one.key for one in streams)]
        self.boot = int(await outbox.run("boot", keys, [BOOT_ID, KEEP_BOOTS, self._boot_clock()]))

    async def _pause(self) -> None:
        hurry = self.shedding.pressure > self.options.hurry_above
        try:
            async with asyncio.timeout(self.options.look_every / (4 if hurry else 1)):
                await self._stopping.wait()
        except TimeoutError:
            return


def boot_keys(keys: Keys) -> tuple[str, str]:
    """The hashes of boots (boot id -> number) and of marks (number|stream -> the last id of earlier boots)."""
    return f"{keys.prefix}boots", f"{keys.prefix}boots:marks"


def fenced_before(keys: Keys) -> str:
    """The set of fenced consumers that were known when the last purge was made."""
    return f"{keys.prefix}fenced:before"
