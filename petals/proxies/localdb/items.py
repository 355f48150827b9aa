"""The item calls: JSON documents by table and key, in the local file or at a LocalDB service.

They answer ``{"data": ..., "success": True}`` or ``{"error": text, "status": number}`` and raise nothing for what can
go wrong outside of the caller's own code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyError, error_result
from petalbus.petals.proxies.localdb.errors import DatabaseError, QueryRefused

Item = dict[str, Any]
Filter = Mapping[str, Any]

INSTANCES: Final = "config-robot_instances"
OWNER: Final = "robot_instance_id"
MAX_KEY: Final = 1024


class NoItem(DatabaseError):
    """There is no such item, or it was deleted."""

    code = "no_item"
    status = 404


class ItemStore(ABC):
    """Where items are. Both kinds raise ProxyError."""

    @abstractmethod
    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item. Raises NoItem."""

    @abstractmethod
    async def scan(self, machine: str, table: str, filters: Sequence[Filter]) -> list[Item]:
        """The items that are not deleted and equal all filters."""

    @abstractmethod
    async def put(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:
        """Write an item whole. ``sync``: and append it to the sync queue, both or neither."""

    @abstractmethod
    async def change(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:
        """Change members of an item, or make it."""

    @abstractmethod
    async def remove(self, machine: str, table: str, key: str, value: str, *, sync: bool) -> Any:
        """Mark an item as deleted. Raises NoItem."""


class ItemCalls(BaseProxy):
    """The calls. The subclass says where items are, and who this machine is."""

    _sync_tables: frozenset[str] = frozenset()

    async def get_item(self, table_name: str, partition_key: str, partition_value: str) -> dict[str, Any]:
        """One item of this machine; status 404 when there is none, or it was deleted."""
        try:
            machine = self._machine()
            names(table_name, partition_key, partition_value)
            item = await self._items().get(machine, table_name, partition_key, partition_value)
        except ProxyError as error:
            return failed(error)
        self._saw(table_name, partition_value, item)
        return {"data": item, "success": True}

    async def scan_items(self, table_name: str, filters: Sequence[Filter] | None = None) -> dict[str, Any]:
        """This machine's items that are not deleted.

        ``filters``: dictionaries with ``filter_key_name`` and ``filter_key_value``; an item must equal all of them.
        """
        try:
            machine = self._machine()
            names(table_name, "id", "")
            found = await self._items().scan(machine, table_name, [_filter(one) for one in filters or ()])
        except ProxyError as error:
            return failed(error)
        return {"data": found, "success": True}

    async def set_item(
        self, table_name: str, filter_key: str, filter_value: str, data: Item, *, sync: bool | None = None
    ) -> dict[str, Any]:
        """Write an item whole: what was there before is gone, also that it was deleted.

        ``sync``: append it to the sync queue in the same transaction (default: if its table is one of ``sync_tables``).
        """
        try:
            machine, owned = self._ready_to_write(table_name, filter_key, filter_value, data)
            marked = self._is_synchronised(table_name, sync)
            answer = await self._items().put(machine, table_name, filter_key, filter_value, owned, sync=marked)
        except ProxyError as error:
            return failed(error)
        self._saw(table_name, filter_value, owned)
        return {"data": answer, "success": True}

    async def update_item(
        self, table_name: str, filter_key: str, filter_value: str, data: Item, *, sync: bool | None = None
    ) -> dict[str, Any]:
        """Change the members that ``data`` names; one that is not there is made. A deleted one stays deleted: 404."""
        try:
            machine, owned = self._ready_to_write(table_name, filter_key, filter_value, data)
            marked = self._is_synchronised(table_name, sync)
            answer = await self._items().change(machine, table_name, filter_key, filter_value, owned, sync=marked)
        except ProxyError as error:
            return failed(error)
        self._saw(table_name, filter_value, owned)
        return {"data": answer, "success": True}

    async def delete_item(
        self, table_name: str, filter_key: str, filter_value: str, *, sync: bool | None = None
    ) -> dict[str, Any]:
        """Mark an item as deleted: gets and scans do not show it any more, its content is kept. 404: there is none."""
        try:
            machine = self._machine()
            names(table_name, filter_key, filter_value)
            marked = self._is_synchronised(table_name, sync)
            answer = await self._items().remove(machine, table_name, filter_key, filter_value, sync=marked)
        except ProxyError as error:
            return failed(error)
        self._saw(table_name, filter_value, {"organization_id": None, "robot_type_id": None})
        return {"data": answer, "success": True}

    def _items(self) -> ItemStore:
        raise NotImplementedError

    def _machine(self) -> str:
        """This machine's id. Raises ProxyError when it is not known."""
        raise NotImplementedError

    def _saw(self, table: str, value: str, item: Mapping[str, Any]) -> None:
        """An item went by: the machine's own instance item tells its organisation and type."""
        raise NotImplementedError

    def _ready_to_write(self, table: str, key: str, value: str, data: Any) -> tuple[str, Item]:
        machine = self._machine()
        names(table, key, value)
        if not isinstance(data, Mapping):
            raise QueryRefused(f"data must be a dictionary, not {type(data).__name__}")
        if data.get(key, value) != value:
            raise QueryRefused(
                f"data says {key} = {data[key]!r}, and the item's key {key} = {value!r}: they must agree"
            )
        return machine, {**data, OWNER: machine}

    def _is_synchronised(self, table: str, sync: bool | None) -> bool:
        return table in self._sync_tables if sync is None else sync


def names(table: Any, key: Any, value: Any) -> None:
    """Raises QueryRefused for what can name no item."""
    for what, word in (("table_name", table), ("key", key)):
        if not isinstance(word, str) or not word or len(word) > MAX_KEY:
            raise QueryRefused(f"{what} {word!r} must be a text of 1 to {MAX_KEY} characters")
    if not isinstance(value, str) or len(value) > MAX_KEY:
        raise QueryRefused(f"the value of the key must be a text of at most {MAX_KEY} characters, not {value!r}")


def _filter(one: Any) -> dict[str, Any]:
    if not isinstance(one, Mapping) or set(one) != {"filter_key_name", "filter_key_value"}:
        raise QueryRefused(f"filter {one!r} must have filter_key_name and filter_key_value, and nothing else")
    if not isinstance(one["filter_key_value"], str | int | float | bool):
        raise QueryRefused(f"filter {one!r}: the value must be a text, a number or a truth value")
    return dict(one)


def failed(error: ProxyError) -> dict[str, Any]:
    """An error as a call answers it; with the record's ``id`` where that is worth knowing."""
    name = getattr(error, "id", None)
    extra = {} if name is None else {"id": name}
    return error_result(str(error), getattr(error, "status", 503), error_code=error.code, **extra)
