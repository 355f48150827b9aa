"""CloudDBProxy: the cloud's tables, in both forms in which petals call them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from petalbus.daemon.bus.hiding import shown_url
from petalbus.handlers.database.writes import Operation
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.cloud.batch import summary, write_all
from petalbus.petals.proxies.cloud.items import CloudCalls, CloudItems, queued_or_done
from petalbus.petals.proxies.cloud.outbox import MOST_MB, Outbox
from petalbus.petals.proxies.cloud.tables import make_check, make_tables, missing
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady, error_result
from petalbus.petals.proxies.localdb.errors import QueryRefused
from petalbus.petals.proxies.localdb.items import failed

log = logging.getLogger("CloudDBProxy")

Result = dict[str, Any]
PATH: Final = "/drone/onBoard/config"
WAIT_S: Final = 5.0


class CloudDBProxy(BaseProxy):
    """Every call answers a dict: with ``data`` and ``success``, or ``{"error": text, "status": number}``.

    A key is given as ``("id", "1")`` in two arguments, as ``{"id": "1"}``, or as the value of ``id`` alone. Items are
    of this machine; deleting marks them. Nothing is sent before the first call.

    ``url``, ``bus``: the bus whose daemon writes; without one this process does. A write that cannot be done within
    ``wait`` seconds, or while the cloud is known to be away, is stored and answers ``success`` and ``queued``; of all
    programs' writes ``outbox_mb`` MiB may wait.
    ``backend``: ``http``, or ``dynamodb``: then ``endpoint`` is DynamoDB's (empty: AWS's own).
    """

    kind: ClassVar[str] = "cloud"

    def __init__(  # noqa: PLR0913  # petals' own signature, and where the bus is
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
        backend: str = "http",
        region: str = "us-east-1",
        table_prefix: str = "",
        wait: float = WAIT_S,
        outbox_mb: int = MOST_MB,
        url: str | None = None,
        bus: str = "petalbus",
        app_id: str = "petal-app-manager.cloud",
    ) -> None:
        super().__init__()
        self.access_token_url = access_token_url
        self.endpoint = endpoint
        self.session_token_url = session_token_url
        self.s3_bucket_name = s3_bucket_name
        self.request_timeout = request_timeout
        self._addresses = {"get": get_data_url, "scan": scan_data_url, "update": update_data_url, "set": set_data_url}
        self._told: dict[str, Any] = {
            "cloud_backend": backend,
            "cloud_endpoint": endpoint,
            "cloud_region": region,
            "cloud_table_prefix": table_prefix,
            "access_token_url": access_token_url,
            "session_token_url": session_token_url,
            "timeout": float(request_timeout),
        }
        self._machine = machine_id
        self._organization = organization
        self._outbox = (
            Outbox(url, bus=bus, app=app_id, patience=wait, most=outbox_mb << 20) if url is not None else None
        )
        self._store: CloudItems | None = None
        self._tables = CloudCalls(self._service, self._get_machine_id)
        if debug:
            log.setLevel(logging.DEBUG)

    async def start(self) -> None:
        """Ready at once when it is configured: nobody is asked before a call needs it."""
        lacking = missing(self._told)
        if lacking:
            self._set_ready(False, f"not configured: {', '.join(lacking)}")
            return
        self._store = CloudItems(make_tables(self._told, self._addresses), self._outbox, make_check(self._told))
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
        return queued_or_done(await self._tables.set_item(table_name, filter_key, filter_value, data))

    async def put_item(self, table_name: str, item: dict[str, Any]) -> Result:
        """Write an item whole; its key is its ``id``."""
        if not isinstance(item.get("id"), str):
            return error_result("the item needs a text under id: that is its key", 400)
        return queued_or_done(await self._tables.set_item(table_name, "id", item["id"], item))

    async def update_item(self, table_name: str, *key_and_data: Any, **named: Any) -> Result:
        """Change members: ``(table, key, updates)`` or ``(table, filter_key, filter_value, data)``."""
        if "updates" in named:
            named["data"] = named.pop("updates")
        *key, data = (*key_and_data, named.pop("data")) if "data" in named else key_and_data
        name, value = _key(tuple(key), named, ("filter_key", "filter_value"))
        return queued_or_done(await self._tables.update_item(table_name, name, value, data))

    async def delete_item(self, table_name: str, *key: Any, **named: Any) -> Result:
        """Mark an item as deleted: ``(table, key)`` or ``(table, filter_key, filter_value)``."""
        name, value = _key(key, named, ("filter_key", "filter_value"))
        return queued_or_done(await self._tables.delete_item(table_name, name, value))

    async def write_if(
        self, table_name: str, key: Any, data: dict[str, Any], condition: dict[str, Any], *, whole: bool = False
    ) -> Result:
        """Write an item only if it has these members (None: it must lack one); else status 409.

        Changes the members that ``data`` names, or writes it ``whole``. With such a condition an item of a table whose
        policy is ``refuse`` may be written although somebody else wrote it last.
        """
        name, value = _key((key,), {}, ("filter_key", "filter_value"))
        try:
            machine, owned = self._tables.ready_to_write(table_name, name, value, data)
            operation = Operation.PUT if whole else Operation.UPDATE
            answer = await self._service().write(machine, table_name, (name, value), operation, owned, condition)
        except ProxyError as error:
            return failed(error)
        return queued_or_done({"data": answer, "success": True})

    async def batch_write(self, table_name: str, items: Iterable[dict[str, Any]]) -> Result:
        """Write several items, each whole: ``written`` and ``failed`` (key and error). ``success``: none failed.

        Those that wait for the cloud count as written; ``queued`` says that there are such. ``superseded``: those of
        which the cloud has a later write.
        """
        good: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        machine = ""
        for item in items:
            try:
                if not isinstance(item.get("id"), str):
                    raise QueryRefused("the item needs a text under id: that is its key")
                machine, owned = self._tables.ready_to_write(table_name, "id", item["id"], item)
                store = self._service()
                good.append(owned)
            except ProxyError as error:
                refused.append({"id": item.get("id"), **failed(error)})
        if not good:
            return summary([], {}, refused)
        answers = await write_all(store, machine, table_name, good, lambda item: self.put_item(table_name, item))
        return summary([one["id"] for one in good], answers, refused)

    async def health_check(self) -> dict[str, Any]:
        """State, and whether the last call reached the service."""
        told = await super().health_check()
        problem = self._store.tables.problem if self._store is not None else ""
        if problem:
            told |= {"status": "unhealthy", "message": problem}
        return {**told, "endpoint": shown_url(self.endpoint), "backend": self._told["cloud_backend"]}

    def _service(self) -> CloudItems:
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
