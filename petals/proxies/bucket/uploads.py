"""Uploads through the bus: records for the bucket handler, and the wait for what becomes of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import BusError, ReplyError, RequestCancelled
from petalbus.handlers.bucket import words
from petalbus.petals.proxies.errors import error_result
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority, Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

OnProgress = Callable[[dict[str, Any]], object]

_LONG_S: Final = 300 * 86_400.0
_QUICK_S: Final = 0.05
_LOOK_S: Final = 0.5
_LEFT: Final = 256
_ASK_S: Final = 3.0
_MOVING: Final = ("uploading", "waiting")

_DOCUMENTED: Final = ("success", "message", "s3_key", "url", "file_url", "size", "indexed")


class _Standing:
    """How long an upload has stood still, and why."""

    def __init__(self) -> None:
        self.why = "the bucket handler does not answer"
        self._since: float | None = time.monotonic()

    def told(self, data: dict[str, Any]) -> None:
        """It has said how far it is."""
        if data.get("state") in _MOVING:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        self.why = str(data.get("error") or f"the upload is {data.get('state')}")

    @property
    def seconds(self) -> float:
        """0 while it moves, or waits for others that do."""
        return 0.0 if self._since is None else time.monotonic() - self._since


class Uploads:
    """A client of the bus, opened when it is first needed. ``url``, ``bus``: where; ``app``: who we are there."""

    def __init__(self, url: str, *, bus: str, app: str) -> None:
        self._where = (url, bus, app)
        self._bus: Bus | None = None
        self._turn = asyncio.Lock()
        self._left: OrderedDict[str, str] = OrderedDict()

    async def close(self) -> None:
        """Leave the bus. What was handed over goes on."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def served(self) -> bool:
        """Whether a bucket handler has ever been on this bus: then it takes what we send, now or when it is back."""
        bus = await self._opened()
        return bool(await bus.ask("EXISTS", bus.keys.status(words.APP)))

    async def send(
        self, order: dict[str, Any], *, id: str | None, priority: Priority | int, deadline: float | None = None
    ) -> str:
        """Store the record; its id. Raises BusError."""
        bus = await self._opened()
        receipt = await bus.send(words.APP, words.UPLOAD, order, id=id, priority=priority, deadline=deadline)
        return receipt.id

    async def status(self, id: str) -> Status:
        """Where the record of an upload stands. Raises BusError."""
        return await (await self._opened()).status(id)

    async def upload(
        self,
        order: dict[str, Any],
        *,
        id: str | None,
        priority: Priority | int,
        patience: float,
        on_progress: OnProgress | None,
    ) -> dict[str, Any]:
        """Store the record and wait for its end, in the shape of the proxy's answers. Raises BusError."""
        bus = await self._opened()
        same = json.dumps([order, int(priority)], sort_keys=True)
        name = id or self._left.pop(same, None) or new_id()
        # sent without a deadline: one would not outlive a power cut, and the upload shall. Then it is waited for.
        await self.send(order, id=name, priority=priority)
        stands = _Standing()

        def told(reply: Record) -> None:
            if isinstance(reply.data, dict):
                stands.told(reply.data)
                if on_progress is not None:
                    on_progress(reply.data)

        waiting = asyncio.ensure_future(
            bus.request(words.APP, words.UPLOAD, order, id=name, priority=priority, timeout=_LONG_S, on_progress=told)
        )
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=min(_LOOK_S, max(_QUICK_S, patience)))
                if patience <= 0 and not waiting.done():
                    return self._later(same, name, stands.why)
                if stands.seconds > patience and not waiting.done():
                    stands.told(await self._asked(bus, name))
                    if stands.seconds > patience:
                        return self._later(same, name, stands.why)
            return self._answer(name, waiting)
        except BaseException:
            self._remember(same, name)
            raise
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    def _answer(self, name: str, waiting: asyncio.Future[Record]) -> dict[str, Any]:
        try:
            data = waiting.result().data
        except ReplyError as error:
            status = error.detail.get("status")
            text = str(error.detail.get("error") or error)
            return error_result(text, status if isinstance(status, int) else 500, success=False, upload_id=name)
        except RequestCancelled:
            return error_result("the upload was cancelled", 499, success=False, upload_id=name)
        return {**{key: data[key] for key in _DOCUMENTED if key in data}, "upload_id": name}

    async def _asked(self, bus: Bus, name: str) -> dict[str, Any]:
        """How an upload stands, by the handler's list: it tells us only what changes."""
        try:
            told = (await bus.request(words.APP, words.UPLOADS, {}, timeout=_ASK_S, priority=Priority.HIGH)).data
        except BusError as error:
            return {"error": f"the bucket handler does not answer ({error})"}
        found: dict[str, Any] = next((one for one in told["uploads"] if one["id"] == name), {})
        return {**found, "error": found.get("last_error")}

    def _later(self, same: str, name: str, why: str) -> dict[str, Any]:
        """It has stood still for long: say why, and that it goes on."""
        self._remember(same, name)
        text = f"{why}; the upload waits, and goes on by itself"
        return error_result(text, 503, success=False, queued=True, upload_id=name)

    def _remember(self, same: str, name: str) -> None:
        """The same call again shall wait for the same upload, not begin another one."""
        self._left[same] = name
        while len(self._left) > _LEFT:
            self._left.popitem(last=False)

    async def _opened(self) -> Bus:
        async with self._turn:
            if self._bus is None:
                from petalbus.daemon.bus.client import Bus  # noqa: PLC0415  # only who uploads needs it
                from petalbus.daemon.bus.options import BusOptions  # noqa: PLC0415  # the same

                url, bus, app = self._where
                made = Bus(url, app=app, bus=bus, options=BusOptions(presence=False))
                await made.start()
                self._bus = made
            return self._bus
