"""Tables in a real server that speaks DynamoDB's language, through a relay that makes trouble."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from petalbus.handlers.database.dynamo import DynamoTables
from petalbus.handlers.database.errors import Away, Conflict, Denied, Failing, NotThere, Refused
from petalbus.handlers.database.writes import BY, SEQ, Operation, Policy, Verdict, Write

from .conftest import MACHINE, TABLE, World
from .http_end import Relay

ALL_TYPES = {
    "none": None,
    "yes": True,
    "text": "ü \u0000",
    "empty": "",
    "whole": 2**70,
    "negative": -5,
    "float": 0.1,
    "small": 1.5e-9,
    "exact": Decimal("3.14159265358979323846264338"),
    "bytes": b"\x00\xff",
    "texts": {"a", "b"},
    "numbers": {1, 2.5},
    "raws": {b"a", b"b"},
    "nested": {"list": [1, {"a": None}, [b"x"]], "status": "reserved word"},
}


def write(value: str, operation: Operation = Operation.PUT, *, seq: int = 1, **more: Any) -> Write:
    told = {"machine": MACHINE, "table": TABLE, "key": "id", "value": value, "data": {}, **more}
    return Write(operation=operation, seq=seq, **told)


async def test_types_come_back_as_they_were(dynamo: DynamoTables) -> None:
    """S-050: every type that a table has; NaN becomes null; what a table has no type for is refused."""
    await dynamo.write(write("1", data=ALL_TYPES), None)
    stored = await dynamo.get(MACHINE, TABLE, "id", "1")
    assert {name: stored[name] for name in ALL_TYPES} == ALL_TYPES
    assert [type(stored[name]) for name in ("whole", "float", "exact")] == [int, float, Decimal]
    await dynamo.write(write("2", data={"nan": float("nan"), "pair": (1, 2)}), None)
    assert (await dynamo.get(MACHINE, TABLE, "id", "2"))["nan"] is None
    for wrong in ({"a": set()}, {"a": object()}, {"a": {1, "b"}}, {"a": 1e300}):
        with pytest.raises(Refused):
            await dynamo.write(write("3", data=wrong), None)
    with pytest.raises(Refused, match="nope"):
        await dynamo.get(MACHINE, "nope", "id", "1")
    with pytest.raises(Refused, match="cannot be the name"):
        await dynamo.get(MACHINE, "a/b", "id", "1")


async def test_conditions(dynamo: DynamoTables, relay: Relay) -> None:
    """S-054: repetitions change nothing, the later one wins or is refused, other machines' items stay."""
    last, refuse = Policy.LAST_WRITER, Policy.REFUSE
    first = write("1", data={"a": 1}, seq=5)
    assert (await dynamo.write(first, last)).verdict is Verdict.APPLY
    assert (await dynamo.write(first, last)).verdict is Verdict.REPEATED
    assert (await dynamo.write(write("1", seq=4), last)).verdict is Verdict.SUPERSEDED
    change = write("1", Operation.UPDATE, data={"b": 2, "id": "1"}, seq=6)
    assert (await dynamo.write(change, refuse)).answer == {"id": "1", "a": 1, "b": 2, "robot_instance_id": MACHINE}
    other = write("1", machine="m2", seq=7)
    with pytest.raises(Denied):
        await dynamo.write(other, last)
    client = await dynamo._connected()
    web = {"id": {"S": "w"}, SEQ: {"N": "3"}, BY: {"S": "web"}, "v": {"N": "1"}}
    await client.put_item(TableName=f"{dynamo.prefix}{TABLE}", Item=web)
    with pytest.raises(Conflict, match="written by web"):
        await dynamo.write(write("w", Operation.UPDATE, seq=9), refuse)
    with pytest.raises(Conflict, match="condition does not hold: v"):
        await dynamo.write(write("w", Operation.UPDATE, seq=9, condition={"v": 2}), refuse)
    held = write("w", Operation.UPDATE, data={"v": 2}, seq=9, condition={"v": 1, "gone": None})
    assert (await dynamo.write(held, refuse)).answer["v"] == 2
    with pytest.raises(NotThere):
        await dynamo.write(write("none", Operation.DELETE), last)
    assert (await dynamo.write(write("1", Operation.DELETE, seq=10), last)).answer["deleted"] is True
    with pytest.raises(NotThere):
        await dynamo.get(MACHINE, TABLE, "id", "1")
    relay.lose_answers = 1
    lost = write("l", Operation.UPDATE, data={"a": 1}, seq=1)
    with pytest.raises(Away):
        await dynamo.write(lost, last)
    assert (await dynamo.write(lost, last)).verdict is Verdict.REPEATED


