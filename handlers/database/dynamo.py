"""Tables in DynamoDB, or in something that speaks its language. A table's key is one text member; no sort key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any, Final, Protocol

from petalbus.handlers.database import conditions
from petalbus.handlers.database.dynamo_errors import Changed, Expired, translated
from petalbus.handlers.database.errors import Failing, NotThere, Refused, TableError
from petalbus.handlers.database.tables import MAX_ANSWER_BYTES, MAX_ROWS, Done, Tables
from petalbus.handlers.database.values import from_members, members, to_attribute
from petalbus.handlers.database.writes import (
    OWNER,
    Item,
    Operation,
    Policy,
    Verdict,
    Write,
    is_ours,
    judge,
    missing,
    shown,
)

BATCH: Final = 25
CONNECT_SECONDS: Final = 5.0
_BATCH_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.05
_LOOKS: Final = 4
_CONNECTIONS: Final = 8
_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")


class Signing(Protocol):
    """Credentials that are fetched by themselves. What their service answers may be raised by any call.

    Such an error has ``status`` and ``passes``, as TableError has.
    """

    made: Any
    """What the library signs with."""

    async def current(self) -> object:
        """Those that a request signs with now."""

    async def renew(self, seen: object) -> None:
        """Fetch new ones, unless somebody has done so since ``seen``."""


class DynamoTables(Tables):
    """``credentials`` is called in a thread, once: the library is large. ``prefix``: before each table's name."""

    kind = "dynamodb"

    def __init__(
        self,
        credentials: Callable[[], Signing],
        *,
        region: str = "us-east-1",
        endpoint: str | None = None,
        prefix: str = "",
        timeout: float = 30.0,
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self.prefix = prefix
        self._make = credentials
        self._timeout = timeout
        self._credentials: Signing | None = None
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._turn = asyncio.Lock()

    @property
    def where(self) -> str:
        """The endpoint, or AWS's region."""
        return self.endpoint or f"DynamoDB in {self.region}"

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item, as it is at this moment."""
        item = await self._fetch(table, key, value)
        if not is_ours(item, machine, table, value):
            raise NotThere(missing(table, key, value))
        return shown(item)

    async def scan(self, machine: str, table: str, filters: Sequence[Mapping[str, Any]]) -> list[Item]:
        """The items, page by page (the cloud reads 1 MB a page, and filters then)."""
        wanted = {**conditions.scan(machine, filters), "ConsistentRead": True}
        found: list[Item] = []
        size = 0
        more: dict[str, Any] = {}
        while True:
            answer = await self._call("scan", table, **wanted, **more)
            for one in answer.get("Items", []):
                found.append(shown(from_members(one)))
                size += len(repr(one))
                if len(found) > MAX_ROWS or size > MAX_ANSWER_BYTES:
                    limit = f"{MAX_ROWS} items or {MAX_ANSWER_BYTES >> 20} MiB"
                    raise Refused(f"the scan of {table!r} has more than {limit}: give filters")
            if not answer.get("LastEvaluatedKey"):
                return found
            more = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    async def write(self, write: Write, policy: Policy | None) -> Done:
        """Written under a condition; where that does not hold, what is stored says why."""
        for _ in range(_LOOKS):
            try:
                return Done(await self._write(write, policy))
            except Changed:
                stored = await self._fetch(write.table, write.key, write.value)
                verdict = judge(stored, write, policy)
            if verdict is not Verdict.APPLY:
                return Done(shown(stored), verdict)
        raise Failing(f"{write}: others write it again and again")

    async def write_many(
        self, machine: str, table: str, key: str, items: Iterable[Mapping[str, Any]]
    ) -> dict[str, str]:
        """25 at a time; what the cloud has not processed is sent again after a pause."""
        failed: dict[str, str] = {}
        waiting = {str(item[key]): {**item, OWNER: machine} for item in items}  # of two with one key the later counts
        entries = list(waiting.items())
        for at in range(0, len(entries), BATCH):
            try:
                failed |= await self._write_batch(table, key, dict(entries[at : at + BATCH]))
            except TableError as error:
                failed |= dict.fromkeys(dict(entries[at : at + BATCH]), str(error))
        return failed

    async def close(self) -> None:
        """Close the connections."""
        self._client = None
        await self._stack.aclose()

    async def _write(self, write: Write, policy: Policy | None) -> Item:
        if write.operation is Operation.PUT:
            told = conditions.put(write, policy)
            await self._call("put_item", write.table, **told)
            return shown(from_members(told["Item"]))
        answer = await self._call("update_item", write.table, **conditions.update(write, policy))
        return shown(from_members(answer.get("Attributes", {})))

    async def _write_batch(self, table: str, key: str, items: dict[str, Item]) -> dict[str, str]:
        name = self._name(table)
        requests = [{"PutRequest": {"Item": members(item)}} for item in items.values()]
        for attempt in range(_BATCH_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_FIRST_WAIT * 2.0**attempt)
            answer = await self._call("batch_write_item", None, RequestItems={name: requests})
            requests = answer.get("UnprocessedItems", {}).get(name, [])
            if not requests:
                return {}
        left = (from_members(one["PutRequest"]["Item"])[key] for one in requests)
        return dict.fromkeys(map(str, left), f"the cloud has not processed it in {_BATCH_ATTEMPTS} attempts")

    async def _fetch(self, table: str, key: str, value: str) -> Item:
        wanted = {"Key": {key: to_attribute(value)}, "ConsistentRead": True}
        return from_members((await self._call("get_item", table, **wanted)).get("Item", {}))

    def _name(self, table: str) -> str:
        name = f"{self.prefix}{table}"
        if _TABLE.fullmatch(name) is None:
            raise Refused(f"{name!r} cannot be the name of a table: 3 to 255 of A-Z a-z 0-9 _ . -")
        return name

    async def _call(self, name: str, table: str | None, **arguments: Any) -> dict[str, Any]:
        """One request. Credentials that have run out are fetched anew once, and it is sent again: it did nothing."""
        if table is not None:
            arguments["TableName"] = self._name(table)
        what = name if table is None else f"{name} in {table!r}"
        try:
            client = await self._connected()
            assert self._credentials is not None
            async with translated(what, self.where, last=True):
                seen = await self._credentials.current()
            try:
                async with translated(what, self.where):
                    answer: dict[str, Any] = await getattr(client, name)(**arguments)
            except Expired:
                async with translated(what, self.where, last=True):
                    await self._credentials.renew(seen)
                    answer = await getattr(client, name)(**arguments)
        except TableError as error:
            self.problem = str(error) if error.away else ""
            raise
        self.problem = ""
        return answer

    async def _connected(self) -> Any:
        async with self._turn:
            if self._client is None:
                self._credentials, session = await asyncio.to_thread(self._prepared)
                config = import_module("aiobotocore.config").AioConfig(
                    connect_timeout=min(CONNECT_SECONDS, self._timeout),
                    read_timeout=self._timeout,
                    retries={"total_max_attempts": 1},  # whoever calls has his own, and knows what may be repeated
                    max_pool_connections=_CONNECTIONS,
                    proxies={},
                )
                made = session.create_client(
                    "dynamodb", region_name=self.region, endpoint_url=self.endpoint, config=config
                )
                self._client = await self._stack.enter_async_context(made)
            return self._client

    def _prepared(self) -> tuple[Signing, Any]:
        """Credentials, and a session that signs with them. Blocks for about a second."""
        session: Any = import_module("aiobotocore.session").get_session()
        made = self._make()
        session._credentials = made.made  # the library's own recipe
        session.get_component("data_loader").load_service_model("dynamodb", "service-2")
        return made, session
