"""A daemon with tables in the cloud: over kill -9, from the local database, over HTTP, and the commands."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import petalbus
from petalbus.handlers.database import words
from petalbus.handlers.database.dynamo import DynamoTables
from petalbus.petals.proxies.cloud import CloudDBProxy
from petalbus.petals.proxies.localdb import LocalDBProxy

from .conftest import MACHINE, TABLE, until
from .http_end import CloudService, Relay
from support.procs import Child, Children
from support.servers import kill_leftovers


class Site:
    """A daemon on a data directory, and commands for it."""

    def __init__(self, children: Children, data: Path, cloud: CloudService) -> None:
        self.children = children
        self.data = data
        self.environment = {
            "PETALBUS_DATA": str(data),
            "PETALBUS_MACHINE_ID": MACHINE,
            "PETALBUS_CLOUD_ENDPOINT": cloud.url,
            "PETALBUS_ACCESS_TOKEN_URL": f"{cloud.url}/token",
            "PETALBUS_ORGANIZATION_FILE": str(data / "none.json"),
            "PETALBUS_HTTP_PORT": "0",
            "PETALBUS_MQTT_TRANSPORT": "off",
        }
        self.url = self.bus_url = ""

    async def up(self) -> Child:
        """Start the daemon."""
        daemon = await self.children.petalbus("up", "--json", environment=self.environment)
        self.bus_url = json.loads(await daemon.line('"ready"', timeout=30))["url"]
        self.url = json.loads(await daemon.line('"http_ready"', timeout=30))["url"]
        async with asyncio.timeout(30), petalbus.connect(app="test", data=self.data) as bus:
            await bus.request(words.APP, words.STATUS, {}, timeout=30)
        return daemon

    async def run(self, *given: str, code: int = 0) -> list[dict[str, Any]]:
        """Run a command with ``--json``; its lines."""
        child = await self.children.petalbus(*given, "--json", environment=self.environment)
        assert await child.wait(timeout=30) == code, (child.output, child.errors)
        return [json.loads(line) for line in (child.output or child.errors)]


@pytest.fixture
async def site(children: Children, data_dir: Path, cloud: CloudService) -> AsyncIterator[Site]:
    yield Site(children, data_dir, cloud)
    await asyncio.to_thread(kill_leftovers, data_dir)


async def test_killed_between_a_write_and_its_end(site: Site, cloud: CloudService) -> None:
    """S-054: kill -9 when the cloud has a write and the daemon does not know: it is done once; HTTP says what is so.

    D.6, D.10: the routes, their bodies, 422 for others, 202 for a write that waits.
    """
    daemon = await site.up()
    cloud.wait.clear()
    item = {"table_name": TABLE, "key_name": "id", "key_value": "1"}
    async with httpx.AsyncClient(base_url=site.url, timeout=30) as http:
        sent = asyncio.create_task(http.post("/cloud/set-item", json={**item, "item_data": {"a": 1}}))
        await until(lambda: cloud.writes)
        daemon.kill()
        await daemon.wait()
        await asyncio.gather(sent, return_exceptions=True)
    await cloud.shut()
    await site.up()
    async with httpx.AsyncClient(base_url=site.url, timeout=30) as http:
        waits = await http.post("/cloud/update-item", json={**item, "updates": {"b": 2}})
        assert (waits.status_code, waits.json()["queued"]) == (202, True)
        assert (await http.post("/cloud/get-item", json=item)).status_code == 503
        told = (await site.run("sync", "status"))[0]
        assert (told["online"], told["waiting"][0]["table"], told["waiting"][0]["waiting"]) == (False, TABLE, 2)
        assert told["waiting"][0]["oldest_s"] > 0
        assert "cannot be reached" in told["last_error"]
        shown = await site.children.petalbus("sync", "status", environment=site.environment)
        assert await shown.wait(timeout=30) == 0, shown.errors
        assert "offline" in shown.output[0]
        assert any(line.split()[:2] == [TABLE, "2"] for line in shown.output), shown.output
        cloud.wait.set()
        await cloud.open()
        await until(lambda: len(cloud.writes) == 2)
        assert [call for call, _ in cloud.writes] == ["setData", "updateData"]
        got = await http.post("/cloud/get-item", json=item)
        data = {"a": 1, "b": 2, "robot_instance_id": MACHINE}
        assert (got.status_code, got.json()) == (200, {"data": data, "success": True})
        scanned = await http.post("/cloud/scan-table", json={"table_name": TABLE, "filters": {"a": 1}})
        assert scanned.json()["data"] == [data]
        assert (await http.request("DELETE", "/cloud/delete-item", json=item)).status_code == 200
        assert (await http.post("/cloud/get-item", json=item)).status_code == 404
        older = {"table_name": TABLE, "filter_key": "id", "filter_value": "1", "data": {}}
        assert (await http.post("/cloud/set-item", json=older)).status_code == 422
    assert (await site.run("sync", "status"))[0]["waiting"] == []


async def test_a_bad_link_and_a_daemon_that_is_killed(site: Site, cloud: CloudService) -> None:
    """S-054, S-055: whatever breaks meanwhile, each row ends whole, its writes in order and each of them once."""
    daemon = await site.up()
    proxy = CloudDBProxy(f"{cloud.url}/token", cloud.url, machine_id=MACHINE, wait=0.2, url=site.bus_url)
    await proxy.start()
    keys, rounds = "abcdefghij", 12

    async def fly(key: str) -> None:
        for n in range(rounds):
            told = await proxy.update_item(TABLE, key, {f"m{n}": True, "n": n})
            assert told["success"], told

    async def disturb() -> Child:
        cloud.lose_answers = 5
        await asyncio.sleep(0.2)
        await cloud.shut()
        await asyncio.sleep(0.2)
        daemon.kill()
        await daemon.wait()
        await cloud.open()
        cloud.lose_answers = 5
        return await site.up()

    try:
        await asyncio.gather(disturb(), *map(fly, keys))
        await until(lambda: all(cloud.tables[TABLE].get(key, {}).get("n") == rounds - 1 for key in keys), seconds=40)
    finally:
        await proxy.stop()
    for key in keys:
        assert all(cloud.tables[TABLE][key][f"m{n}"] for n in range(rounds))
        assert [body["data"]["n"] for _, body in cloud.writes if body["filter_value"] == key] == list(range(rounds))
    assert (await site.run("sync", "status"))[0]["parked"] == []


async def test_the_local_database_is_carried(site: Site, cloud: CloudService) -> None:
    """S-062, C-26: changes made offline reach the cloud by themselves, once and in order; refused ones are parked."""
    await cloud.shut()
    site.data.mkdir(parents=True, exist_ok=True)
    local = LocalDBProxy(file=site.data / "local.db", machine_id=MACHINE, sync_tables=[TABLE])
    await local.start()
    try:
        await local.sync_append("a petal's own", "set", {"no": "item"})
        for n in range(3):
            for key in ("a", "b", "bad"):
                assert (await local.update_item(TABLE, "id", key, {"n": n}))["success"]
        await site.up()
        assert (await local.set_item(TABLE, "id", "c", {"n": 9}))["success"]
        assert (await local.delete_item(TABLE, "id", "c"))["success"]
        told = (await site.run("sync", "status"))[0]
        assert [(one["table"], one["waiting"]) for one in told["waiting"]] == [(TABLE, 11)]

        def trouble(_call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
            return (422, b"no") if body.get("filter_value") == "bad" and body["data"]["n"] < 2 else None

        cloud.trouble = trouble
        await cloud.open()
        async with asyncio.timeout(30):
            while (await local.sync_statistics())["changes"] > 3:
                await asyncio.sleep(0.05)
        rows = cloud.tables[TABLE]
        assert [rows[key]["n"] for key in ("a", "b", "bad")] == [2, 2, 2]
        assert (rows["c"]["n"], rows["c"]["deleted"]) == (9, True)
        for key in ("a", "b"):
            assert [body["data"]["n"] for _, body in cloud.writes if body["filter_value"] == key] == [0, 1, 2]
        parked = (await site.run("sync", "status"))[0]["parked"]
        assert [(one["table"], one["key"], "422" in one["error"]) for one in parked] == [(TABLE, "id=bad", True)] * 2
        await site.run("sync", "drop", parked[0]["seq"])
        cloud.trouble = lambda _call, _body: None
        await site.run("sync", "retry", parked[1]["seq"])
        async with asyncio.timeout(30):
            while ["superseded" in str(one.error) for one in await local.sync_parked()] != [True]:
                await asyncio.sleep(0.05)
        assert rows["bad"]["n"] == 2  # the later one stays
        await site.run("sync", "drop", parked[1]["seq"])
        assert [one.key for one in await local.sync_pending()] == ["a petal's own"]
        assert "no parked change" in str(await site.run("sync", "drop", "77", code=1))
        await site.run("sync", "retry", code=2)
    finally:
        await local.stop()


async def test_all_that_is_parked_is_tried_again(site: Site, cloud: CloudService) -> None:
    """S-054, C-26: dead letters and changes of the local database, by one command; those that fail are parked anew."""
    await site.up()
    cloud.trouble = lambda call, _body: (422, b"no") if call in ("setData", "updateData") else None
    local = LocalDBProxy(file=site.data / "local.db", machine_id=MACHINE, sync_tables=[TABLE])
    await local.start()
    try:
        async with httpx.AsyncClient(base_url=site.url, timeout=30) as http:
            for n in range(3):
                body = {"table_name": TABLE, "key_name": "id", "key_value": str(n), "item_data": {"n": n}}
                assert (await http.post("/cloud/set-item", json=body)).status_code == 422
        for n in range(3, 5):
            assert (await local.update_item(TABLE, "id", str(n), {"n": n}))["success"]
        async with asyncio.timeout(20):
            while (await local.sync_statistics())["parked"] < 2:
                await asyncio.sleep(0.05)
        assert len((await site.run("sync", "status"))[0]["parked"]) == 5
        cloud.trouble = lambda call, body: (422, b"no") if call == "setData" and body["filter_value"] == "2" else None
        assert await site.run("sync", "retry", "--all") == [{"retried": 5}]
        await until(lambda: len(cloud.tables.get(TABLE, {})) == 4)
        parked = (await site.run("sync", "status"))[0]["parked"]
        assert [(one["table"], one["key"]) for one in parked] == [(TABLE, "id=2")]
    finally:
        await local.stop()


async def test_a_daemon_with_dynamodb(site: Site, relay: Relay, dynamo: DynamoTables) -> None:
    """S-054: by settings alone; nothing is asked before there is something to do."""
    site.environment |= {
        "PETALBUS_CLOUD_BACKEND": "dynamodb",
        "PETALBUS_CLOUD_ENDPOINT": relay.url,
        "PETALBUS_CLOUD_TABLE_PREFIX": dynamo.prefix,
        "PETALBUS_SESSION_TOKEN_URL": f"{relay.url}/token",
    }
    relay.requests = 0
    await site.up()
    assert relay.requests == 0
    item = {"table_name": TABLE, "key_name": "id", "key_value": "1"}
    async with httpx.AsyncClient(base_url=site.url, timeout=30) as http:
        done = await http.post("/cloud/set-item", json={**item, "item_data": {"a": 0.5}})
        assert (done.status_code, done.json().get("data", {}).get("a")) == (200, 0.5), done.text
    assert (await dynamo.get(MACHINE, TABLE, "id", "1"))["a"] == 0.5
    assert (await site.run("sync", "status"))[0]["backend"] == "dynamodb"


async def test_without_a_cloud(children: Children, data_dir: Path) -> None:
    """S-081: nothing is configured: the routes say what is missing, so does the command, and no part runs."""
    environment = {"PETALBUS_DATA": str(data_dir), "PETALBUS_HTTP_PORT": "0", "PETALBUS_MQTT_TRANSPORT": "off"}
    daemon = await children.petalbus("up", "--json", environment=environment)
    try:
        url = json.loads(await daemon.line('"http_ready"', timeout=30))["url"]
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            told = await http.post("/cloud/scan-table", json={"table_name": TABLE})
        assert (told.status_code, "set cloud_endpoint" in told.json()["detail"]) == (503, True)
        child = await children.petalbus("sync", "status", environment=environment)
        assert await child.wait(timeout=30) == 1
        assert "no tables in the cloud are configured" in " ".join(child.errors)
        maps = await asyncio.to_thread(Path(f"/proc/{daemon.pid}/maps").read_text)
        assert "botocore" not in maps
    finally:
        os.kill(daemon.pid, 15)
        await daemon.wait(timeout=30)
        await asyncio.to_thread(kill_leftovers, data_dir)