async def test_a_table_of_several_pages(dynamo: DynamoTables, relay: Relay) -> None:
    """S-048, S-053: more than 1 MB is read page by page; filters; batches of 25, what is left is sent again."""
    kept: list[int] = []

    def some(call: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The cloud takes 20 of the 25 at first."""
        if call != "BatchWriteItem" or kept:
            return None
        ((name, requests),) = body["RequestItems"].items()
        kept.append(len(requests))
        relay.extra = {"UnprocessedItems": {name: requests[20:]}}
        return {"RequestItems": {name: requests[:20]}}

    relay.trouble = some
    rows = [{"id": str(n), "pad": "x" * 40_000, "even": n % 2 == 0, "n": n} for n in range(60)]
    assert await dynamo.write_many(MACHINE, TABLE, "id", rows) == {}
    assert kept == [25]
    assert relay.calls.count("BatchWriteItem") == 4
    found = await dynamo.scan(MACHINE, TABLE, [])
    assert {one["id"] for one in found} == {str(n) for n in range(60)}
    assert relay.calls.count("Scan") > 2
    assert len(await dynamo.scan(MACHINE, TABLE, [{"filter_key_name": "even", "filter_key_value": True}])) == 30
    assert len(await dynamo.scan(MACHINE, TABLE, [{"filter_key_name": "n", "filter_key_value": "7"}])) == 1
    assert await dynamo.scan("m2", TABLE, []) == []


async def test_errors_and_credentials(dynamo: DynamoTables, relay: Relay) -> None:
    """S-054: expired credentials are fetched anew; revoked ones, throttling and 500s pass; a 400 does not."""
    answers: list[tuple[int, dict[str, Any]]] = [(400, {"__type": "x#ExpiredTokenException", "message": "old"})]
    relay.trouble = lambda call, _body: answers.pop() if answers and call == "PutItem" else None
    assert (await dynamo.write(write("1"), Policy.LAST_WRITER)).verdict is Verdict.APPLY
    for kind, status, raised in (
        ("UnrecognizedClientException", 400, Away),
        ("ProvisionedThroughputExceededException", 400, Failing),
        ("InternalServerError", 500, Failing),
        ("ValidationException", 400, Refused),
        ("AccessDeniedException", 400, Refused),
    ):
        answers[:] = [(status, {"__type": f"x#{kind}", "message": "no"})] * 2
        with pytest.raises(raised):
            await dynamo.write(write("1", seq=2), Policy.LAST_WRITER)
    await relay.shut()
    with pytest.raises(Away, match="cannot be reached"):
        await dynamo.get(MACHINE, TABLE, "id", "1")


async def test_offline_and_back(dynamo_world: World, relay: Relay, dynamo: DynamoTables) -> None:
    """S-054, S-055: stored offline, in DynamoDB later, in order per key; bytes and sets go through the bus, too."""
    await relay.shut()
    await dynamo_world.start()
    proxy = await dynamo_world.proxy()
    for n in range(4):
        for key in "abc":
            told = await proxy.update_item(TABLE, key, {"n": n, f"m{n}": True})
            assert told["queued"], told
    assert (await proxy.put_item(TABLE, {"id": "t", "data": b"\x01", "names": {"x"}}))["queued"]
    await relay.open()
    await dynamo_world.idle()
    for key in "abc":
        item = await dynamo.get(MACHINE, TABLE, "id", key)
        assert (item["n"], item["m0"], item["m3"]) == (3, True, True)
    typed = await dynamo.get(MACHINE, TABLE, "id", "t")
    assert (typed["data"], typed["names"]) == (b"\x01", {"x"})
    asked = relay.requests
    await asyncio.sleep(0.3)
    assert relay.requests == asked
