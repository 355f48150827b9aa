"""LocalDBProxy: items and the sync queue in the file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from petalbus.petals.organization import OrganizationManager
from petalbus.petals.proxies.context import ProxyContext
from petalbus.petals.proxies.localdb import LocalDBProxy, QueryRefused, QueueFull, local_items, make

from .localdb_made import MACHINE, local_db

INSTANCES = "config-robot_instances"
RECORDS = "config-log-flight_record"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[LocalDBProxy]:
    async with local_db(tmp_path, sync_tables=["synchronised"], max_changes=5) as proxy:
        yield proxy


async def ids(db: LocalDBProxy, *filters: tuple[str, Any]) -> list[str]:
    given = [{"filter_key_name": name, "filter_key_value": value} for name, value in filters]
    answer = await db.scan_items(RECORDS, given or None)
    assert answer["success"], answer
    return [item["id"] for item in answer["data"]]


async def test_an_item_is_written_read_and_found(db: LocalDBProxy) -> None:
    """C-26, S-062: the shapes that petals read; the machine's id is put into every item."""
    assert (await db.scan_items(RECORDS)) == {"data": [], "success": True}
    item = {"id": "1", "name": "ü", "nested": {"a": [1, None, True]}, "size": 1.5}
    own = {**item, "robot_instance_id": MACHINE}
    assert await db.set_item(RECORDS, "id", "1", item) == {"data": own, "success": True}
    assert await db.get_item(table_name=RECORDS, partition_key="id", partition_value="1") == {
        "data": own,
        "success": True,
    }
    assert await db.scan_items(RECORDS) == {"data": [own], "success": True}
    assert item == {"id": "1", "name": "ü", "nested": {"a": [1, None, True]}, "size": 1.5}
    assert await db.scan_items("another table") == {"data": [], "success": True}


async def test_set_replaces_and_update_changes_members(db: LocalDBProxy) -> None:
    """C-26: both make an item that is not there; the key is a member of it."""
    await db.set_item(RECORDS, "id", "1", {"a": 1, "b": 1})
    await db.update_item(RECORDS, "id", "1", {"b": 2, "c": 3})
    expected = {"id": "1", "a": 1, "b": 2, "c": 3, "robot_instance_id": MACHINE}
    assert (await db.get_item(RECORDS, "id", "1"))["data"] == expected
    await db.set_item(RECORDS, "id", "1", {"d": 4})
    assert (await db.get_item(RECORDS, "id", "1"))["data"] == {"id": "1", "d": 4, "robot_instance_id": MACHINE}
    made = await db.update_item(RECORDS, "id", "2", {"e": 5})
    assert made["data"] == {"id": "2", "e": 5, "robot_instance_id": MACHINE}


async def test_a_deleted_item_is_hidden_and_kept(db: LocalDBProxy) -> None:
    """C-26: gets and scans do not show it, its content stays; a late update does not bring it back, a set does."""
    await db.set_item(RECORDS, "id", "1", {"a": 1})
    await db.set_item(RECORDS, "id", "2", {"a": 2})
    gone = await db.delete_item(RECORDS, "id", "1")
    assert gone["data"] == {"id": "1", "a": 1, "deleted": True, "robot_instance_id": MACHINE}
    missing = await db.get_item(RECORDS, "id", "1")
    assert (missing["status"], missing["error_code"]) == (404, "no_item")
    assert "error" in missing
    assert "data" not in missing
    assert await ids(db) == ["2"]
    assert (await db.delete_item(RECORDS, "id", "1"))["status"] == 404
    assert (await db.update_item(RECORDS, "id", "1", {"a": 3}))["status"] == 404
    stored = await db.fetch_one("SELECT body FROM petalbus_items WHERE key_value = '1'")
    assert stored is not None
    assert '"a":1' in stored["body"]
    assert (await db.set_item(RECORDS, "id", "1", {"a": 4}))["success"]
    assert await ids(db) == ["1", "2"]
    await db.update_item(RECORDS, "id", "2", {"deleted": True})  # as petals may write it by themselves
    assert await ids(db) == ["1"]


