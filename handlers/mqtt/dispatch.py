"""Brings commands to the petals: from topic ``mqtt.rx`` into the inbox of every app that may be meant.

A command whose name begins with an app that takes commands goes to that one; another is offered to all of them, because
a petal may name its commands as it likes. An offer's id is made of the messageId and the app: the same command that
arrives twice runs once. One that comes before its petal waits in the petal's inbox.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import IdConflict, QueueFull
from petalbus.handlers.mqtt.words import COMMAND, TOPIC, handlers_key, is_command_topic
from petalbus.schemas.convert.names import bus_id
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import APP_RULE

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

GROUP: Final = "commands"
INVALID: Final = "mqtt.invalid"
"""The bus topic of what is no command although it came on a command topic."""

DEADLINE: Final = 120.0
"""Seconds from its arrival after which a command that nobody has begun is not begun any more."""


class CommandDispatch:
    """``await run()`` until it is cancelled, on an open client of the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.offered = 0
        self.repeated = 0
        self.invalid = 0

    async def run(self) -> None:
        """Work until cancelled. What it was working on then is found again by the next start."""
        async with self._bus.subscribe(TOPIC, name=GROUP, start="oldest") as messages:
            async for record in messages:
                topic = str(record.data.get("topic", "")) if isinstance(record.data, dict) else ""
                if is_command_topic(topic):
                    await self._offer(record, record.data.get("payload"))

    def statistics(self) -> dict[str, Any]:
        """Commands offered, repetitions that were recognised, messages that are no commands."""
        return {"offered": self.offered, "repeated": self.repeated, "invalid": self.invalid}

    async def _offer(self, record: Record, message: Any) -> None:
        command = message.get("command") if isinstance(message, dict) else None
        message_id = message.get("messageId", record.id) if isinstance(message, dict) else None
        if not isinstance(command, str) or not command or not isinstance(message_id, str | int):
            await self._keep(record, "a command needs the members command (text) and messageId")
            return
        left = DEADLINE - _age(record)
        if left <= 0:
            await self._keep(record, f"it waited for longer than {DEADLINE:g} s before it could be offered to a petal")
            return
        for app in await self._meant(command):
            name = bus_id(f"{message_id}@{app}")
            try:
                # a key of its own: commands begin in order, and one that takes long holds up no other
                receipt = await self._bus.send(app, COMMAND, record.data, id=name, key=name, deadline=left)
            except (RecordInvalid, IdConflict, QueueFull) as error:
                await self._keep(record, f"it cannot be offered to {app}: {error}")
                continue
            self.offered += not receipt.duplicate
            self.repeated += receipt.duplicate

    async def _meant(self, command: str) -> list[str]:
        apps = [name.decode() for name in await self._bus.call("HKEYS", handlers_key(self._bus.keys))]
        prefix = command.split("/", 1)[0]
        if prefix in apps or (not apps and APP_RULE.match(prefix)):
            return [prefix]
        return sorted(apps)

    async def _keep(self, record: Record, reason: str) -> None:
        self.invalid += 1
        log.warning("a message on a command topic is kept in %s: %s", INVALID, reason)
        await self._bus.publish(INVALID, INVALID, {"reason": reason, "message": record.data, "id": record.id})


def _age(record: Record) -> float:
    """Seconds since it was recorded; by the wall clock where it was in another boot."""
    if record.mono is not None and record.boot_id == BOOT_ID:
        return (boot_clock_ns() - record.mono) / 1e9
    stored_ms = int((record.stream_id or "0").partition("-")[0])
    return max(0.0, time.time() - stored_ms / 1000)
