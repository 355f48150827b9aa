"""Writes through the bus: records for the database handler, and the wait for what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import (
    BusError,
    BusFull,
    OutcomeUnknown,
    QueueFull,
    ReplyError,
    RequestCancelled,
    RequestTimeout,
)
from petalbus.daemon.bus.options import BusOptions
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

MOST_MB: Final = 64
"""MiB that may wait, where the settings do not say it."""

_OVERHEAD: Final = 512
"""Bytes of a record besides its payload."""

_SENDS: Final = 3
_LEVEL: Final = Priority.HIGH
"""Always the same: order holds within one. Below it a server that is short of memory may drop what waits."""

_NOT_YET: Final = "the daemon's part for the cloud's tables has not been there yet"


class Queued:
    """A write that is stored, and waits for the cloud. ``id``: of its record; ``why``: what it waits for."""

    __slots__ = ("data", "id", "why")

    def __init__(self, id: str, data: Mapping[str, Any], why: str) -> None:
        self.id = id
        self.data = data
        self.why = why


class Superseded:
    """A write that was left out: the item has a later one. ``data``: the item."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class OutboxFull(TableError):
    """As much waits as may. Nothing was stored."""

    code = "OUTBOX_FULL"
    status = 507


class Unknown(TableError):
    """Nobody can say whether it was stored. ``id``: of its record."""

    code = "OUTCOME_UNKNOWN"
    status = 503

    def __init__(self, message: str, id: str) -> None:
        super().__init__(message)
        self.id = id


class Outbox:
    """A client of the bus, opened when it is first needed.

    ``patience``: seconds to wait for the cloud. ``most``: bytes of all programs' writes that may wait.
    """

    def __init__(
        self,
        url: str,
        *,
        bus: str,
        app: str,
        patience: float,
        most: int = MOST_MB << 20,
        options: BusOptions | None = None,
    ) -> None:
        self._where = (url, bus, app)
        self._patience = patience
        self._most = most
        self._options = options or BusOptions(presence=False)
        self._bus: Bus | None = None
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Leave the bus. What was handed over goes on."""
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def write(self, write: Write) -> Any:
        """Store a write, and wait for its end: the cloud's answer, Queued, or Superseded. Raises TableError."""
        order, key = prepared(write)
        name = new_id()
        try:
            bus = await self._opened()
            away = await self._take_room(bus, name, len(orjson.dumps(order)) + len(write.table) + _OVERHEAD)
        except (BusError, ServerError) as error:
            raise Away(f"nothing was stored: {error}") from error
        await self._store(bus, order, name, key)
        if away:
            return Queued(name, write.data, away)
        return await self._result(bus, order, name, key, write)

    async def _take_room(self, bus: Bus, name: str, size: int) -> str:
        """Count its bytes among those that wait; why it will have to wait."""
        keys = (words.waiting_key(bus.keys), words.away_key(bus.keys), bus.keys.status(words.APP))
        room, away, served, waiting = await bus.ask("EVAL", words.TAKE_ROOM, len(keys), *keys, name, size, self._most)
        if not room:
            raise OutboxFull(
                f"nothing was stored: {waiting} bytes of writes wait for the cloud, {self._most} may "
                f"(cloud_outbox_mb). It takes more when some are done{': ' if away else ''}{_text(away)}"
            )
        return _text(away) or ("" if served else _NOT_YET)

    async def _store(self, bus: Bus, order: dict[str, Any], name: str, key: str) -> None:
        """Send it; again under the same id while nobody knows whether it was stored. Raises TableError."""
        unknown = ""
        for left in reversed(range(_SENDS)):
            try:
                # Without a deadline: one would end the write when it has waited for the cloud. Then it is waited for.
                await bus.send(words.APP, words.WRITE, order, id=name, key=key, priority=_LEVEL)
            except OutcomeUnknown as error:
                unknown = str(error)
                if left and self._bus is bus:
                    continue
                raise Unknown(f"whether write {name} was stored is not known: {unknown}", name) from error
            except RecordInvalid as error:
                await self._give_room(bus, name)
                raise Refused(str(error)) from error
            except BusError as error:
                # a full bus still knows what it has; one that cannot be reached says nothing of the attempt before
                if unknown and not isinstance(error, BusFull | QueueFull):
                    text = f"whether write {name} was stored is not known: {unknown}, then {error}"
                    raise Unknown(text, name) from error
                await self._give_room(bus, name)
                raise Away(f"nothing was stored: {error}") from error
            return

    async def _give_room(self, bus: Bus, name: str) -> None:
        try:
            await bus.ask("EVAL", words.GIVE_ROOM, 1, words.waiting_key(bus.keys), name)
        except (BusError, ServerError):
            return  # the handler finds it

    async def _result(self, bus: Bus, order: dict[str, Any], name: str, key: str, write: Write) -> Any:
        waits: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def told(reply: Record) -> None:
            if not waits.done():
                data = reply.data if isinstance(reply.data, dict) else {}
                waits.set_result(str(data.get("error", "")))

        request = bus.request(
            words.APP, words.WRITE, order, id=name, key=key, priority=_LEVEL, timeout=self._patience, on_progress=told,
        )  # fmt: skip
        asked = asyncio.ensure_future(request)
        try:
            both: set[asyncio.Future[Any]] = {asked, waits}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return Queued(name, write.data, waits.result())
            answer = asked.result().data
            return Superseded(answer.get("data")) if answer.get("superseded") else answer.get("data")
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

                url, bus, app = self._where
                made = Bus(url, app=app, bus=bus, options=self._options)
                await made.start()
                self._bus = made
            return self._bus


def prepared(write: Write) -> tuple[dict[str, Any], str]:
    """What the record says, and its ordering key. Raises Refused for what can never be written."""
    try:
        order = _order(write)
        return order, words.order_key(write.table, write.key, write.value)
    except TableError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # such as a text that is no Unicode
        raise Refused(f"it can never be written: {error}"[:500]) from None


def _order(write: Write) -> dict[str, Any]:
    order: dict[str, Any] = {
        "machine": write.machine,
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


def _text(told: bytes) -> str:
    return told.decode(errors="replace")
