"""The proxy's calls by table, key and value: reads ask the cloud, writes go through the bus where there is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from petalbus.handlers.database.checks import Check
from petalbus.handlers.database.errors import Refused, TableError
from petalbus.handlers.database.tables import Tables
from petalbus.handlers.database.writes import Operation, Write
from petalbus.petals.proxies.cloud.outbox import Outbox, Queued, Superseded, prepared
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady
from petalbus.petals.proxies.localdb.items import Filter, Item, ItemCalls, ItemStore

T = TypeVar("T")


class CloudError(ProxyError):
    """What the tables said. ``status``: HTTP's number for it. ``id``: of the record, where that is worth knowing."""

    def __init__(self, error: TableError) -> None:
        super().__init__(str(error))
        self.code = error.code
        self.status = error.status
        self.id: str | None = getattr(error, "id", None)


class CloudItems(ItemStore):
    """``outbox``: None where this process writes by itself. ``check``: what may be known of a write beforehand."""

    def __init__(self, tables: Tables, outbox: Outbox | None, check: Check) -> None:
        self.tables = tables
        self.outbox = outbox
        self._check = check

    async def close(self) -> None:
        """Close the connections."""
        if self.outbox is not None:
            await self.outbox.close()
        await self.tables.close()

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item."""
        return await _told(self.tables.get(machine, table, key, value))

    async def scan(self, machine: str, table: str, filters: Sequence[Filter]) -> list[Item]:
        """The items."""
        return await _told(self.tables.scan(machine, table, filters))

    async def put(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:  # noqa: ARG002  # it goes to the cloud anyway
        """Write it whole."""
        return await self.write(machine, table, (key, value), Operation.PUT, data)

    async def change(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:  # noqa: ARG002  # it goes to the cloud anyway
        """Change it."""
        return await self.write(machine, table, (key, value), Operation.UPDATE, data)

    async def remove(self, machine: str, table: str, key: str, value: str, *, sync: bool) -> Any:  # noqa: ARG002  # it goes to the cloud anyway
        """Mark it."""
        return await self.write(machine, table, (key, value), Operation.DELETE, {})

    async def write(
        self,
        machine: str,
        table: str,
        key: tuple[str, str],
        operation: Operation,
        data: Mapping[str, Any],
        condition: Mapping[str, Any] | None = None,
    ) -> Any:
        """One write: the cloud's answer, Queued, or Superseded. Raises CloudError."""
        write = Write(
            machine=machine,
            table=table,
            key=key[0],
            value=key[1],
            operation=operation,
            data=data,
            condition=condition,
        )

        async def done() -> Any:
            self._look_at(write)
            if self.outbox is not None:
                return await self.outbox.write(write)
            return (await self.tables.write(write, None)).answer

        return await _told(done())

    @property
    def hands_over(self) -> bool:
        """Whether writes go through the bus."""
        return self.outbox is not None

    def _look_at(self, write: Write) -> None:
        """Raise Refused for what can never be written: said now, not by a dead letter later."""
        order, _ = prepared(write)
        made = Write.of(order, machine=write.machine, seq=1)
        try:
            self._check(made)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Refused(f"it can never be written: {error}"[:500]) from None

    async def write_many(self, machine: str, table: str, items: Sequence[Item]) -> dict[str, str]:
        """Write them from this process, each with its ``id``. Those that failed: id -> why. Raises CloudError."""
        return await _told(self.tables.write_many(machine, table, "id", items))


class CloudCalls(ItemCalls):
    """``store`` and ``machine``: who answers, and for whom; they raise ProxyNotReady."""

    def __init__(self, store: Callable[[], CloudItems], machine: Callable[[], str | None]) -> None:
        super().__init__()
        self._store = store
        self._who = machine

    async def start(self) -> None:
        """Its owner starts it."""

    async def stop(self) -> None:
        """Its owner stops it."""

    def ready_to_write(self, table: str, key: str, value: str, data: Any) -> tuple[str, Item]:
        """This machine, and the item with its id. Raises ProxyError for what can name no item."""
        return self._ready_to_write(table, key, value, data)

    def _items(self) -> ItemStore:
        return self._store()

    def _machine(self) -> str:
        machine = self._who()
        if not machine:
            raise ProxyNotReady("the cloud cannot be used: the machine id is not known")
        return machine

    def _saw(self, table: str, value: str, item: Mapping[str, Any]) -> None:
        """The cloud's copy tells us nothing about ourselves."""


def queued_or_done(answer: dict[str, Any]) -> dict[str, Any]:
    """A call's answer; one that waits for the cloud says so: ``queued``, ``id``, ``message``. One that was left out
    because the item has a later write: ``superseded``.
    """
    waits = answer.get("data")
    if isinstance(waits, Superseded):
        return {"data": waits.data, "success": True, "superseded": True}
    if not isinstance(waits, Queued):
        return answer
    told = {"queued": True, "id": waits.id, "message": f"stored; it is done when the cloud can be reached: {waits.why}"}
    return {"data": dict(waits.data), "success": True, **told}


async def _told(call: Awaitable[T]) -> T:
    try:
        return await call
    except TableError as error:
        raise CloudError(error) from error
