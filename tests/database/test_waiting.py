"""What waits for the cloud: it is bounded, never shed, and no write that cannot be done holds up the others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.runtime.database_local import LocalQueue
from petalbus.daemon.services.janitor import Janitor, JanitorOptions
from petalbus.handlers.database import words
from petalbus.handlers.database.errors import Refused
from petalbus.handlers.database.handler import DatabaseHandler
from petalbus.handlers.database.service import Addresses, HttpTables
from petalbus.handlers.database.tables import Done
from petalbus.handlers.database.writes import Operation, Policy, Write
from petalbus.petals.proxies.cloud.outbox import Outbox, OutboxFull, Queued, Unknown
from petalbus.petals.proxies.localdb import LocalDBProxy

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService
from support.proxy import Proxy

BAD = (500, b"poison")
SECRET = "a pass" + "word"


def write(key: str, n: int = 0) -> Write:
    return Write(machine=MACHINE, table=TABLE, key="id", value=key, operation=Operation.UPDATE, data={"n": n})


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalDBProxy]:
    """A local database all of whose items in the table are carried."""
    made = LocalDBProxy(file=tmp_path / "local.db", machine_id=MACHINE, sync_tables=[TABLE])
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def carried(local: LocalDBProxy, handler: DatabaseHandler) -> AsyncIterator[LocalQueue]:
    """Somebody who carries its changes, as the daemon does; killed at the end."""
    queue = LocalQueue(local.file, handler, look=0.05)
    running = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def all_carried(local: LocalDBProxy, left: int = 0) -> None:
    async with asyncio.timeout(20):
        while (await local.sync_statistics())["changes"] > left:
            await asyncio.sleep(0.02)


async def test_accepted_writes_outlast_a_shortage_of_memory(world: World, cloud: CloudService) -> None:
    """S-054, I6: under a ceiling that sheds what may be shed each accepted write arrives; the others are refused at
    once, before the bus is full for anybody else.
    """
    await cloud.shut()
    handler = await world.start()
    proxy = await world.proxy()
    proxy._outbox._most = 2 << 20  # type: ignore[union-attr]  # less than the server has room for
    async with world.client("janitor") as bus:
        used = int((await bus.ask("INFO", "memory")).split(b"used_memory:")[1].split()[0])
        options = JanitorOptions(memory_ceiling=used + (2 << 20), look_every=0.1)
        keeping = asyncio.create_task(Janitor(bus, options=options).run())
        try:
            accepted, refused = [], []
            for n in range(800):
                told = await proxy.put_item(TABLE, {"id": str(n), "text": "x" * 3000})
                (accepted if told.get("success") else refused).append((n, told))
            assert all((told["status"], told["error_code"]) == (507, "OUTBOX_FULL") for _, told in refused)
            assert "nothing was stored" in refused[0][1]["error"]
            assert 400 < len(accepted) < 700
            await bus.send("vehicle", "command", {"command": "land"})
            await asyncio.sleep(0.5)
            await cloud.open()
            handler.link.look()
            await world.idle(seconds=40)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
    assert set(cloud.tables[TABLE]) == {str(n) for n, _ in accepted}
    async with asyncio.timeout(10):
        while not (await proxy.put_item(TABLE, {"id": "more"})).get("success"):
            await asyncio.sleep(0.1)


async def test_before_there_was_ever_a_handler(world: World, cloud: CloudService) -> None:
    """S-054, S-055: the first boot, offline: a petal writes before the daemon's part is there."""
    await cloud.shut()
    told = await (await world.proxy()).put_item(TABLE, {"id": "1", "n": 1})
    assert (told["success"], told["queued"], "has not been there yet" in told["message"]) == (True, True, True)
    await world.start()
    await cloud.open()
    await world.idle()
    assert cloud.tables[TABLE]["1"]["n"] == 1


async def test_whether_it_was_stored_is_not_known(world: World, cloud: CloudService) -> None:
    """S-054, I9: the bus's answer is lost: the write is sent again under its id; else the error says what is so."""
    await world.start()
    async with Proxy(world.server.url) as wire:
        options = BusOptions(presence=False, send_timeout=0.8, connect_timeout=0.8)
        outbox = Outbox(wire.url, bus=world.bus_name, app="petal.cloud", patience=5, options=options)
        try:
            assert await outbox.write(write("0")) == {"ok": True}
            lost = wire.lose_reply_to(b"database.write")
            sent = asyncio.create_task(outbox.write(write("1")))
            await lost.wait()
            wire.refusing = True
            await asyncio.sleep(1.0)
            wire.refusing = False
            assert (await sent) == {"ok": True}
            lost = wire.lose_reply_to(b"database.write")
            sent = asyncio.create_task(outbox.write(write("2")))
            await lost.wait()
            wire.refusing = True
            with pytest.raises(Unknown, match="is not known") as caught:
                await sent
            assert "nothing was stored" not in str(caught.value)
            async with world.client("looker") as bus:
                assert await bus.status(caught.value.id) is not None
        finally:
            await outbox.close()
    await world.idle()
    assert [body["filter_value"] for _, body in cloud.writes] == ["0", "1", "2"]


