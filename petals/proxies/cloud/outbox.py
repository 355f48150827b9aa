"""Writes through the bus: records for the database handler, and the wait for what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from petalbus.daemon.bus.errors import BusError, ReplyError, RequestCancelled, RequestTimeout
from petalbus.handlers.database import words
from petalbus.handlers.database.errors import Away, Refused, TableError
from petalbus.handlers.database.values import is_plain, members_to_wire
from petalbus.handlers.database.writes import Write
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record


class Queued:
    """A write that is stored, and waits for the cloud. ``id``: of its record; ``why``: what it waits for."""

    __slots__ = ("data", "id", "why")

    def __init__(self, id: str, data: Mapping[str, Any], why: str) -> None:
        self.id = id
        self.data = data
        self.why = why


class Outbox:
    """A client of the bus, opened when it is first needed. ``patience``: seconds to wait for the cloud."""

    def __init__(self, url: str, *, bus: str, app: str, patience: float) -> None:
        self._where = (url, bus, app)
        self._patience = patience
        self._bus: Bus | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Leave the bus. What was handed over goes on."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def served(self) -> bool:
        """Whether a database handler has ever been on this bus: then it takes what we send, now or when it is back."""
        try:
            bus = await self._opened()
            return bool(await bus.ask("EXISTS", bus.keys.status(words.APP)))
        except BusError as error:
            raise Away(f"nothing was stored: {error}") from error

    async def write(self, write: Write) -> Any:
        """Store a write, and wait for its end: the cloud's answer, or Queued. Raises TableError."""
        order, name = _order(write), new_id()
        key = words.order_key(write.table, write.key, write.value)
        try:
            bus = await self._opened()
            keys = (words.number_key(bus.keys), words.away_key(bus.keys))
            number, away = await bus.ask("EVAL", words.NEXT_NUMBER, len(keys), *keys)
            order["seq"] = int(number)
            # sent without a deadline: one would end the write when it has waited for the cloud. Then it is waited for.
            # Always at one priority: order holds within one.
            await bus.send(words.APP, words.WRITE, order, id=name, key=key, priority=Priority.NORMAL)
        except RecordInvalid as error:
            raise Refused(str(error)) from error
        except BusError as error:
            raise Away(f"nothing was stored: {error}") from error
        if away:
            return Queued(name, write.data, away.decode(errors="replace"))
        return await self._result(bus, order, name, key, write)

    async def _result(self, bus: Bus, order: dict[str, Any], name: str, key: str, write: Write) -> Any:
        waits: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def told(reply: Record) -> None:
            if not waits.done():
                data = reply.data if isinstance(reply.data, dict) else {}
                waits.set_result(str(data.get("error", "")))

        request = bus.request(
            words.APP, words.WRITE, order, id=name, key=key, priority=Priority.NORMAL, timeout=self._patience,
            on_progress=told,
        )  # fmt: skip
        asked = asyncio.ensure_future(request)
        try:
            both: set[asyncio.Future[Any]] = {asked, waits}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return Queued(name, write.data, waits.result())
            return asked.result().data.get("data")
        except RequestTimeout:
            return Queued(name, write.data, f"the cloud has not answered within {self._patience:g} s")
        except ReplyError as error:
            raise _refused(error) from None
        except RequestCancelled:
            raise Refused("the write was cancelled", 499) from None
        except BusError as error:
            return Queued(name, write.data, f"its result cannot be read now: {error}")
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    async def _opened(self) -> Bus:
        async with self._turn:
            if self._bus is None:
                from petalbus.daemon.bus.client import Bus  # noqa: PLC0415  # only who writes needs it
                from petalbus.daemon.bus.options import BusOptions  # noqa: PLC0415  # the same

                url, bus, app = self._where
                made = Bus(url, app=app, bus=bus, options=BusOptions(presence=False))
                await made.start()
                self._bus = made
            return self._bus


def _order(write: Write) -> dict[str, Any]:
    """What the record says. Raises Refused."""
    order: dict[str, Any] = {
        "table": write.table,
        "key": {write.key: write.value},
        "operation": write.operation.value,
        "item": dict(write.data),
    }
    if write.condition is not None:
        order["condition"] = dict(write.condition)
    if not is_plain(order["item"]) or not is_plain(order.get("condition")):
        order["typed"] = True
        order["item"] = members_to_wire(order["item"])
        if write.condition is not None:
            order["condition"] = members_to_wire(write.condition)
    return order


def _refused(error: ReplyError) -> TableError:
    status = error.detail.get("status")
    status = status if isinstance(status, int) else 500
    made = Refused(str(error.detail.get("error") or error), status)
    made.code = str(error.error_code).lower()
    return made
