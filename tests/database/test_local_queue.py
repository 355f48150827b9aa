"""What the local database has queued, on its way to the cloud while petals write the same items."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.runtime.database_local import LocalQueue
from petalbus.handlers.database import words
from petalbus.handlers.database.handler import DatabaseHandler
from petalbus.petals.proxies.localdb import LocalDBProxy, queue

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService

BAD = (503, b"busy")


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
    made = LocalQueue(local.file, handler, look=0.05)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def changes(local: LocalDBProxy, left: int = 0) -> None:
    """Wait until so many are left."""
    async with asyncio.timeout(20):
        while (await local.sync_statistics())["changes"] != left:
            await asyncio.sleep(0.02)


async def parked(local: LocalDBProxy) -> list[Any]:
    """Wait until one is parked."""
    async with asyncio.timeout(20):
        while not (found := await local.sync_parked()):
            await asyncio.sleep(0.02)
        return found


def fails(times: int, member: str) -> Callable[[str, dict[str, Any]], tuple[int, bytes] | None]:
    """The cloud cannot serve the first writes of a member."""
    left = [times]

    def trouble(call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if call == "getData" or member not in body["data"] or not left[0]:
            return None
        left[0] -= 1
        return BAD

    return trouble


async def test_a_change_that_rests_is_not_overtaken(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """S-054, S-062: one 503 to a change, then a petal's write of the item: both are in the item, in their order."""
    handler = await world.start(first_wait=0.3)
    proxy = await world.proxy()
    cloud.trouble = fails(1, "a")
    async with carried(local, handler) as carrying:
        assert (await local.set_item(TABLE, "id", "1", {"a": 1, "n": 1}))["success"]
        await until(lambda: carrying._kept)
        assert "superseded" not in await proxy.update_item(TABLE, "1", {"b": 2, "n": 2})
        await changes(local)
    item = cloud.tables[TABLE]["1"]
    assert (item["a"], item["b"], item["n"], handler.statistics()["superseded"]) == (1, 2, 2, 0)
    assert not carrying._kept
    assert not carrying._waiting


