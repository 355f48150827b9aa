"""HEAR_FC as a program that was written before the bus: plain commands on plain keys, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import redis.asyncio

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services import PlainKeys, PlainOptions
from services.raw import ingesting

from support.servers import RealServer

APP = "HEAR_FC"
CONTROL = "petal-app-manager"
Message = dict[str, Any]


class Program:
    """Announces itself, takes with ZPOPMAX, answers as the C++ guide has it.

    ``answer`` makes the payload of a reply, or None for no reply. ``reply_to``: whether replies name what they answer;
    otherwise their id does, as ``response_<id>``.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        answer: Callable[[Message], Message | None] | None = None,
        reply_to: bool = False,
    ) -> None:
        self.client = client
        self.got: list[Message] = []
        self.notices: list[str] = []
        self._answer = answer
        self._reply_to = reply_to
        self._sent = 0

    async def announce(self, status: str = "online") -> None:
        """Say that it is there."""
        fields = {"status": status, "last_seen": str(time.time()), "app_id": APP}
        await self.client.hset(f"status:{APP}", mapping=fields)

    async def send(
        self,
        message_type: str,
        payload: Message,
        *,
        priority: int = 2,
        recipient: str = CONTROL,
        message_id: str | None = None,
        notify: bool = True,
        **more: Any,
    ) -> str:
        """Put a message into a queue: hash, sorted set, notice. Its id."""
        self._sent += 1
        now = time.time()
        message = {
            "id": message_id or f"{APP}_{time.time_ns()}_{self._sent}",
            "sender": APP,
            "recipient": recipient,
            "message_type": message_type,
            "payload": payload,
            "priority": priority,
            "timestamp": now,
            "reply_to": None,
            "timeout": None,
            **more,
        }
        about = {"sender": APP, "recipient": recipient, "timestamp": now, "type": message_type, "status": "pending"}
        await self.client.hset(f"message:{message['id']}", mapping=about)
        await self.client.zadd(f"queue:{recipient}:inbox", {json.dumps(message): priority * 1000 + now})
        if notify:
            await self.client.publish(f"channel:{recipient}", f"new_message:{message['id']}")
        return str(message["id"])

    async def take(self) -> Message | None:
        """Take what has the highest score, and answer it."""
        found = await self.client.zpopmax(f"queue:{APP}:inbox")
        if not found:
            return None
        message: Message = json.loads(found[0][0])
        self.got.append(message)
        answer = self._answer(message) if self._answer is not None else None
        if answer is not None:
            more = {"reply_to": message["id"]} if self._reply_to else {}
            reply_id = "response_id" if self._reply_to else f"response_{message['id']}"
            await self.send(
                "command_response", answer, priority=3, recipient=message["sender"], message_id=reply_id, **more
            )
        return message

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Program]:
        """Online, and taking every 10 ms, until the end of the block."""
        await self.announce()
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop), name="hear-fc")
        try:
            yield self
        finally:
            stop.set()  # not cancelled: redis-py swallows that now and then (it waits with wait_for on Python 3.11)
            async with asyncio.timeout(10):
                await task

    async def _run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if await self.take() is None:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def bridging(bus: Bus, *, ingest: bool = True, **options: Any) -> AsyncIterator[PlainKeys]:
    """The bridge and (unless switched off) the ingest beside a test; both end in order."""
    chosen = {"look_every": 0.1, **options}
    bridge = PlainKeys(bus, options=PlainOptions(**chosen))
    async with ingesting(bus) if ingest else contextlib.nullcontext():
        task = asyncio.create_task(bridge.run(), name="test-plain")
        try:
            yield bridge
        finally:
            bridge.stop()
            async with asyncio.timeout(10):
                await task


@contextlib.asynccontextmanager
async def plain(server: RealServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A client that decodes text, as such programs have it."""
    client = server.client(decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
