"""The bus's clock on another machine.

Stamps and deadlines are counted on the boot clock of the machine that the bus lives on; its daemon writes that clock
beside the bus every second or so. A client over there reads nothing of this: its own boot clock is the bus's. A client
on another machine (a ground station over TCP) watches the written clock move once, and counts on from there; what is
left of an error is the time between two looks and the way there, some hundredths of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.outbox import Outbox
from petalbus.schemas.stamps import BOOT_ID, Clock, boot_clock_ns

log = logging.getLogger("petalbus.bus")

LOOK_EVERY: Final = 0.02
"""Seconds between two looks at the written clock."""

GIVE_UP_AFTER: Final = 4.0
"""Seconds after which a written clock that stands still belongs to nobody."""

AGAIN_AFTER: Final = 60.0
"""Seconds between two comparisons: two clocks drift apart, and the other machine may have booted anew."""


class BusClock:
    """Keeps ``clock`` equal to the bus's. ``changed`` is called when it is of another boot than before."""

    def __init__(self, clock: Clock, *, keys: Keys, outbox: Outbox, changed: Callable[[], None]) -> None:
        self.clock = clock
        self._keys = keys
        self._outbox = outbox
        self._changed = changed
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find out whether the bus lives here; if not, take over its clock and keep following it."""
        if await self._written() is not None:
            await self._follow()
        self._outbox.on_reconnect.append(self._look.set)  # the other machine may have booted anew
        self._task = asyncio.create_task(self._run(), name="petalbus-clock")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._outbox.on_reconnect.remove(self._look.set)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_AFTER):
                    await self._look.wait()
            self._look.clear()
            try:
                if await self._written() is not None:
                    await self._follow()
            except (BusError, ServerError) as error:
                log.debug("the bus's clock cannot be read: %s", error)

    async def _follow(self) -> bool:
        first = await self._written()
        end = time.monotonic() + GIVE_UP_AFTER
        while first is not None and time.monotonic() < end:
            await asyncio.sleep(LOOK_EVERY)
            asked = boot_clock_ns()
            now = await self._written()
            if now is not None and now != first:
                boot, mono = now
                self.clock.offset = mono - (asked + boot_clock_ns()) // 2
                if boot != self.clock.boot_id:
                    self.clock.boot_id = boot
                    self._changed()
                return True
        log.warning("the bus seems to live on another machine, and no daemon keeps its clock: deadlines cannot be kept")
        return False

    async def _written(self) -> tuple[str, int] | None:
        """The clock as it was last written by another machine than this one."""
        boot, mono = await self._outbox.ask("HMGET", self._keys.clock, "boot_id", "mono")
        if boot is None or mono is None or boot.decode() == BOOT_ID:
            return None
        return boot.decode(), int(mono)
