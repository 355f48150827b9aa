"""How the link to the broker is, as petals read it: looked at once a second, so that a flag tells what is true."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt import words
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

log = logging.getLogger("MQTTProxy")

LOOK_S: Final = 0.8
_SILENT_S: Final = 3 * words.TOLD_S
"""The link says how it is every few seconds. One that has been silent for so long was killed: nothing goes out."""


class Link:
    """``up`` and ``told`` are what was last read; ``ask`` reads, ``follow`` goes on reading until it is cancelled."""

    def __init__(self, own_bus: Callable[[], Awaitable[Bus]]) -> None:
        self._own_bus = own_bus
        self.told: Mapping[str, str] = {}

    @property
    def up(self) -> bool:
        """Whether messages go both ways, as far as is known."""
        return self.told.get("connected") == "1" and not is_silent(self.told)

    async def ask(self) -> bool:
        """Read it now. Raises BusError."""
        bus = await self._own_bus()
        self.told = read_state(await bus.ask("HGETALL", words.link_key(bus.keys)))
        return self.up

    def forget(self) -> None:
        """Nobody reads it any more: it counts as down."""
        self.told = {}

    async def follow(self) -> None:
        """Keep it fresh. While the bus is away nobody knows how the link is: it counts as down."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.ask()
            except (BusError, TimeoutError) as error:
                if self.told:
                    log.info("nobody can tell now how the MQTT link is: %s", str(error) or "the bus does not answer")
                self.forget()

    @property
    def connection(self) -> dict[str, bool]:
        """For health answers, with both names that the part on our side has had (C-10)."""
        return dict.fromkeys(("ts_client", "callback_server", "callback_router", "connected"), self.up)

    def describe(self) -> dict[str, str | None]:
        """What the link says of itself: its way to the broker, how far it is, and what is wrong."""
        said = {name: self.told.get(name) or None for name in ("transport", "phase", "problem", "reason")}
        return {**said, "phase": "off", "problem": "no-daemon", "reason": SILENT} if is_silent(self.told) else said


SILENT: Final = "the link has not said for a while how it is: is the daemon running, and its part mqtt?"


def read_state(reply: Any) -> dict[str, str]:
    """The hash of the link as text."""
    return {name.decode(): value.decode(errors="replace") for name, value in words.hash_items(reply)}


def is_silent(told: Mapping[str, str]) -> bool:
    """Whether the link has not said for a long time how it is. Of another machine's link nobody can tell."""
    if told.get("boot_id") != BOOT_ID or not told.get("told_ns", "").isdigit():
        return False
    return boot_clock_ns() - int(told["told_ns"]) > _SILENT_S * 1e9
