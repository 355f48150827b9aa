"""CloudDBProxy: the cloud's tables over its HTTP service, in both forms in which petals call it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.cloud.tokens import Tokens, bearer
from petalbus.petals.proxies.errors import ProxyNotReady, error_result
from petalbus.petals.proxies.localdb.http import Addresses, HttpItems
from petalbus.petals.proxies.localdb.items import ItemCalls, ItemStore

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("CloudDBProxy")

Result = dict[str, Any]
PATH = "/drone/onBoard/config"


class _CloudItems(HttpItems):
    """The service's calls, with our token."""

    def __init__(self, addresses: Addresses, tokens: Tokens, *, debug: bool) -> None:
        super().__init__(addresses, self._note, debug=debug)
        self._tokens = tokens
        self.problem = ""

    def _auth(self, library: Any) -> httpx.Auth:
        return bearer(library, self._tokens)

    def _note(self, problem: str) -> None:
        self.problem = problem


class _Tables(ItemCalls):
    """The calls by table, key and value."""

    def __init__(self, owner: CloudDBProxy) -> None:
        super().__init__()
        self._owner = owner

    async def start(self) -> None:
        """Its owner starts it."""

    async def stop(self) -> None:
        """Its owner stops it."""

    def _items(self) -> ItemStore:
        return self._owner._service()  # one half of it

    def _machine(self) -> str:
        machine = self._owner._get_machine_id()  # the name that petals use
        if not machine:
            raise ProxyNotReady("the cloud cannot be used: the machine id is not known")
        return machine

    def _saw(self, table: str, value: str, item: Mapping[str, Any]) -> None:
        """The cloud's copy tells us nothing about ourselves."""


