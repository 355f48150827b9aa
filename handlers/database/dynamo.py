"""Tables in DynamoDB, or in something that speaks its language. A table's key is one text member; no sort key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from petalbus.daemon.bus.hiding import shown_url
from petalbus.handlers.database import conditions
from petalbus.handlers.database.dynamo_errors import Changed, Expired, translated
from petalbus.handlers.database.errors import Away, Conflict, Failing, Forbidden, NotThere, Refused, TableError
from petalbus.handlers.database.tables import MAX_ANSWER_BYTES, MAX_ROWS, Done, Tables
from petalbus.handlers.database.values import from_members, to_attribute
from petalbus.handlers.database.writes import (
    BY,
    SEQ,
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

CONNECT_SECONDS: Final = 5.0
_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.05
_LOOKS: Final = 4
_CONNECTIONS: Final = 8
_Answer = TypeVar("_Answer")
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
        return shown_url(self.endpoint) if self.endpoint else f"DynamoDB in {self.region}"

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item, as it is at this moment."""
        item = from_members(await _patiently(lambda: self._read(table, key, value)))
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
            answer = await _patiently(partial(self._call, "scan", table, **wanted, **more))
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
        """Written under a condition; where that does not hold, what is stored says why.

        Where what is stored says that it may be written nevertheless, or the conditions are too long to be said, it is
        written if that is still so: what ``judge`` says counts, whatever the table understands by our conditions.
        """
        request = conditions.asked(write, policy)
        seen: Item | None = None
        for _ in range(_LOOKS):
            if request is not None:
                with suppress(Changed):
                    return Done(await self._send(write, *request))
            found = await self._read(write.table, write.key, write.value)
            if found == seen:
                raise Conflict(f"{write}: the cloud does not take it, and does not say why")
            stored = from_members(found)
            verdict = judge(stored, write, policy)
            if verdict is not Verdict.APPLY:
                return Done(shown(stored), verdict, stored.get(SEQ), stored.get(BY))
            seen, request = found, conditions.guarded(write, policy, found)
        raise Failing(f"{write}: others write it again and again")

    async def write_many(
        self, machine: str, table: str, key: str, items: Iterable[Mapping[str, Any]]
    ) -> dict[str, str]:
        """Each by itself, some at a time: a table knows no conditions for several at once. See ``Tables``."""
        waiting = {str(item[key]): item for item in items}  # of two with one key the later counts
        failed: dict[str, str] = {}
        entries = iter(waiting.items())
        away: list[str] = []

        async def some() -> None:
            for value, item in entries:
                data = {name: one for name, one in item.items() if name != key}
                one = Write(machine=machine, table=table, key=key, value=value, operation=Operation.PUT, data=data)
                try:
                    if away:  # it would be so for all that are left
                        failed[value] = away[0]
                    else:
                        await _patiently(partial(self.write, one, None))
                except TableError as error:
                    failed[value] = str(error)
                    if error.away:
                        away.append(str(error))

        async with asyncio.TaskGroup() as group:
            for _ in range(_CONNECTIONS):
                group.create_task(some())
        return failed

    async def close(self) -> None:
        """Close the connections."""
        self._client = None
        await self._stack.aclose()

    async def _send(self, write: Write, name: str, arguments: dict[str, Any]) -> Item:
        answer = await self._call(name, write.table, **arguments)
        return shown(from_members(arguments["Item"] if "Item" in arguments else answer.get("Attributes", {})))

    async def _read(self, table: str, key: str, value: str) -> Item:
        """An item's attribute values; none at all where there is no such item."""
        wanted = {"Key": {key: to_attribute(value)}, "ConsistentRead": True}
        found: Item = (await self._call("get_item", table, **wanted)).get("Item", {})
        return found

    def _name(self, table: str) -> str:
        name = f"{self.prefix}{table}"
        if _TABLE.fullmatch(name) is None:
            raise Refused(f"{name!r} cannot be the name of a table: 3 to 255 of A-Z a-z 0-9 _ . -")
        return name

    async def _call(self, name: str, table: str, **arguments: Any) -> dict[str, Any]:
        """One request. Credentials that have run out are fetched anew once, and it is sent again: it did nothing."""
        arguments["TableName"] = self._name(table)
        what = f"{name} in {table!r}"
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
                try:
                    self._client = await self._stack.enter_async_context(made)
                except ValueError:  # without the cause: it may show the URL
                    raise Away(f"cloud_endpoint is no URL that can be used: {self.where}") from None
            return self._client

    def _prepared(self) -> tuple[Signing, Any]:
        """Credentials, and a session that signs with them. Blocks for about a second."""
        session: Any = import_module("aiobotocore.session").get_session()
        made = self._make()
        session._credentials = made.made  # the library's own recipe
        session.get_component("data_loader").load_service_model("dynamodb", "service-2")
        return made, session


async def _patiently(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """What the cloud cannot do just now it is asked for again after a pause.

    That matters most for a large scan: a table's provisioned capacity is less than its second page, and who began
    anew each time would never see the third.
    """
    for attempt in range(_ATTEMPTS - 1):
        try:
            return await call()
        except Forbidden:
            raise
        except Failing:
            await asyncio.sleep(_FIRST_WAIT * 2.0**attempt)
    return await call()
