"""What a chaos test works with: a server of its own, members in processes, the file of their effects, and a
fair clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status

from support.procs import Child, Children
from support.servers import RealServer


class World:
    """Everything of one test."""

    def __init__(self, server: RealServer, clients: Clients, children: Children, directory: Path) -> None:
        self.server = server
        self.clients = clients
        self.children = children
        self.effects_file = directory / "effects"

    async def member(self, *settings: str, url: str | None = None) -> Child:
        """A started member of the app."""
        child = await self.spawn(*settings, url=url)
        await child.line("^ready")
        return child

    async def spawn(self, *settings: str, url: str | None = None) -> Child:
        """A member that may not be there yet."""
        where = url or self.clients.url
        return await self.children.module("chaos.member", where, self.clients.bus, str(self.effects_file), *settings)

    async def sender(self, app: str = "gcs", **options: Any) -> Bus:
        """A client to send with."""
        return await self.clients.open(app, **options)

    def go(self) -> None:
        """Let those go on that hold."""
        self.effects_file.with_suffix(".go").touch()

    def effects(self) -> Counter[str]:
        """How often each record took effect in the outside world."""
        if not self.effects_file.exists():
            return Counter()
        return Counter(line.split()[0] for line in self.effects_file.read_text().splitlines())


async def stats(child: Child) -> dict[str, Any]:
    """The consumer statistics of a member."""
    await child.write("stats\n")
    answer: dict[str, Any] = json.loads((await child.line("^stats")).split(" ", 1)[1])
    return answer


async def status_is(bus: Bus, message_id: str, *statuses: Status, seconds: float = 10.0) -> None:
    """Wait for one of some statuses."""

    async def there() -> bool:
        return await bus.status(message_id) in statuses

    await until(there, f"{message_id} is {' or '.join(statuses)}", seconds=seconds)


async def the_reply(bus: Bus, message_id: str) -> Record:
    """The one and only final reply to a message, once it is there."""

    async def there() -> bool:
        return bool(await finals(bus, message_id))

    await until(there, f"a reply to {message_id}")
    (reply,) = await finals(bus, message_id)
    return reply


async def finals(bus: Bus, message_id: str) -> list[Record]:
    """The final replies to a message: one, if all is well."""
    return [record for record in await replies_to(bus, message_id) if record.kind is not None and record.kind.final]


async def settled(bus: Bus) -> None:
    """Wait until nothing is pending in the app's inbox."""

    async def nothing() -> bool:
        return await pending(bus, "app") == 0

    await until(nothing, "nothing is pending")


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Measures how late this process is woken at most: what a busy machine adds to every time limit of a test."""
    worst = [0.0]

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.02)
            worst[0] = max(worst[0], time.monotonic() - begun - 0.02)

    task = asyncio.create_task(watch(), name="lag")
    try:
        yield worst
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
