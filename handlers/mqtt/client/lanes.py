"""Messages on their way out: one after the other for each topic, several topics at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from petalbus.handlers.mqtt.transport import LinkLost, Outgoing, PublishRefused

log = logging.getLogger(__name__)

Send = Callable[[Outgoing], Awaitable[int]]
"""Sends one message; its reason code. Raises LinkLost or PublishRefused."""

AT_ONCE: Final = 8
"""Requests at a time."""

WINDOW: Final = 64
"""Messages that are submitted and not confirmed, before ``room`` waits."""

_Entry = tuple[Outgoing, asyncio.Future[int]]
_Key = tuple[str, str | None]
"""Topic, and the command that is answered: what has the same key stays in order."""


class Lanes:
    """Shut at first. ``lost`` is called with every LinkLost that ``send`` raises."""

    def __init__(self, send: Send, lost: Callable[[LinkLost], None]) -> None:
        self._send = send
        self._lost = lost
        self._lanes: dict[_Key, deque[_Entry]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._room = asyncio.Event()
        self._is_open = False
        self._why = "not connected yet"
        self.in_flight = 0

    def open(self) -> None:
        """Take messages from now on."""
        self._is_open = True
        self._mark()

    def shut(self, why: str) -> None:
        """Take no more, and give back (LinkLost) what was not sent yet, in its order."""
        self._is_open = False
        self._why = why
        self._mark()
        for lane in self._lanes.values():
            while lane:
                self._end(lane.popleft()[1], LinkLost(why))

    def put(self, message: Outgoing) -> asyncio.Future[int]:
        """Send it after those of its key that were put before; the future as of ``Transport.submit``."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self._is_open:
            future.set_exception(LinkLost(self._why))
            return future
        self.in_flight += 1
        key = (message.topic, message.about)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
            worker = asyncio.create_task(self._work(key, lane), name="mqtt-client-lane")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        lane.append((message, future))
        self._mark()
        return future

    async def room(self) -> None:
        """Wait until it is open and one more may be put."""
        while not self._room.is_set():
            await self._room.wait()

    async def close(self, why: str) -> None:
        """End everything: whether what was just being sent has arrived is unknown then."""
        self.shut(why)
        for worker in list(self._workers):
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._lanes.clear()  # a worker that had not begun yet could not take its own out

    async def _work(self, key: _Key, lane: deque[_Entry]) -> None:
        try:
            while lane:
                message, future = lane.popleft()
                try:
                    async with self._slots:
                        await self._one(message, future)
                except BaseException:
                    self._end(future, LinkLost("the link was stopped before it was confirmed"))
                    raise
        finally:
            self._lanes.pop(key, None)

    async def _one(self, message: Outgoing, future: asyncio.Future[int]) -> None:
        if future.done():  # nobody wants it any more
            self._end(future, None)
            return
        if not self._is_open:
            self._end(future, LinkLost(self._why))
            return
        try:
            code = await self._send(message)
        except LinkLost as error:
            self._end(future, error)
            self._lost(error)
        except PublishRefused as error:
            self._end(future, error)
        except Exception as error:
            log.exception("a message for %s could not be sent", message.topic)
            lost = LinkLost(f"it could not be sent: {error!r}")
            self._end(future, lost)
            self._lost(lost)
        else:
            self._end(future, code)

    def _end(self, future: asyncio.Future[int], outcome: int | Exception | None) -> None:
        self.in_flight -= 1
        if not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            elif outcome is not None:
                future.set_result(outcome)
        self._mark()

    def _mark(self) -> None:
        if self._is_open and self.in_flight < WINDOW:
            self._room.set()
        else:
            self._room.clear()
