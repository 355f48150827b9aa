"""Writes wait on the bus until the cloud's config service has them: offline, kill, conflicts, tokens, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.database import words
from petalbus.handlers.database.writes import BY, SEQ, Policy

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService

SERVER_ERROR = (500, b'{"message": "broken"}')


async def test_online_a_write_is_done_when_it_answers(world: World, cloud: CloudService) -> None:
    """S-050, S-051, S-052, S-054: both forms of the calls, through the bus; the marks stay in the cloud."""
    await world.start()
    proxy = await world.proxy()
    assert await proxy.put_item(TABLE, {"id": "1", "a": 1}) == {"data": {"ok": True}, "success": True}
    assert (await proxy.update_item(TABLE, "id", "1", {"b": 2}))["success"]
    stored = cloud.tables[TABLE]["1"]
    assert (stored["a"], stored["b"], stored["robot_instance_id"], stored[BY]) == (1, 2, MACHINE, MACHINE)
    item = {"id": "1", "a": 1, "b": 2, "robot_instance_id": MACHINE}
    assert await proxy.get_item(TABLE, {"id": "1"}) == {"data": item, "success": True}
    assert (await proxy.scan_table(TABLE))["data"] == [item]
    assert (await proxy.delete_item(TABLE, {"id": "1"}))["success"]
    again = await proxy.delete_item(TABLE, {"id": "1"})
    assert (again["status"], "success" in again) == (404, False)
    assert await world.dead() == []
    told = await proxy.batch_write(TABLE, [{"id": str(n)} for n in range(30)] + [{"no": "id"}])
    assert (len(told["data"]["written"]), len(told["data"]["failed"]), told["status"]) == (30, 1, 502)
    typed = await proxy.put_item(TABLE, {"id": "t", "raw": b"\x00"})
    assert (typed["status"], "JSON" in typed["error"]) == (400, True)


async def test_offline_writes_are_stored_and_done_later(world: World, cloud: CloudService) -> None:
    """S-054, S-055: offline from the start; everything arrives by itself, once, in order per key, over a restart."""
    await cloud.shut()
    await world.start()
    proxy = await world.proxy()
    for n in range(3):
        for key in "abcde":
            told = await proxy.update_item(TABLE, "id", key, {"n": n, f"m{n}": True})
            assert (told["success"], told["queued"], told["data"]["n"]) == (True, True, n)
    many = await proxy.batch_write(TABLE, [{"id": f"x{n}"} for n in range(40)])
    assert (many["success"], many["queued"], len(many["data"]["written"])) == (True, True, 40)
    away = await proxy.get_item(TABLE, "a")
    assert (away["status"], "cannot be reached" in away["error"]) == (503, True)
    await world.stop()
    await world.start()
    assert await world.waiting() == 55
    await cloud.open()
    await world.idle()
    rows = cloud.tables[TABLE]
    assert all(rows[key]["n"] == 2 and all(rows[key][f"m{n}"] for n in range(3)) for key in "abcde")
    assert len(rows) == 45
    for key in "abcde":
        assert [body["data"]["n"] for _, body in cloud.writes if body["filter_value"] == key] == [0, 1, 2]
    asked = cloud.requests
    await asyncio.sleep(0.5)
    assert cloud.requests == asked  # nothing is asked while nothing waits


async def test_a_lost_answer_changes_nothing_twice(world: World, cloud: CloudService) -> None:
    """S-054: the answer of a write is lost; the repetition sees that it was done."""
    handler = await world.start()
    proxy = await world.proxy()
    cloud.lose_answers = 1
    told = await proxy.put_item(TABLE, {"id": "1", "a": 1})
    assert told["success"]
    await world.idle()
    assert len(cloud.writes) == 1
    assert handler.statistics()["repeated"] == 1


async def test_a_stop_in_the_middle_of_a_write(world: World, cloud: CloudService) -> None:
    """S-054: the handler goes while the cloud works on a write; its successor does not repeat it."""
    await world.start()
    proxy = await world.proxy(wait=0.3)
    cloud.wait.clear()
    assert (await proxy.put_item(TABLE, {"id": "1"}))["queued"]
    assert (await proxy.put_item(TABLE, {"id": "1", "later": True}))["queued"]
    await world.stop()
    cloud.wait.set()
    handler = await world.start()
    await world.idle()
    assert [body["data"].get("later") for _, body in cloud.writes] == [None, True]
    assert handler.statistics()["repeated"] == 1


async def test_the_last_writer_wins(world: World, cloud: CloudService) -> None:
    """S-054: a later write of somebody else stays; an earlier one, and one without a number, is overwritten."""
    handler = await world.start()
    proxy = await world.proxy()
    cloud.tables[TABLE] = {
        "new": {"id": "new", SEQ: 2**52, BY: "m2", "a": 1},
        "old": {"id": "old", SEQ: 5, BY: "m2", "a": 1},
        "bare": {"id": "bare", "a": 1},
        "theirs": {"id": "theirs", "robot_instance_id": "m2"},
    }
    for key in ("new", "old", "bare"):
        assert (await proxy.update_item(TABLE, key, {"a": 2}))["success"]
    assert {key: one.get("a") for key, one in cloud.tables[TABLE].items()} == {
        "new": 1, "old": 2, "bare": 2, "theirs": None,
    }  # fmt: skip
    assert handler.statistics()["superseded"] == 1
    refused = await proxy.update_item(TABLE, "theirs", {"a": 2})
    assert (refused["status"], refused["error_code"]) == (403, "access_denied")
    assert len(await world.dead()) == 1


async def test_a_table_that_refuses(world: World, cloud: CloudService) -> None:
    """S-054: what somebody else wrote last is a conflict and a dead letter, unless a condition allows it."""
    await world.start(other={"config": Policy.REFUSE})
    proxy = await world.proxy()
    cloud.tables["config"] = {"1": {"id": "1", "version": 3, BY: "web"}}
    refused = await proxy.update_item("config", "1", {"a": 2})
    assert (refused["status"], refused["error_code"]) == (409, "conflict")
    assert "last written by web" in (await world.dead())[0]
    assert (await proxy.write_if("config", "1", {"version": 4}, {"version": 2}))["status"] == 409
    assert (await proxy.write_if("config", "1", {"version": 4}, {"version": 3}))["success"]
    assert (await proxy.update_item("config", "1", {"a": 3}))["success"]  # it is ours now
    assert cloud.tables["config"]["1"]["a"] == 3
    assert (await proxy.put_item("config", {"id": "2"}))["success"]


async def test_what_is_refused_and_what_is_tried_again(world: World, cloud: CloudService) -> None:
    """S-054: 4xx ends as a dead letter with the reason, 5xx is tried again; neither holds up other items."""
    handler = await world.start()
    proxy = await world.proxy()
    answers = [SERVER_ERROR, SERVER_ERROR, (429, b"{}"), (200, b"<html>sign in here</html>"), (302, b"")]

    def trouble(call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if call == "getData" and body["partition_value"] not in cloud.tables.get(TABLE, {}):
            return 404, b'{"message": "no such item"}'
        if body.get("filter_value") == "bad":
            return 422, b'{"message": "no such column"}'
        return answers.pop() if body.get("filter_value") == "slow" and call == "setData" and answers else None

    cloud.trouble = trouble
    bad, slow, good = await asyncio.gather(*(proxy.put_item(TABLE, {"id": key}) for key in ("bad", "slow", "good")))
    assert (bad["status"], "no such column" in bad["error"]) == (422, True)
    assert slow["success"]
    assert good["success"]
    await world.idle()
    assert ["422" in reason for reason in await world.dead()] == [True]
    assert {body["filter_value"] for _, body in cloud.writes} == {"slow", "good"}
    assert handler.statistics()["last_error"]


async def test_tokens_that_are_not_taken(world: World, cloud: CloudService, caplog: pytest.LogCaptureFixture) -> None:
    """S-054: expired: fetched anew at once; revoked: the write waits, is no dead letter, and says why; never shown."""
    handler = await world.start()
    proxy = await world.proxy()
    assert (await proxy.put_item(TABLE, {"id": "1"}))["success"]
    cloud.valid = "token-2"
    assert (await proxy.put_item(TABLE, {"id": "2"}))["success"]
    cloud.valid, cloud.gives = "token-3", "token-2"
    told = await proxy.put_item(TABLE, {"id": "3"})
    assert (told["queued"], "does not take the token" in told["message"]) == (True, True)
    cloud.token_status = 403
    await until(lambda: "answered 403" in handler.statistics()["problem"])
    cloud.token_status, cloud.gives = 200, None
    await world.idle()
    assert "3" in cloud.tables[TABLE]
    assert await world.dead() == []
    assert "token-" not in caplog.text + json.dumps(handler.statistics())


async def test_records_of_any_program(world: World, cloud: CloudService) -> None:
    """S-054: a record without a number gets one by its place; one that says nothing sensible is refused."""
    await world.start()
    async with world.client("other") as bus:
        key = words.order_key(TABLE, "id", "1")
        for n in range(3):
            order = {"table": TABLE, "key": {"id": "1"}, "operation": "put", "item": {"n": n}}
            await bus.send(words.APP, words.WRITE, order, key=key)
        for wrong in (
            {"table": TABLE, "key": {"id": "1"}, "operation": "erase"},
            {"table": TABLE, "key": {}, "operation": "put"},
            {"table": "", "key": {"id": "1"}, "operation": "put"},
            {"table": TABLE, "key": {"id": "1"}, "operation": "put", "seq": -1},
            {"table": TABLE, "key": {"id": "1"}, "operation": "put", "item": {"id": "2"}},
            {"table": TABLE, "key": {"id": "1"}, "operation": "put", "typed": True, "item": {"a": {"B": "?"}}},
        ):
            with pytest.raises(ReplyError, match="REFUSED"):
                await bus.request(words.APP, words.WRITE, wrong, timeout=20)
    await world.idle()
    assert cloud.tables[TABLE]["1"]["n"] == 2
    assert len(cloud.writes) == 3