async def test_what_the_cloud_never_takes(world: World, cloud: CloudService) -> None:
    """S-054: always 5xx while others are done: given up with the reason, and the item's next one goes on."""
    await world.start(most_tries=5, first_wait=0.01)
    proxy = await world.proxy(wait=0.2)

    def trouble(call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        return BAD if call == "updateData" and body["data"].get("poison") else None

    cloud.trouble = trouble
    assert (await proxy.update_item(TABLE, "1", {"poison": True}))["queued"]
    assert (await proxy.update_item(TABLE, "1", {"n": 2}))["queued"]
    async with asyncio.timeout(20):
        while not await world.dead():
            await proxy.put_item(TABLE, {"id": "other"})
    assert ["given up after" in reason and "poison" in reason for reason in await world.dead()] == [True]
    await world.idle()
    assert cloud.tables[TABLE]["1"]["n"] == 2


async def test_a_cloud_that_serves_nobody(world: World, cloud: CloudService) -> None:
    """S-054: 5xx for everything, however long: nothing is given up."""
    handler = await world.start(most_tries=3, first_wait=0.01)
    proxy = await world.proxy(wait=0.05)
    cloud.trouble = lambda _call, _body: BAD
    for n in range(5):
        assert (await proxy.put_item(TABLE, {"id": str(n)}))["queued"]
    await until(lambda: handler.statistics()["attempts"] > 30)
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    assert (len(cloud.tables[TABLE]), await world.dead()) == (5, [])


async def test_many_that_the_cloud_never_takes(world: World, cloud: CloudService) -> None:
    """S-054: more of them than may be in hands at a time: those behind them are done."""
    await world.start(most_tries=75, first_wait=0.01)
    proxy = await world.proxy(wait=0.01)

    def trouble(_call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        return BAD if str(body.get("filter_value", "")).startswith("bad") else None

    cloud.trouble = trouble
    await proxy.batch_write(TABLE, [{"id": f"bad{n}"} for n in range(150)])
    assert (await proxy.put_item(TABLE, {"id": "good"}))["success"]
    await proxy.batch_write(TABLE, [{"id": f"bad{n}"} for n in range(150, 300)] + [{"id": "behind"}])
    await until(lambda: "behind" in cloud.tables.get(TABLE, {}), seconds=40)


class Faulty(HttpTables):
    """Tables whose first writes meet a fault of the program."""

    faults = 3

    async def write(self, write: Write, policy: Policy | None) -> Done:
        """See Tables."""
        if self.faults:
            self.faults -= 1
            raise KeyError(SECRET)
        return await super().write(write, policy)


async def test_a_fault_of_ours(world: World, cloud: CloudService, caplog: pytest.LogCaptureFixture) -> None:
    """S-054, I4: what is no fault of the write does not cost it; nothing of the error's text is told."""
    world.tables = lambda: Faulty(Addresses(cloud.url), f"{cloud.url}/token", timeout=10)
    await world.start(first_wait=0.01)
    told = await (await world.proxy()).put_item(TABLE, {"id": "1"})
    assert told["success"]
    await world.idle()
    assert "KeyError" in caplog.text
    assert (list(cloud.tables[TABLE]), await world.dead()) == (["1"], [])
    assert SECRET not in caplog.text + str(told)


async def test_what_can_never_be_written(world: World, cloud: CloudService) -> None:
    """S-054: it is refused when it is said, not by a dead letter later; a call raises nothing."""
    await cloud.shut()
    await world.start()
    proxy = await world.proxy()
    for key, data in (
        ("", {"a": 1}),
        ("k\udc80", {"a": 1}),
        ("1", {"a": "\udc80"}),
        ("1", {"\udc80": 1}),
        ("1", {"a": 10**5000}),
        ("1", {"raw": b"\x00"}),
        ("1", {"set": {"a"}}),
        ("1", {"big": "x" * (1 << 20)}),
        ("1", {"a": object()}),
    ):
        told = await proxy.set_item(TABLE, "id", key, data)
        assert (told["status"] in (400, 413), "success" in told) == (True, False), (key, told)
        told = await proxy.write_if(TABLE, {"id": key}, data, {"b": 1})
        assert told["status"] in (400, 413), (key, told)
    assert (await proxy.write_if(TABLE, "1", {"a": 1}, {"b": 10**5000}))["status"] == 400
    assert (await proxy.put_item(TABLE, {"id": "1", "a": math.nan, "b": [math.inf]}))["queued"]
    assert (await world.waiting(), await world.dead()) == (1, [])


async def test_what_dynamodb_never_takes(dynamo_world: World) -> None:
    """S-054: as with the HTTP service, by DynamoDB's own limits."""
    proxy = await dynamo_world.proxy()
    for table, key, data in (
        ("no such/name", "1", {"a": 1}),
        ("t", "1", {"a": 1}),
        (TABLE, "1", {"big": "x" * (400 << 10)}),
        (TABLE, "1", {"big": [b"x" * 100_000] * 5}),
        (TABLE, "ß" * 1024 + "x", {"a": 1}),
        (TABLE, "1", {"a": set()}),
        (TABLE, "1", {"a": 10**5000}),
    ):
        told = await proxy.set_item(table, "id", key, data)
        assert (told["status"] in (400, 413), "success" in told) == (True, False), (table, key, told)
    assert (await proxy.put_item(TABLE, {"id": "1", "raw": b"x", "set": {1, 2}}))["queued"]
    assert await dynamo_world.waiting() == 1


async def test_both_ways_to_an_item(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """S-054, S-062: petals' writes and the local database's: one counter, and one at a time for each item."""
    handler = await world.start()
    proxy = await world.proxy()
    async with world.client("looker") as bus:
        await bus.call("SET", words.number_key(bus.keys), 2 * 10**15)
    assert (await proxy.update_item(TABLE, "1", {"n": 1}))["success"]
    cloud.wait.clear()
    sent = asyncio.create_task(proxy.update_item(TABLE, "1", {"n": 2}))
    await until(lambda: len(cloud.writes) == 2)
    async with carried(local, handler):
        assert (await local.update_item(TABLE, "id", "1", {"n": 3}))["success"]
        assert (await local.update_item(TABLE, "id", "2", {"n": 3}))["success"]
        await until(lambda: len(cloud.writes) == 3)
        await asyncio.sleep(0.2)
        assert [body["filter_value"] for _, body in cloud.writes] == ["1", "1", "2"]
        cloud.wait.set()
        assert "superseded" not in await sent
        await all_carried(local)
        assert cloud.tables[TABLE]["1"]["n"] == 3
        assert "superseded" not in await proxy.update_item(TABLE, "1", {"n": 4})
    assert (cloud.tables[TABLE]["1"]["n"], handler.statistics()["superseded"]) == (4, 0)


async def test_a_change_keeps_its_number(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """S-062, I9: who carries it goes while the cloud works on it: the next one finds that it was done."""
    handler = await world.start()
    cloud.wait.clear()
    assert (await local.update_item(TABLE, "id", "1", {"n": 1}))["success"]
    async with carried(local, handler):
        await until(lambda: cloud.writes)
    cloud.wait.set()
    async with carried(local, handler):
        await all_carried(local)
    assert (len(cloud.writes), handler.statistics()["repeated"]) == (1, 1)


async def test_changes_that_cannot_be_carried(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """S-062: what is no change is parked, once; what the cloud never takes rests, leaves its place, and is parked."""
    handler = await world.start(most_tries=3)
    for wrong in ({"filter_key": ["id"], "filter_value": "1"}, {"filter_key": "id"}, {"data": 3}):
        await local.sync_append("k", "set", {"table_name": TABLE, **wrong})
    cloud.trouble = lambda call, body: BAD if call == "updateData" and body["filter_value"].startswith("bad") else None
    for n in range(40):
        assert (await local.update_item(TABLE, "id", f"bad{n}", {"n": n}))["success"]
    assert (await local.update_item(TABLE, "id", "good", {"n": 1}))["success"]
    async with carried(local, handler) as queue:
        await until(lambda: "good" in cloud.tables.get(TABLE, {}))
        async with asyncio.timeout(20):
            while len(parked := await local.sync_parked()) < 43:
                await local.update_item(TABLE, "id", "good", {"n": 2})  # others are done meanwhile
                await asyncio.sleep(0.05)
        assert all(one.attempts == 1 for one in parked[:3])
        assert all("given up after 3 tries" in str(one.error) for one in parked[3:])
        cloud.trouble = lambda _call, _body: None
        assert await queue.retry_all() == 43
        await all_carried(local, left=3)
    assert len(cloud.tables[TABLE]) == 41


def test_errors_have_their_numbers() -> None:
    """I8: by HTTP's meaning."""
    assert (OutboxFull("x").status, Unknown("x", "1").status, Refused("x").status) == (507, 503, 400)
    assert Queued("1", {}, "").id == "1"
