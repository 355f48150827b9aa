"""Items at a LocalDB service: four addresses, POST, JSON. Only reads are sent a second time."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.hiding import hide_in_log, shown_url
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady, ProxyTimeout
from petalbus.petals.proxies.localdb.errors import DatabaseError
from petalbus.petals.proxies.localdb.items import INSTANCES, OWNER, Filter, Item, ItemStore, NoItem
from petalbus.petals.proxies.localdb.queue import json_text

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 << 20
_CONNECTIONS: Final = 4
# Shorter than servers keep an idle connection: a write never goes into one that is just being closed.
_KEEP_SECONDS: Final = 2.0
_DELETED: Final = "there is no item {} = {!r} in {!r}"

logger = logging.getLogger(__name__)


class ServiceRefused(DatabaseError):
    """The service answered with an error, or with something that is no answer."""

    code = "localdb_service"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServiceAway(ProxyNotReady):
    """The service cannot be reached. Of a write that was under way nobody knows whether it was done."""

    status = 503


class ServiceSilent(ProxyTimeout):
    """The service did not answer in time; of a write nobody knows whether it was done."""

    status = 504


class OtherMachine(DatabaseError):
    """The item is not ours."""

    code = "access_denied"
    status = 403


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the service is: its root, and the paths of the four calls (or their whole URLs)."""

    root: str
    get: str
    scan: str
    update: str
    set: str


class HttpItems(ItemStore):
    """``reached`` is called with an empty text after each answer, and with the reason when the service is away."""

    def __init__(self, addresses: Addresses, reached: Callable[[str], None], *, debug: bool = False) -> None:
        self.addresses = addresses
        self._reached = reached
        self._debug = debug
        self._client: httpx.AsyncClient | None = None
        self._making = asyncio.Lock()

    def _auth(self, _library: Any) -> httpx.Auth | None:
        """How requests say who asks; the service on the vehicle does not want to know."""
        return None

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item; one of another machine, or a deleted one, is none."""
        item = await self._fetch(machine, table, key, value)
        mine = item.get(OWNER) == machine or (table == INSTANCES and value == machine)
        if not item or item.get("deleted") is True or not mine:
            raise NoItem(_DELETED.format(key, value, table))
        return item

    async def scan(self, machine: str, table: str, filters: Sequence[Filter]) -> list[Item]:
        """The items; the machine's id is one of the filters."""
        own = {"filter_key_name": OWNER, "filter_key_value": machine}
        body = {"table_name": table, "onBoardId": machine, "scanFilter": [*filters, own]}
        answer = await self._post(self.addresses.scan, body, reads=True)
        found = answer if isinstance(answer, list) else [answer] if answer else []
        if not all(isinstance(item, dict) for item in found):
            raise ServiceRefused(f"{shown_url(self.addresses.scan)}: the answer is no list of items", 502)
        return [item for item in found if item.get("deleted") is not True and item.get(OWNER) == machine]

    async def put(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:  # noqa: ARG002  # the service synchronises by itself
        """Write it whole."""
        return await self._post(self.addresses.set, _writing(machine, table, key, value, data))

    async def change(self, machine: str, table: str, key: str, value: str, data: Item, *, sync: bool) -> Any:  # noqa: ARG002  # the service synchronises by itself
        """Change it."""
        return await self._post(self.addresses.update, _writing(machine, table, key, value, data))

    async def remove(self, machine: str, table: str, key: str, value: str, *, sync: bool) -> Any:
        """Mark it: read it, and write it with ``deleted``."""
        item = await self._fetch(machine, table, key, value)
        if not item or item.get("deleted") is True:
            raise NoItem(_DELETED.format(key, value, table))
        own = table == INSTANCES and value == machine
        if item.get(OWNER) not in (None, "", machine) and not own:
            raise OtherMachine(f"the item {key} = {value!r} in {table!r} belongs to another machine")
        return await self.change(machine, table, key, value, {**item, "deleted": True, OWNER: machine}, sync=sync)

    async def _fetch(self, machine: str, table: str, key: str, value: str) -> Item:
        body = {"onBoardId": machine, "table_name": table, "partition_key": key, "partition_value": value}
        answer = await self._post(self.addresses.get, body, reads=True)
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            raise ServiceRefused(f"{shown_url(self.addresses.get)}: the answer is no item", 502)
        return answer

    async def _post(self, path: str, body: dict[str, Any], *, reads: bool = False) -> Any:
        content = json_text(body).encode()
        httpx = await asyncio.to_thread(importlib.import_module, "httpx") if self._client is None else _module()
        client = await self._connected(httpx)
        if self._debug:
            logger.debug("POST %s %s", path, body)
        for last in (False, True) if reads else (True,):
            try:
                status, answer = await _sent(client, path, content)
            except httpx.TimeoutException as error:
                if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
                    raise self._away(error) from error
                silent = f"{self._where(path)}: no answer within {ANSWER_SECONDS:g} s"
                raise ServiceSilent(silent) from error
            except httpx.TransportError as error:
                if last:
                    raise self._away(error) from error
            except httpx.HTTPError as error:
                raise ServiceRefused(f"{self._where(path)}: {type(error).__name__}", 502) from error
            else:
                self._reached("")
                return _answer(path, status, answer)
        raise AssertionError("the loop ends with an answer or an error")

    def _where(self, path: str = "") -> str:
        """An address for people: a password in it is not shown."""
        return f"{shown_url(self.addresses.root)}{shown_url(path)}"

    def _away(self, error: Exception) -> ProxyError:
        why = str(error) or type(error).__name__
        reason = f"the LocalDB service at {self._where()} cannot be reached: {why}"
        self._reached(reason)
        return ServiceAway(reason)

    async def _connected(self, library: Any) -> httpx.AsyncClient:
        async with self._making:
            if self._client is None:
                hide_in_log()
                limits = library.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEEP_SECONDS
                )
                timeout = library.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
                # In a thread: certificates are read from files even for plain HTTP.
                self._client = await asyncio.to_thread(
                    library.AsyncClient,
                    base_url=self.addresses.root,
                    limits=limits,
                    timeout=timeout,
                    trust_env=False,
                    headers={"Content-Type": "application/json"},
                    auth=self._auth(library),
                )
            assert self._client is not None
            return self._client


def _module() -> Any:
    return importlib.import_module("httpx")  # loaded already


async def _sent(client: httpx.AsyncClient, path: str, body: bytes) -> tuple[int, bytes]:
    async with client.stream("POST", path, content=body) as response:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > MAX_ANSWER:
                raise ServiceRefused(f"{shown_url(path)}: the answer has more than {MAX_ANSWER >> 20} MiB", 502)
        return response.status_code, bytes(content)


def _answer(path: str, status: int, content: bytes) -> Any:
    if status >= 400:
        said = content[:500].decode(errors="replace")
        raise ServiceRefused(f"{shown_url(path)}: the LocalDB service answered {status}: {said}", status)
    try:
        return orjson.loads(content) if content.strip() else None
    except orjson.JSONDecodeError as error:
        raise ServiceRefused(f"{shown_url(path)}: the answer is no JSON: {error}", 502) from None


def _writing(machine: str, table: str, key: str, value: str, data: Item) -> dict[str, Any]:
    return {"onBoardId": machine, "table_name": table, "filter_key": key, "filter_value": value, "data": data}