async def test_filters_must_all_equal(db: LocalDBProxy) -> None:
    """C-26: filter values are texts by contract; they find numbers and truth values too."""
    for n in range(4):
        odd = bool(n % 2)
        await db.set_item(RECORDS, "id", str(n), {"n": n, "odd": odd, "note": 'say "a.b"', "x.y": n, "half": n / 2})
    assert await ids(db, ("n", "2")) == ["2"]
    assert await ids(db, ("n", 2)) == ["2"]
    assert await ids(db, ("odd", "true")) == await ids(db, ("odd", True)) == ["1", "3"]
    assert await ids(db, ("odd", "true"), ("n", "3")) == ["3"]
    assert await ids(db, ("note", 'say "a.b"')) == ["0", "1", "2", "3"]
    assert await ids(db, ("x.y", 1)) == await ids(db, ("half", "0.5")) == ["1"]
    assert await ids(db, ("nothing", "1")) == []
    assert await ids(db, ("robot_instance_id", MACHINE), ("n", 0)) == ["0"]
    assert await ids(db, ("robot_instance_id", "another")) == []
    assert await ids(db, ("n", "' OR 1=1 --")) == []


@pytest.mark.parametrize(
    "filters",
    [
        [{"name": "n", "value": "1"}],
        [{"filter_key_name": 'a"b', "filter_key_value": "1"}],
        [{"filter_key_name": "n", "filter_key_value": [1]}],
        [{"filter_key_name": "n", "filter_key_value": None}],
        ["n"],
    ],
)
async def test_what_is_no_filter_is_refused(db: LocalDBProxy, filters: list[Any]) -> None:
    answer = await db.scan_items(RECORDS, filters)
    assert (answer["status"], answer["error_code"]) == (400, "query_refused")


@pytest.mark.parametrize(
    ("table", "key", "value", "data"),
    [
        ("", "id", "1", {}),
        ("t", "", "1", {}),
        ("t", "id", 1, {}),
        ("t", "id", "1", ["a"]),
        ("t", "id", "1", {"a": object()}),
        ("t", "id", "1", {"id": "2"}),
        ("t", "id", "1", {"a": "x" * (1 << 20)}),
        ("t", "id", "x" * 2000, {}),
    ],
)
async def test_what_is_no_item_is_refused(db: LocalDBProxy, table: Any, key: Any, value: Any, data: Any) -> None:
    for call in (db.set_item, db.update_item):
        answer = await call(table, key, value, data)
        assert (answer["status"], answer["error_code"]) == (400, "query_refused"), answer
    assert (await db.scan_items("t"))["data"] == []


async def test_a_scan_that_would_fill_the_memory_is_refused(db: LocalDBProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_items, "MAX_ROWS", 2)
    for n in range(3):
        await db.set_item(RECORDS, "id", str(n), {"n": n})
    answer = await db.scan_items(RECORDS)
    assert "give filters" in answer["error"]
    assert await ids(db, ("n", "1")) == ["1"]


async def test_what_json_does_not_know(db: LocalDBProxy) -> None:
    """Not-a-number becomes null, as everywhere."""
    answer = await db.set_item(RECORDS, "id", "1", {"a": float("nan"), "b": float("inf"), 3: "c"})
    assert answer["data"] == {"id": "1", "a": None, "b": None, "3": "c", "robot_instance_id": MACHINE}


async def test_updates_at_the_same_time_lose_nothing(db: LocalDBProxy) -> None:
    """Reading and writing of an update are one step."""
    await asyncio.gather(*(db.update_item(RECORDS, "id", "1", {f"n{n}": n}) for n in range(50)))
    item = (await db.get_item(RECORDS, "id", "1"))["data"]
    assert [item[f"n{n}"] for n in range(50)] == list(range(50))