async def test_a_change_that_came_too_late_is_parked(
    world: World, cloud: CloudService, local: LocalDBProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6: with too many that rest it loses its turn, and a later write is done: it is kept, and says why."""
    monkeypatch.setattr("petalbus.daemon.runtime.database_local.KEPT", 0)
    monkeypatch.setattr("petalbus.daemon.runtime.database_local._UNCOUNTED_REST_S", 0.5)
    handler = await world.start()
    proxy = await world.proxy()
    cloud.trouble = fails(1, "a")
    async with carried(local, handler) as carrying:
        assert (await local.set_item(TABLE, "id", "1", {"a": 1}))["success"]
        await until(lambda: carrying._resting)
        assert (await proxy.update_item(TABLE, "1", {"b": 2}))["success"]
        (change,) = await parked(local)
        assert "superseded" in change.error
        assert "a" not in cloud.tables[TABLE]["1"]
        assert (await local.set_item(TABLE, "id", "1", {"a": 3}))["success"]  # it lets the next one pass
        await changes(local, left=1)
        assert await carrying.drop(change.seq)
    assert cloud.tables[TABLE]["1"]["a"] == 3


@pytest.mark.parametrize("refused", [False, True])
async def test_what_was_carried_during_a_look_is_not_carried_again(
    world: World, cloud: CloudService, local: LocalDBProxy, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """I9: the look began before a change had its number, and ends when it is done or parked, and a later write is
    done, too.
    """
    cloud.trouble = lambda _call, body: (422, b"no") if refused and body.get("data", {}).get("v") == "older" else None
    handler = await world.start()
    proxy = await world.proxy()
    held, reads, look = threading.Event(), threading.Event(), queue.read_items

    def slow(file: Path, limit: int, without: Any = ()) -> list[queue.Change]:
        found = look(file, limit)  # as long as it lasts: all of them, as they were
        if len(found) > 1:
            reads.set()
            held.wait(20)
        return found

    monkeypatch.setattr(queue, "read_items", slow)
    cloud.wait.clear()
    first = asyncio.create_task(proxy.put_item(TABLE, {"id": "1", "v": "first"}))
    await until(lambda: cloud.writes)
    try:
        async with carried(local, handler) as carrying:
            assert (await local.set_item(TABLE, "id", "1", {"v": "older"}))["success"]
            await until(lambda: carrying._waiting)
            assert (await local.set_item(TABLE, "id", "2", {"v": "other"}))["success"]
            await until(reads.is_set)
            cloud.wait.set()
            assert (await first)["success"]
            await until(lambda: not carrying._carrying)
            assert (await proxy.put_item(TABLE, {"id": "1", "v": "newer"}))["success"]
            cloud.trouble = lambda _call, _body: None
            held.set()
            await until(lambda: "2" in cloud.tables[TABLE])
            await changes(local, left=int(refused))
    finally:
        held.set()
    assert cloud.tables[TABLE]["1"]["v"] == "newer"
    assert [body["filter_value"] for _, body in cloud.writes] == ["1"] * (2 if refused else 3) + ["2"]


async def test_a_change_that_is_gone_is_not_written(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """I9: somebody forgets it before it has its number."""
    handler = await world.start()
    proxy = await world.proxy()
    cloud.wait.clear()
    first = asyncio.create_task(proxy.put_item(TABLE, {"id": "1", "v": 0}))
    await until(lambda: cloud.writes)
    async with carried(local, handler) as carrying:
        assert (await local.set_item(TABLE, "id", "1", {"v": 1}))["success"]
        await until(lambda: carrying._waiting)
        with sqlite3.connect(local.file) as connection:
            connection.execute("DELETE FROM petalbus_sync")
        connection.close()
        cloud.wait.set()
        assert (await first)["success"]
        await until(lambda: not carrying._carrying)
    assert (len(cloud.writes), handler.statistics()["held"]) == (1, 0)


async def test_what_waits_for_its_turn_lets_others_pass(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """S-062: more changes than are carried at a time, of items whose petals' writes fail; and one of another item."""
    handler = await world.start()
    proxy = await world.proxy(wait=0.02)
    is_bad = True
    cloud.trouble = lambda _call, body: BAD if is_bad and str(body.get("filter_value")).startswith("bad") else None
    await proxy.batch_write(TABLE, [{"id": f"bad{n}", "x": 1} for n in range(40)])
    await until(lambda: handler.statistics()["held"] == 40)
    for n in range(40):
        assert (await local.update_item(TABLE, "id", f"bad{n}", {"n": n}))["success"]
    assert (await local.update_item(TABLE, "id", "good", {"n": 1}))["success"]
    async with carried(local, handler) as carrying:
        await until(lambda: "good" in cloud.tables.get(TABLE, {}))
        await changes(local, left=40)
        assert len(carrying._waiting) == 40
        assert all(one.attempts == 0 for one in await local.sync_items())
        is_bad = False
        await changes(local)
    assert all(cloud.tables[TABLE][f"bad{n}"]["n"] == n for n in range(40))
    assert handler.statistics()["superseded"] == 0


async def test_an_outage_of_everything_parks_nothing(world: World, cloud: CloudService, local: LocalDBProxy) -> None:
    """I6: a try counts only when others are done meanwhile."""
    handler = await world.start(most_tries=2, first_wait=0.01)
    assert (await local.update_item(TABLE, "id", "good", {"n": 1}))["success"]
    async with carried(local, handler) as carrying:
        await changes(local)
        cloud.trouble = lambda _call, _body: BAD
        assert (await local.update_item(TABLE, "id", "1", {"n": 1}))["success"]
        tries = handler.link.attempts
        await until(lambda: handler.link.attempts >= tries + 5)
        assert [one.attempts for one in await local.sync_items()] == [0]
        assert carrying._kept
        cloud.trouble = lambda _call, _body: None
        await changes(local)


async def test_an_older_write_that_was_cancelled_is_not_done(world: World, cloud: CloudService) -> None:
    """S-054: stored at NORMAL by an earlier version, and cancelled before its item's next write at HIGH."""
    await cloud.shut()
    key = words.order_key(TABLE, "id", "1")
    async with world.client("earlier") as bus:
        for n in (1, 2):
            order = {"table": TABLE, "key": {"id": "1"}, "operation": "update", "item": {f"n{n}": n}}
            await bus.send("database", words.WRITE, order, priority=2, key=key, id=f"old{n}")
        handler = await world.start()
        await until(handler.link.is_down)
        assert await bus.cancel("old2")
    proxy = await world.proxy(wait=0.2)
    assert (await proxy.update_item(TABLE, "1", {"n3": 3}))["queued"]
    await cloud.open()
    handler.link.look()
    await world.idle()
    item = cloud.tables[TABLE]["1"]
    assert (item.get("n1"), item.get("n2"), item.get("n3")) == (1, None, 3)
