"""Tables at the cloud's HTTP service: four addresses, POST, JSON, a token with each call.

The service knows no conditions, so each write reads the item first. Writes of one item come one after the other from
us; between such a read and its write somebody else may still write.

What is an answer: JSON. Anything else stands in the service's place. Of a write with an empty answer nobody knows
whether it was done; its repetition finds that out. An answer that says in its words that it was not done is no success,
whatever its number.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.hiding import hide_in_log, shown_url
from petalbus.handlers.database.errors import Away, Busy, Failing, Forbidden, NotThere, Refused, TableError
from petalbus.handlers.database.tables import MAX_ANSWER_BYTES, Done, Tables
from petalbus.handlers.database.tokens import NoToken, Tokens
from petalbus.handlers.database.writes import (
    BY,
    INSTANCES,
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
_PROVEN_SECONDS: Final = 30.0
"""So long after the cloud has taken a token a 403 is not about the token."""

_UNSAID: Final = 600
"""Not done, and no number is told."""


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
        self._question: dict[str, Any] | None = None
        """The last read that was answered."""

        self._proof = ("", 0.0)
        """A token that the cloud has taken though it has answered 403 to something, and until when that counts."""

    @property
    def where(self) -> str:
        """The service's root."""
        return shown_url(self.addresses.root)

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
            raise Refused(f"{shown_url(self.addresses.scan)}: the answer is no list of items", 502)
        return [shown(one) for one in found if one.get("deleted") is not True and one.get(OWNER) == machine]

    async def write(self, write: Write, policy: Policy | None) -> Done:
        """Read, judge, write."""
        stored = await self._fetch(write.machine, write.table, write.key, write.value)
        verdict = judge(stored, write, policy)
        if verdict is not Verdict.APPLY:
            return Done(shown(stored), verdict, stored.get(SEQ), stored.get(BY))
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
        away = ""
        for item in items:
            if away:  # it would be so for all that are left
                failed[str(item[key])] = away
                continue
            data = {name: one for name, one in item.items() if name != key}
            one = Write(machine=machine, table=table, key=key, value=str(item[key]), operation=Operation.PUT, data=data)
            try:
                await self.write(one, None)
            except TableError as error:
                failed[one.value] = str(error)
                away = str(error) if error.away else ""
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
            raise Refused(f"{shown_url(self.addresses.get)}: the answer is no item", 502)
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
                if isinstance(error, httpx.LocalProtocolError):  # it may say a piece of the request
                    raise self._away(type(error).__name__) from None
                raise self._away(str(error) or type(error).__name__) from error
            except (httpx.InvalidURL, UnicodeError):  # without the cause: it may show the URL
                raise self._away("that is no URL that can be used") from None
            told, is_json = _parsed(answer)
            if status < 300 and is_json:
                status = _said(told, body.get("partition_key")) or status
            refused = status == 401 or (status == 403 and not self._is_proven(token))
            if refused and again["token"]:  # nothing was done
                again["token"] = False
                token = await self._authorised(httpx, token)
                continue
            if status == 403 and not self._is_proven(token):
                await self._prove(httpx, client, token, path, body)
            self._check(path, status, answer, token, is_json=is_json, reads=reads)
            if path == self.addresses.get:
                self._question = body
            return told

    async def _authorised(self, library: Any, refused: str | None) -> str:
        try:
            return await self.tokens.get(library, refused=refused)
        except Away as error:
            self.problem = str(error)
            raise

    def _is_proven(self, token: str) -> bool:
        proven, until = self._proof
        return token == proven and time.monotonic() < until

    async def _prove(
        self, library: Any, client: httpx.AsyncClient, token: str, path: str, body: dict[str, Any]
    ) -> None:
        """Is a 403 about our token, or about what was asked for? Ask for what was answered last, or for ourselves."""
        machine = body["onBoardId"]
        own = {"onBoardId": machine, "table_name": INSTANCES, "partition_key": "id", "partition_value": machine}
        question = self._question if self._question is not None and self._question != body else own
        if question == body and path == self.addresses.get:
            return
        try:
            status, answer = await _sent(client, self.addresses.get, _json(question), token)
        except library.HTTPError:
            return
        if (status < 300 or 400 <= status < 500) and status not in (401, 403) and _parsed(answer)[1]:
            self._proof = (token, time.monotonic() + _PROVEN_SECONDS)

    def _check(self, path: str, status: int, answer: bytes, token: str, *, is_json: bool, reads: bool) -> None:
        """Raise TableError for what is no success."""
        path = shown_url(path)
        if status == 401 or (status == 403 and not self._is_proven(token)):
            self.problem = f"{path}: the cloud does not take the token that the token service gives out ({status})"
            raise NoToken(self.problem)
        if 300 <= status < 400 or status == 407:
            raise self._away(f"something answered {status} in its place")
        # gateways say what they have got
        text = answer.decode(errors="replace").replace(token, "***")[:200] if status >= 400 or not is_json else ""
        is_empty_to_write = not reads and not text.strip()
        if status < 300 and not is_json and not is_empty_to_write:
            # nothing, or a page of whoever gives out the network: not the service
            raise self._away(f"what answered is no service: {text[:60]!r}" if text else "the answer is empty")
        self.problem = ""
        if status < 300 and not is_json:  # a read before it was answered just now, so it is this write's own trouble
            raise Failing(f"{path}: the cloud answered {status} and nothing: nobody knows whether it was done")
        if status == _UNSAID:
            raise Refused(f"{path}: the cloud says that it has not done it: {text}", 502)
        if status == 403:
            raise Forbidden(f"{path}: the cloud takes our token, and answered 403: {text}")
        if status in _BUSY:
            raise Busy(f"{path}: the cloud answered {status}: {text}")
        if status >= 500:
            raise Failing(f"{path}: the cloud answered {status}: {text}")
        if status >= 400:
            raise Refused(f"{path}: the cloud answered {status}: {text}", status)

    def _away(self, reason: str) -> Away:
        self.problem = f"the cloud at {self.where} cannot be reached: {reason}"
        return Away(self.problem)

    async def _connected(self, library: Any) -> httpx.AsyncClient:
        async with self._making:
            client = self._client
            if client is None:
                hide_in_log()
                limits = library.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEEP_SECONDS
                )
                timeout = library.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout))
                # In a thread: certificates are read from files even for plain HTTP.
                try:
                    made: httpx.AsyncClient = await asyncio.to_thread(
                        library.AsyncClient,
                        base_url=self.addresses.root,
                        limits=limits,
                        timeout=timeout,
                        trust_env=False,
                    )
                except (library.InvalidURL, UnicodeError):  # without the cause: it may show the URL
                    raise self._away("that is no URL that can be used") from None
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


def _parsed(answer: bytes) -> tuple[Any, bool]:
    try:
        return orjson.loads(answer), True
    except orjson.JSONDecodeError:
        return None, False


def _said(told: Any, key: str | None) -> int:
    """The number of what an answer calls an error in its words; 0: it does not. ``key``: of the item asked for.

    An item may have members of these names: one bears its key, and its owner.
    """
    if not isinstance(told, dict) or OWNER in told or key in told:
        return 0
    if told.get("success") is not False and not told.get("error"):
        return 0
    if key is not None and "not found" in f"{told.get('error')} {told.get('message')}".lower():
        return NotThere.status  # a way to say that there is no such item
    number = next((told[name] for name in ("status", "statusCode") if isinstance(told.get(name), int)), 0)
    return number if 400 <= number < 600 else _UNSAID


async def _sent(client: httpx.AsyncClient, path: str, content: bytes, token: str) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    answer, size = [], 0
    async with client.stream("POST", path, content=content, headers=headers) as response:
        async for chunk in response.aiter_bytes():
            answer.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise Refused(
                    f"{shown_url(path)}: the answer has more than {MAX_ANSWER_BYTES >> 20} MiB: give filters", 502
                )
        return response.status_code, b"".join(answer)
