"""The cloud proxy against a real HTTP service that wants a token, and comes and goes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from petalbus.petals.proxies.cloud import CloudDBProxy

from support.s3_world import free_port

TABLE = "flight-records"


class Cloud:
    """The config service and its token service in one, on plain sockets."""

    def __init__(self) -> None:
        self.port = free_port()
        self.tables: dict[str, dict[str, dict[str, Any]]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.tokens = 0
        self.valid = "token-1"
        self.expires: Any = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head.split()[1]
        if path == "/token":
            self.tokens += 1
            told = {"accessToken": self.valid, **({"expiresAt": self.expires} if self.expires else {})}
            status, answer = 200, told
        elif headers.get("authorization") != f"bearer {self.valid}":
            status, answer = 401, {"message": "unauthorised"}
        else:
            status, answer = 200, self._answer(path.rpartition("/")[2], json.loads(body))
        content = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(content)))
        writer.write(content)
        await writer.drain()
        writer.close()

    def _answer(self, call: str, body: dict[str, Any]) -> Any:
        self.calls.append((call, json.loads(json.dumps(body))))
        table = self.tables.setdefault(body["table_name"], {})
        if call == "getData":
            return table.get(body["partition_value"], {})
        if call == "scanData":
            wanted = {one["filter_key_name"]: one["filter_key_value"] for one in body["scanFilter"]}
            return [item for item in table.values() if all(item.get(name) == value for name, value in wanted.items())]
        if call == "setData":
            table[body["filter_value"]] = body["data"]
        else:
            table.setdefault(body["filter_value"], {}).update(body["data"])
        return {"ok": True}


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    made = Cloud()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def proxy(cloud: Cloud) -> AsyncIterator[CloudDBProxy]:
    made = CloudDBProxy(f"{cloud.url}/token", cloud.url, machine_id="m1")
    await made.start()
    yield made
    await made.stop()


async def test_the_documented_calls(proxy: CloudDBProxy, cloud: Cloud) -> None:
    """S-008, S-048, S-049, S-050, S-051, S-052, S-055: put, get, scan, update, delete, by key as a dict or by id."""
    assert cloud.tokens == 0
    assert (await proxy.put_item(TABLE, {"id": "1", "a": 1}))["success"]
    assert (await proxy.update_item(TABLE, {"id": "1"}, {"b": 2}))["success"]
    assert (await proxy.update_item(TABLE, "1", updates={"c": 3}))["success"]
    item = {"id": "1", "a": 1, "b": 2, "c": 3, "robot_instance_id": "m1"}
    assert await proxy.get_item(TABLE, {"id": "1"}) == {"data": item, "success": True}
    assert await proxy.get_item(TABLE, key="1") == {"data": item, "success": True}
    assert (await proxy.scan_table(TABLE, {"a": 1}))["data"] == [item]
    assert (await proxy.scan_table(TABLE, filters={"a": 2}))["data"] == []
    assert (await proxy.delete_item(TABLE, {"id": "1"}))["success"]
    assert cloud.tables[TABLE]["1"]["deleted"] is True
    assert (await proxy.get_item(TABLE, "1"))["status"] == 404
    assert (await proxy.scan_table(TABLE))["data"] == []
    assert (await proxy.put_item(TABLE, {"a": 1}))["status"] == 400
    with pytest.raises(TypeError, match="a key is"):
        await proxy.get_item(TABLE, {"a": 1, "b": 2})


async def test_the_calls_that_existing_petals_make(proxy: CloudDBProxy, cloud: Cloud) -> None:
    """D.6: the same with filter keys, by position and by name; the bodies are those that the service expects."""
    assert (await proxy.set_item(TABLE, "id", "1", {"a": 1}))["success"]
    assert (await proxy.update_item(TABLE, "id", "1", {"b": 2}))["success"]
    named = {"filter_key": "id", "filter_value": "1", "data": {"c": 3}}
    assert (await proxy.update_item(table_name=TABLE, **named))["success"]
    assert (await proxy.get_item(TABLE, partition_key="id", partition_value="1"))["data"]["c"] == 3
    filters = [{"filter_key_name": "a", "filter_key_value": 1}]
    assert len((await proxy.scan_items(TABLE, filters))["data"]) == 1
    assert (await proxy.delete_item(TABLE, "id", "1"))["success"]
    own = {"filter_key_name": "robot_instance_id", "filter_key_value": "m1"}
    write = {"onBoardId": "m1", "table_name": TABLE, "filter_key": "id", "filter_value": "1"}
    first = next(call for call in cloud.calls if call[0] != "getData")  # before it, whose the item is is asked
    assert first == ("setData", {**write, "data": {"a": 1, "robot_instance_id": "m1"}})
    assert ("scanData", {"table_name": TABLE, "onBoardId": "m1", "scanFilter": [*filters, own]}) in cloud.calls


async def test_writing_several(proxy: CloudDBProxy, cloud: Cloud) -> None:
    """S-053: each with its own result."""
    told = await proxy.batch_write(TABLE, [{"id": str(n)} for n in range(5)])
    assert told == {"data": {"written": ["0", "1", "2", "3", "4"], "failed": []}, "success": True}
    partly = await proxy.batch_write(TABLE, [{"id": "5"}, {"no": "id"}])
    assert (partly["success"], partly["data"]["written"], len(partly["data"]["failed"])) == (False, ["5"], 1)
    assert "1 of 2" in partly["error"]


async def test_tokens(proxy: CloudDBProxy, cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    """S-054: fetched once for parallel calls, anew when refused or about to end, and never shown."""
    await asyncio.gather(*(proxy.put_item(TABLE, {"id": str(n)}) for n in range(8)))
    assert cloud.tokens == 1
    cloud.valid = "token-2"
    assert (await proxy.put_item(TABLE, {"id": "x"}))["success"]
    assert cloud.tokens == 2
    assert "token-" not in caplog.text
    short = CloudDBProxy(f"{cloud.url}/token", cloud.url, machine_id="m1")
    await short.start()
    cloud.expires = datetime.fromtimestamp(time.time() + 1.0, UTC).isoformat()
    await short.get_item(TABLE, "0")
    await asyncio.sleep(1.0)
    await short.get_item(TABLE, "1")
    assert cloud.tokens == 4
    await short.stop()


async def test_a_cloud_that_is_away(proxy: CloudDBProxy, cloud: Cloud) -> None:
    """S-003, S-081: the one error shape; nothing raises; it works again when the cloud is back."""
    await proxy.put_item(TABLE, {"id": "1"})
    await cloud.stop()
    away = await proxy.get_item(TABLE, "1")
    assert (away["status"], "success" in away) == (503, False)
    assert (await proxy.health_check())["status"] == "unhealthy"
    await cloud.start()
    assert (await proxy.get_item(TABLE, "1"))["success"]
    assert (await proxy.health_check())["status"] == "healthy"


async def test_what_is_missing_is_said() -> None:
    bare = CloudDBProxy("", "")
    await bare.start()
    assert "cloud_endpoint, access_token_url" in bare.reason
    assert (await bare.get_item(TABLE, "1"))["status"] == 503
    await bare.stop()
