"""Tables at the cloud's HTTP service: four addresses, POST, JSON, a token with each call.

The service knows no conditions, so a write with a policy reads the item first. Writes of one item come one after the
other from us; between such a read and its write somebody else may still write.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.handlers.database.errors import Away, Failing, NotThere, Refused, TableError
from petalbus.handlers.database.tables import MAX_ANSWER_BYTES, Done, Tables
from petalbus.handlers.database.tokens import NoToken, Tokens
from petalbus.handlers.database.writes import (
    BY,
    OWNER,
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

if TYPE_CHECKING:
    import httpx

PATH: Final = "/drone/onBoard/config"
MAX_BODY: Final = 1 << 20
CONNECT_SECONDS: Final = 5.0
_CONNECTIONS: Final = 8
# Shorter than servers keep an idle connection: a write never goes into one that is just being closed.
_KEEP_SECONDS: Final = 2.0
_BUSY: Final = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the service is: its root, and the paths of the four calls (or their whole URLs)."""

    root: str
    get: str = f"{PATH}/getData"
    scan: str = f"{PATH}/scanData"
    update: str = f"{PATH}/updateData"
    set: str = f"{PATH}/setData"


class HttpTables(Tables):
    """``timeout``: seconds for an answer."""

    kind = "http"

    def __init__(self, addresses: Addresses, token_url: str, *, timeout: float = 30.0) -> None:
        self.addresses = addresses
        self.tokens = Tokens(token_url)
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()

    @property
    def where(self) -> str:
        """The service's root."""
        return self.addresses.root

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item."""
        item = await self._fetch(machine, table, key, value)
        if not is_ours(item, machine, table, value):
            raise NotThere(missing(table, key, value))
        return shown(item)

    async def scan(self, machine: str, table: str, filters: Sequence[Mapping[str, Any]]) -> list[Item]:
        """The items; the machine's id is one of the filters."""
        own = {"filter_key_name": OWNER, "filter_key_value": machine}
        body = {"table_name": table, "onBoardId": machine, "scanFilter": [*filters, own]}
        answer = await self._post(self.addresses.scan, body, reads=True)
        found = answer if isinstance(answer, list) else [answer] if answer else []
        if not all(isinstance(item, dict) for item in found):
            raise Refused(f"{self.addresses.scan}: the answer is no list of items", 502)
        return [shown(one) for one in found if one.get("deleted") is not True and one.get(OWNER) == machine]

    async def write(self, write: Write, policy: Policy | None) -> Done:
        """Read, judge, write."""
        stored: Item = {}
        if policy is not None or write.operation is Operation.DELETE or write.condition is not None:
            stored = await self._fetch(write.machine, write.table, write.key, write.value)
            verdict = judge(stored, write, policy)
            if verdict is not Verdict.APPLY:
                return Done(shown(stored), verdict)
        data = write.marked
        if policy is None:
            data = shown(data)
        if write.operation is Operation.DELETE:
            data = {**{name: one for name, one in stored.items() if name not in (SEQ, BY)}, **data}
        path = self.addresses.set if write.operation is Operation.PUT else self.addresses.update
        body = {
            "onBoardId": write.machine,
            "table_name": write.table,
            "filter_key": write.key,
            "filter_value": write.value,
            "data": data,
        }
        return Done(await self._post(path, body))

    async def write_many(
        self, machine: str, table: str, key: str, items: Iterable[Mapping[str, Any]]
    ) -> dict[str, str]:
        """One after the other: the service has no call for several."""
        failed: dict[str, str] = {}
        for item in items:
            data = {name: one for name, one in item.items() if name != key}
            one = Write(machine=machine, table=table, key=key, value=str(item[key]), operation=Operation.PUT, data=data)
            try:
                await self.write(one, None)
            except TableError as error:
                failed[one.value] = str(error)
        return failed

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _fetch(self, machine: str, table: str, key: str, value: str) -> Item:
        body = {"onBoardId": machine, "table_name": table, "partition_key": key, "partition_value": value}
        try:
            answer = await self._post(self.addresses.get, body, reads=True)
        except Refused as error:
            if error.status != NotThere.status:
                raise
            return {}  # one that is not there; where it is the table, writing says so
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            raise Refused(f"{self.addresses.get}: the answer is no item", 502)
        return answer

    async def _post(self, path: str, body: dict[str, Any], *, reads: bool = False) -> Any:
        """One call. Only a read is sent again at once when its connection breaks."""
        content = _json(body)
        httpx = await asyncio.to_thread(importlib.import_module, "httpx") if self._client is None else _httpx()
        client = await self._connected(httpx)
        token = await self._authorised(httpx, None)
        again = {"connection": reads, "token": True}
        while True:
            try:
                status, answer = await _sent(client, path, content, token)
            except httpx.HTTPError as error:
                if again["connection"] and not isinstance(error, httpx.TimeoutException):
                    again["connection"] = False
                    continue
                raise self._away(f"{str(error) or type(error).__name__}") from error
            if status in (401, 403) and again["token"]:  # nothing was done
                again["token"] = False
                token = await self._authorised(httpx, token)
                continue
            return self._answered(path, status, answer)

    async def _authorised(self, library: Any, refused: str | None) -> str:
        try:
            return await self.tokens.get(library, refused=refused)
        except Away as error:
            self.problem = str(error)
            raise

    def _answered(self, path: str, status: int, answer: bytes) -> Any:
        if status == 401:
            self.problem = f"{path}: the cloud does not take the token that the token service gives out"
            raise NoToken(self.problem)
        if 300 <= status < 400:
            raise self._away(f"something answered {status} in its place")
        self.problem = ""
        text = answer[:200].decode(errors="replace")
        if status >= 500 or status in _BUSY:
            raise Failing(f"{path}: the cloud answered {status}: {text}")
        if status >= 400:
            raise Refused(f"{path}: the cloud answered {status}: {text}", status)
        try:
            return orjson.loads(answer) if answer.strip() else None
        except orjson.JSONDecodeError:
            # a page of whoever gives out the network: not the service
            raise self._away(f"what answered is no service: {text[:60]!r}") from None

    def _away(self, reason: str) -> Away:
        self.problem = f"the cloud at {self.addresses.root} cannot be reached: {reason}"
        return Away(self.problem)

    async def _connected(self, library: Any) -> httpx.AsyncClient:
        async with self._making:
            client = self._client
            if client is None:
                limits = library.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEEP_SECONDS
                )
                timeout = library.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout))
                # In a thread: certificates are read from files even for plain HTTP.
                made: httpx.AsyncClient = await asyncio.to_thread(
                    library.AsyncClient,
                    base_url=self.addresses.root,
                    limits=limits,
                    timeout=timeout,
                    trust_env=False,
                )
                self._client = client = made
            return client


def _httpx() -> Any:
    return importlib.import_module("httpx")


def _json(body: dict[str, Any]) -> bytes:
    try:
        content = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise Refused(f"it cannot be written as JSON: {error}") from None
    if len(content) > MAX_BODY:
        raise Refused(f"it has {len(content)} bytes as JSON; {MAX_BODY} are allowed", 413)
    return content


async def _sent(client: httpx.AsyncClient, path: str, content: bytes, token: str) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    answer, size = [], 0
    async with client.stream("POST", path, content=content, headers=headers) as response:
        async for chunk in response.aiter_bytes():
            answer.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise Refused(f"{path}: the answer has more than {MAX_ANSWER_BYTES >> 20} MiB: give filters", 502)
        return response.status_code, b"".join(answer)