async def test_the_instance_item_tells_organisation_and_type(tmp_path: Path) -> None:
    """C-08, S-184: from this machine's item, as soon as it is there; the organisation manager's file comes first."""
    async with local_db(tmp_path) as db:
        assert (db.organization_id, db.robot_type_id, db.machine_id) == (None, None, MACHINE)
        await db.set_item(INSTANCES, "id", "another", {"organization_id": "ORG9", "robot_type_id": "T9"})
        assert (db.organization_id, db.robot_type_id) == (None, None)
        await db.set_item(INSTANCES, "id", MACHINE, {"organization_id": "ORG1", "robot_type_id": "T1"})
        assert (db.organization_id, db.robot_type_id) == ("ORG1", "T1")
        await db.update_item(INSTANCES, "id", MACHINE, {"robot_type_id": "T2"})
        assert (db.organization_id, db.robot_type_id) == ("ORG1", "T2")
    async with local_db(tmp_path) as db:
        assert (db.organization_id, db.robot_type_id) == ("ORG1", "T2")
        await db.delete_item(INSTANCES, "id", MACHINE)
        assert (db.organization_id, db.robot_type_id) == (None, None)


async def test_the_instance_item_of_another_process_is_seen(tmp_path: Path) -> None:
    """Asking is what brings the news: nothing is polled."""
    async with local_db(tmp_path) as db, local_db(tmp_path) as other:
        assert db.robot_type_id is None
        await other.set_item(INSTANCES, "id", MACHINE, {"robot_type_id": "T1"})
        db._learned_at -= 60
        async with asyncio.timeout(5):
            while db.robot_type_id != "T1":
                await asyncio.sleep(0.01)


async def test_it_is_the_fallback_of_the_organisation_manager(tmp_path: Path) -> None:
    """C-08: made for a daemon, it answers where the file says nothing; the manager's callbacks hear of it."""
    organization = OrganizationManager(tmp_path / "thing-parameters.json", data=tmp_path, machine_id=MACHINE)
    settings = SimpleNamespace(localdb_file=str(tmp_path / "mine.db"), machine_id=None, localdb_url=None)
    context: dict[str, Any] = {"url": "redis://nowhere", "bus": "b", "app": "a", "data": tmp_path}
    db = make(ProxyContext(**context, settings=settings, organization=organization))
    heard: list[str | None] = []
    organization.register_callback(heard.append)
    await organization.start()
    await db.start()
    try:
        assert (db.file, db.machine_id, organization.organization_id) == (tmp_path / "mine.db", MACHINE, None)
        waiting = asyncio.create_task(organization.wait_for_organization_id(5))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await db.set_item(INSTANCES, "id", MACHINE, {"organization_id": "ORG1"})
        assert await waiting == "ORG1"
        assert time.monotonic() - begun < 1
        (tmp_path / "thing-parameters.json").write_text('{"thing": {"lastReported": {"organizationId": "ORG2"}}}')
        async with asyncio.timeout(5):
            while organization.organization_id != "ORG2":
                await asyncio.sleep(0.01)
        assert db.organization_id == "ORG2"
        assert heard == ["ORG1", "ORG2"]
    finally:
        await db.stop()
        await organization.stop()


async def test_a_synchronised_write_is_in_the_queue_with_the_item(db: LocalDBProxy) -> None:
    """S-062: by table or by call; set, update and delete, in order, one key after the other."""
    await db.set_item("synchronised", "id", "1", {"a": 1})
    await db.update_item("synchronised", "id", "1", {"a": 2})
    await db.delete_item("synchronised", "id", "1")
    await db.set_item("synchronised", "id", "2", {"a": 3}, sync=False)
    await db.set_item("other", "id", "1", {"a": 4}, sync=True)
    carried = []
    while pending := await db.sync_pending():
        assert len({change.key for change in pending}) == len(pending)
        carried += [(change.key, change.operation, change.body["data"].get("a")) for change in pending]
        assert await db.sync_acknowledge(*(change.seq for change in pending)) == len(pending)
    assert carried == [
        ("synchronised/id/1", "set", 1),
        ("other/id/1", "set", 4),
        ("synchronised/id/1", "update", 2),
        ("synchronised/id/1", "delete", 2),
    ]
    assert await db.sync_statistics() == {"changes": 0, "parked": 0, "bytes": 0, "limit": 5}