class CloudDBProxy(BaseProxy):
    """Every call answers a dict: with ``data`` and ``success``, or ``{"error": text, "status": number}``.

    A key is given as ``("id", "1")`` in two arguments, as ``{"id": "1"}``, or as the value of ``id`` alone. Items are
    of this machine; deleting marks them. Nothing is sent before the first call.
    """

    kind: ClassVar[str] = "cloud"

    def __init__(
        self,
        access_token_url: str,
        endpoint: str,
        session_token_url: str | None = None,
        s3_bucket_name: str | None = None,
        get_data_url: str = f"{PATH}/getData",
        scan_data_url: str = f"{PATH}/scanData",
        update_data_url: str = f"{PATH}/updateData",
        set_data_url: str = f"{PATH}/setData",
        debug: bool = False,
        request_timeout: int = 30,
        *,
        machine_id: str | None = None,
        organization: Any = None,
    ) -> None:
        super().__init__()
        self.access_token_url = access_token_url
        self.endpoint = endpoint
        self.session_token_url = session_token_url
        self.s3_bucket_name = s3_bucket_name
        self.request_timeout = request_timeout
        self._addresses = Addresses(endpoint, get_data_url, scan_data_url, update_data_url, set_data_url)
        self._machine = machine_id
        self._organization = organization
        self._debug = debug
        self._store: _CloudItems | None = None
        self._tables = _Tables(self)
        if debug:
            log.setLevel(logging.DEBUG)

    async def start(self) -> None:
        """Ready at once when endpoint and token service are configured."""
        told = {"cloud_endpoint": self.endpoint, "access_token_url": self.access_token_url}
        missing = [name for name, value in told.items() if not value]
        if missing:
            self._set_ready(False, f"not configured: {', '.join(missing)}")
            return
        self._store = _CloudItems(self._addresses, Tokens(self.access_token_url), debug=self._debug)
        self._set_ready(True)

    async def stop(self) -> None:
        """Close the connections."""
        self._set_ready(False, "stopped")
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    def _get_machine_id(self) -> str | None:
        return self._machine or getattr(self._organization, "machine_id", None)

    def _get_organization_id(self) -> str | None:
        return getattr(self._organization, "organization_id", None)

    async def get_item(self, table_name: str, *key: Any, **named: Any) -> Result:
        """One item: ``(table, key)`` or ``(table, partition_key, partition_value)``. 404 when there is none."""
        name, value = _key(key, named, ("partition_key", "partition_value"))
        return await self._tables.get_item(table_name, name, value)

    async def scan_items(
        self, table_name: str, filters: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None
    ) -> Result:
        """This machine's items that equal all filters: ``{name: value}``, or the service's own list of pairs."""
        return await self._tables.scan_items(table_name, _filters(filters))

    async def scan_table(
        self, table_name: str, filters: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None
    ) -> Result:
        """``scan_items``, by its other name."""
        return await self.scan_items(table_name, filters)

    async def set_item(self, table_name: str, filter_key: str, filter_value: str, data: dict[str, Any]) -> Result:
        """Write an item whole."""
        return await self._tables.set_item(table_name, filter_key, filter_value, data)

    async def put_item(self, table_name: str, item: dict[str, Any]) -> Result:
        """Write an item whole; its key is its ``id``."""
        if not isinstance(item.get("id"), str):
            return error_result("the item needs a text under id: that is its key", 400)
        return await self._tables.set_item(table_name, "id", item["id"], item)

    async def update_item(self, table_name: str, *key_and_data: Any, **named: Any) -> Result:
        """Change members: ``(table, key, updates)`` or ``(table, filter_key, filter_value, data)``."""
        if "updates" in named:
            named["data"] = named.pop("updates")
        *key, data = (*key_and_data, named.pop("data")) if "data" in named else key_and_data
        name, value = _key(tuple(key), named, ("filter_key", "filter_value"))
        return await self._tables.update_item(table_name, name, value, data)

    async def delete_item(self, table_name: str, *key: Any, **named: Any) -> Result:
        """Mark an item as deleted: ``(table, key)`` or ``(table, filter_key, filter_value)``."""
        name, value = _key(key, named, ("filter_key", "filter_value"))
        return await self._tables.delete_item(table_name, name, value)

    async def batch_write(self, table_name: str, items: Iterable[dict[str, Any]]) -> Result:
        """Write several items, each whole: ``written`` and ``failed`` (key and error). ``success``: none failed."""
        written, failed = [], []
        for item in items:
            answer = await self.put_item(table_name, item)
            if answer.get("success"):
                written.append(item["id"])
            else:
                failed.append({"id": item.get("id"), **answer})
        told: Result = {"data": {"written": written, "failed": failed}, "success": not failed}
        if failed:
            told |= error_result(f"{len(failed)} of {len(written) + len(failed)} items were not written", 502)
        return told

    async def health_check(self) -> dict[str, Any]:
        """State, and whether the last call reached the service."""
        told = await super().health_check()
        problem = self._store.problem if self._store is not None else ""
        if problem:
            told |= {"status": "unhealthy", "message": problem}
        return {**told, "endpoint": self.endpoint}

    def _service(self) -> _CloudItems:
        if self._store is None:
            raise ProxyNotReady(f"the cloud cannot be used: {self.reason}")
        return self._store


def _key(given: tuple[Any, ...], named: dict[str, Any], words: tuple[str, str]) -> tuple[str, str]:
    """A key in any of its forms. Raises TypeError that says which there are."""
    if "key" in named:
        given = (*given, named["key"])
    if words[1] in named:
        given = (*given, *([named[words[0]]] if words[0] in named else []), named[words[1]])
    if len(given) == 2:
        return str(given[0]), str(given[1])
    if len(given) == 1 and isinstance(given[0], Mapping) and len(given[0]) == 1:
        ((name, value),) = given[0].items()
        return str(name), str(value)
    if len(given) == 1 and isinstance(given[0], str | int):
        return "id", str(given[0])
    raise TypeError(f"a key is {words[0]} and {words[1]}, a dictionary of one member, or the value of id alone")


def _filters(given: Any) -> list[dict[str, Any]] | None:
    if isinstance(given, Mapping):
        return [{"filter_key_name": name, "filter_key_value": value} for name, value in given.items()]
    return given  # type: ignore[no-any-return]  # checked where it is used
