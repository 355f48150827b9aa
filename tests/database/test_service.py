"""The cloud's HTTP service when it answers badly: tokens that are none, 403, empty and false answers; secrets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from petalbus.daemon.bus.hiding import shown_url
from petalbus.daemon.config import ConfigError, load
from petalbus.daemon.http import cloud as cloud_routes
from petalbus.handlers.database import tokens
from petalbus.handlers.database.errors import Away, Busy, Deleted, Failing, Forbidden, Refused, TableError
from petalbus.handlers.database.service import Addresses, HttpTables
from petalbus.handlers.database.tokens import NoToken
from petalbus.handlers.database.writes import Operation, Policy, Verdict, Write
from petalbus.petals.proxies.localdb import LocalDBProxy

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService

LAST = Policy.LAST_WRITER
NO = (403, b'{"message": "Forbidden"}')


@pytest.fixture
async def tables(cloud: CloudService) -> AsyncIterator[HttpTables]:
    """Of the config service, without a bus."""
    made = HttpTables(Addresses(cloud.url), f"{cloud.url}/token", timeout=10)
    yield made
    await made.close()


def write(value: str = "1", operation: Operation = Operation.PUT, **more: Any) -> Write:
    told = {"machine": MACHINE, "table": TABLE, "key": "id", "value": value, "data": {"a": 1}, "seq": 5, **more}
    return Write(operation=operation, **told)


class OddTokens(CloudService):
    """Its token service answers what the test says."""

    said: bytes = b""

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """See HttpEnd."""
        return (200, self.said) if path == "/token" else await super().answer(path, headers, body)


@pytest.mark.parametrize(
    "token", ["SECR\x00ET", "SECRÉT", "SECR\nET", "", " \n", None, 7, {"a": "SECRET"}, "x" * 100_000]
)
async def test_a_token_that_is_none(token: Any) -> None:
    """S-054: it waits for a better one, is no fault of the write, and is never shown."""
    async with OddTokens() as cloud:
        cloud.said = json.dumps({"accessToken": token}).encode()
        tables = HttpTables(Addresses(cloud.url), f"{cloud.url}/token", timeout=10)
        with pytest.raises(NoToken) as told:
            await tables.write(write(), LAST)
        assert told.value.away
        assert "SECR" not in f"{told.value}{tables.problem}{told.value.__cause__}"
        cloud.said = b'{"accessToken": " token-1\\n"}'  # what stands around it does not matter
        assert (await tables.write(write(), LAST)).verdict is Verdict.APPLY
        await tables.close()


@pytest.mark.parametrize(
    "end", [True, 1, -5, "yesterday", "0001-01-01T00:00:00", float("inf"), float("nan"), 1e300, []]
)
def test_an_end_that_is_none(end: Any) -> None:
    """S-054: it does not make us fetch a token for each call."""
    assert tokens._seconds(end) >= tokens.ASSUMED_SECONDS
    assert tokens._seconds(time.time() + 100) == pytest.approx(100, abs=5)


async def test_everything_is_forbidden(world: World, cloud: CloudService) -> None:
    """S-054: a gateway answers 403 to all: the writes wait, and none becomes a dead letter."""
    await world.start()
    proxy = await world.proxy()
    cloud.trouble = lambda _call, _body: NO
    told = [await proxy.put_item(TABLE, {"id": str(n)}) for n in range(5)]
    assert [one["queued"] for one in told] == [True] * 5
    assert "does not take the token" in told[0]["message"]
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    assert set(cloud.tables[TABLE]) == set("01234")
    assert await world.dead() == []


async def test_one_table_is_forbidden(cloud: CloudService, tables: HttpTables) -> None:
    """S-054: then it is not the token: that write waits by itself, the others go on, and tokens are not fetched on."""
    cloud.trouble = lambda _call, body: NO if body["table_name"] == "locked" else None
    for _ in range(3):
        with pytest.raises(Forbidden, match="answered 403") as told:
            await tables.write(write(table="locked"), LAST)
        assert (told.value.passes, told.value.away, told.value.status) == (True, False, 403)
        await tables.write(write("2"), LAST)
    assert (cloud.tokens, tables.problem) == (2, "")
    cloud.trouble = lambda call, body: NO if (call, body.get("filter_value")) == ("setData", "1") else None
    with pytest.raises(Forbidden):
        await tables.write(write("1"), LAST)
    cloud.trouble = lambda _call, _body: NO  # and now it is the token
    tables._proof = ("", 0.0)
    with pytest.raises(NoToken):
        await tables.write(write("1"), LAST)


async def test_a_gateway_repeats_the_token(cloud: CloudService, tables: HttpTables) -> None:
    """S-054: it is not shown."""
    cloud.trouble = lambda _call, _body: (400, b"not a valid pair in Authorization header: 'Bearer token-1'")
    with pytest.raises(Refused, match=r"'Bearer \*\*\*'"):
        await tables.write(write(), LAST)


@pytest.mark.parametrize(("answer", "error"), [((200, b""), Failing), ((204, b" "), Failing), ((200, b"<html>"), Away)])
async def test_an_answer_that_says_nothing(
    cloud: CloudService, tables: HttpTables, answer: tuple[int, bytes], error: type[TableError]
) -> None:
    """S-054: it is no success. Was it done nevertheless, its repetition finds that out."""

    def done(call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if call == "setData":
            cloud._do(call, body)
        return answer if call == "setData" else None

    cloud.trouble = done
    with pytest.raises(error) as told:
        await tables.write(write(), LAST)
    assert (type(told.value), len(cloud.writes)) == (error, 1)
    assert (await tables.write(write(), LAST)).verdict is Verdict.REPEATED
    cloud.trouble = lambda _call, _body: answer
    with pytest.raises(Away):
        await tables.get(MACHINE, TABLE, "id", "1")


@pytest.mark.parametrize(
    ("said", "error", "status"),
    [
        ({"success": False, "error": "locked"}, Refused, 502),
        ({"error": "no such column", "status": 422}, Refused, 422),
        ({"success": False, "statusCode": 429}, Busy, 503),
        ({"error": "broken", "status": 500, "id": "request-1"}, Failing, 503),
        ({"error": "token", "status": 401}, NoToken, 403),
    ],
)
async def test_an_error_in_words(
    cloud: CloudService, tables: HttpTables, said: dict[str, Any], error: type[TableError], status: int
) -> None:
    """S-054: an answer 200 that says that it was not done is no success."""
    cloud.trouble = lambda call, _body: (200, json.dumps(said).encode()) if call == "setData" else None
    with pytest.raises(error) as told:
        await tables.write(write(), LAST)
    assert (type(told.value), told.value.status) == (error, status)


async def test_no_such_item_in_words(cloud: CloudService, tables: HttpTables) -> None:
    """S-050, S-054: some services say so with 200; any other complaint about a read is no reason to write."""
    cloud.trouble = lambda call, _body: (200, b'{"error": "Item not found"}') if call == "getData" else None
    assert (await tables.write(write(), LAST)).verdict is Verdict.APPLY
    cloud.trouble = lambda call, _body: (200, b'{"error": "locked"}') if call == "getData" else None
    with pytest.raises(Refused, match="locked"):
        await tables.write(write("2"), LAST)
    assert len(cloud.writes) == 1


async def test_an_item_that_tells_of_an_error(cloud: CloudService, tables: HttpTables) -> None:
    """S-051: members of an item mean nothing to us, whatever they are called."""
    data = {"success": False, "error": "motor 3", "status": 500}
    await tables.write(write(data=data), LAST)
    assert (await tables.get(MACHINE, TABLE, "id", "1"))["error"] == "motor 3"
    cloud.trouble = lambda call, body: (200, json.dumps(body["data"]).encode()) if call == "updateData" else None
    told = await tables.write(write("1", Operation.UPDATE, data=data, seq=6), LAST)
    assert told.answer["error"] == "motor 3"


async def test_a_deleted_item_is_not_changed(cloud: CloudService, tables: HttpTables) -> None:
    """S-051, S-052: an update of it is refused with 404; a put makes it anew."""
    await tables.write(write(), LAST)
    await tables.write(write("1", Operation.DELETE, seq=6, data={}), LAST)
    for policy in (LAST, None):
        with pytest.raises(Deleted):
            await tables.write(write("1", Operation.UPDATE, seq=7), policy)
    await tables.write(write("1", Operation.UPDATE, seq=7, data={"deleted": False}), LAST)
    assert (await tables.get(MACHINE, TABLE, "id", "1"))["a"] == 1
    await tables.write(write("1", Operation.DELETE, seq=8, data={}), LAST)
    await tables.write(write("1", seq=9), LAST)
    assert "deleted" not in cloud.tables[TABLE]["1"]


async def test_passwords_in_addresses_are_not_shown(
    cloud: CloudService, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """S-054: neither in errors, nor in the log, nor in the settings."""
    caplog.set_level(logging.DEBUG)
    host = cloud.url.removeprefix("http://")
    open_to_all = HttpTables(Addresses(cloud.url), f"http://u:HIDDEN@{host}/token")
    await open_to_all.write(write(), LAST)
    await open_to_all.close()
    await cloud.shut()
    for url, token_url in (
        (f"http://u:HIDDEN@{host}", f"http://u:HIDDEN@{host}/token?code=HIDDEN"),
        ("http://u:HIDDEN@[::1", f"http://u:HIDDEN@{host}:x/token"),
    ):
        made = HttpTables(Addresses(url), token_url, timeout=5)
        with pytest.raises(Away) as told:
            await made.get(MACHINE, TABLE, "id", "1")
        made.tokens._token, made.tokens._until = "token-1", time.monotonic() + 60
        with pytest.raises(Away) as also:
            await made.get(MACHINE, TABLE, "id", "1")
        assert "HIDDEN" not in f"{told.value}{also.value}{made.problem}{made.where}"
        await made.close()
    local = LocalDBProxy(url=f"http://u:HIDDEN@{host}", machine_id=MACHINE)
    await local.start()
    told_by_local = await local.get_item(TABLE, "id", "1")
    await local.stop()
    assert (told_by_local["status"], "HIDDEN" in told_by_local["error"]) == (503, False)
    assert f"POST http://{host}/token" in caplog.text
    assert "HIDDEN" not in caplog.text
    assert shown_url("https://u:p@[::1]:8/a?b#c") == "https://[::1]:8/a"
    assert shown_url("/drone/getData") == "/drone/getData"
    names = ("cloud_endpoint", "access_token_url", "session_token_url", "localdb_url", "s3_endpoint")
    plain = "http://host:1/a"
    for secret in ("http://u:HIDDEN@host/a", "http://host/a?code=HIDDEN", "http://u:HIDDEN@[host"):
        loaded = load({"data": tmp_path, **dict.fromkeys(names, secret)}, environment={})
        assert "HIDDEN" not in str(list(loaded.shown()))
    loaded = load({"data": tmp_path, **dict.fromkeys(names, plain)}, environment={})
    assert {value for name, value, _ in loaded.shown() if name in names} == {plain}
    with pytest.raises(ConfigError) as refused:
        load({"data": tmp_path, "redis": "http://u:HIDDEN@[host"}, environment={})
    assert "HIDDEN" not in str(refused.value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [{"a": float("-inf")}], "\ud800", {b"\x01"}, {"\udfff": 1}]
)
def test_what_json_has_no_words_for(value: Any) -> None:
    """S-054: an answer never becomes a 500 because of what is in it."""
    for told, status in (({"data": value, "success": True}, 200), ({"error": "no", "status": 409, "data": value}, 409)):
        answer = cloud_routes._answer(told)
        assert answer.status_code == status
        found = json.loads(answer.body)["data"]
        assert (found is None) == isinstance(value, float)


async def test_not_a_number_over_http(world: World, cloud: CloudService) -> None:
    """S-054: what was stored is answered as stored."""
    await cloud.shut()
    handler = await world.start()
    proxy = await world.proxy()
    await proxy.put_item(TABLE, {"id": "0"})
    app = FastAPI()
    app.include_router(cloud_routes.cloud_router(lambda: proxy))
    body = b'{"table_name": "flight-records", "key_name": "id", "key_value": "1", "item_data": {"v": NaN, "w": 1e400}}'
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vehicle") as client:
        answer = await client.post("/cloud/set-item", content=body, headers={"content-type": "application/json"})
        unnamed = await client.post("/cloud/set-item", content=body.replace(b'"1"', b'""'))
    assert (answer.status_code, unnamed.status_code) == (202, 422)
    assert answer.json()["data"]["v"] is None
    await cloud.open()
    handler.link.look()
    await until(lambda: "1" in cloud.tables.get(TABLE, {}))
    assert cloud.tables[TABLE]["1"]["w"] is None