async def test_a_full_queue_refuses_the_write_whole(db: LocalDBProxy) -> None:
    """S-062: neither the item nor the change is written, and the answer says what is the matter."""
    for n in range(5):
        await db.set_item("synchronised", "id", str(n), {"n": n})
    answer = await db.set_item("synchronised", "id", "5", {"n": 5})
    assert (answer["status"], answer["error_code"]) == (507, "sync_queue_full")
    assert (await db.get_item("synchronised", "id", "5"))["status"] == 404
    with pytest.raises(QueueFull, match="5 changes"):
        await db.sync_append("k", "set", {})
    async with db.transaction() as tx:  # inside of a transaction only the part of it is undone
        await tx.execute_query("CREATE TABLE t (a)")
        assert (await db.set_item("synchronised", "id", "5", {}))["status"] == 507
    assert await db.fetch_all("SELECT * FROM t") == []
    assert (await db.set_item("other", "id", "5", {"n": 5}))["success"]
    (first, *_) = await db.sync_pending(1)
    await db.sync_acknowledge(first.seq)
    assert (await db.set_item("synchronised", "id", "5", {"n": 5}))["success"]


async def test_a_change_that_fails_lets_the_other_keys_pass(db: LocalDBProxy) -> None:
    """S-062: attempts are counted; parked, it is kept, lets its key's later changes pass, and can be tried again."""
    one = await db.sync_append("a", "set", {"n": 1})
    two = await db.sync_append("a", "set", {"n": 2})
    three = await db.sync_append("b", "set", {"n": 3})
    assert await db.sync_fail(one, "no network")
    pending = await db.sync_pending()
    assert [(change.seq, change.attempts, change.error) for change in pending] == [
        (three, 0, None),
        (one, 1, "no network"),
    ]
    assert await db.sync_fail(one, "refused for ever", park=True)
    assert [change.seq for change in await db.sync_pending()] == [two, three]
    assert [(change.seq, change.attempts, change.error) for change in await db.sync_parked()] == [
        (one, 2, "refused for ever")
    ]
    assert (await db.sync_statistics())["parked"] == 1
    assert await db.sync_retry(one)
    assert not await db.sync_retry(three)
    assert [change.seq for change in await db.sync_pending()] == [one, three]
    assert not await db.sync_fail(999, "there is none")
    with pytest.raises(QueryRefused, match="JSON"):
        await db.sync_append("a", "set", object())


async def test_the_queue_outlives_a_restart(tmp_path: Path) -> None:
    """S-062: and a number is never given twice."""
    async with local_db(tmp_path) as db:
        first = await db.sync_append("a", "set", {"n": 1})
        await db.sync_acknowledge(first)
        second = await db.sync_append("a", "set", {"n": 2})
    async with local_db(tmp_path) as db:
        assert [(change.seq, change.body) for change in await db.sync_pending()] == [(second, {"n": 2})]
        assert second > first
        await db.sync_acknowledge(second)
        assert await db.sync_append("a", "set", {}) > second


async def test_a_session_of_a_user_is_a_few_lines(db: LocalDBProxy) -> None:
    """S-062: user sessions: a table of the petal's own, one live session a user."""
    await db.migrate(
        "sessions", ["CREATE TABLE sessions (user TEXT PRIMARY KEY, token TEXT NOT NULL, until REAL NOT NULL)"]
    )
    login = "INSERT INTO sessions VALUES (?, ?, ?) ON CONFLICT (user) DO UPDATE SET token = excluded.token, until = 200"
    await db.execute_query(login, ("ann", "t1", 100.0))
    await db.execute_query(login, ("ann", "t2", 200.0))
    live = "SELECT user FROM sessions WHERE token = ? AND until > ?"
    assert await db.fetch_one(live, ("t1", 50.0)) is None
    assert await db.fetch_one(live, ("t2", 50.0)) == {"user": "ann"}
    assert await db.fetch_one(live, ("t2", 200.0)) is None
