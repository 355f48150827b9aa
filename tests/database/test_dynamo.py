"""Tables in a real server that speaks DynamoDB's language, through a relay that makes trouble."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from petalbus.handlers.bucket.credentials import Credentials
from petalbus.handlers.database import conditions
from petalbus.handlers.database.dynamo import DynamoTables
from petalbus.handlers.database.dynamo_errors import Changed
from petalbus.handlers.database.errors import (
    Away,
    Conflict,
    Deleted,
    Denied,
    Failing,
    Forbidden,
    NoTable,
    NotThere,
    Refused,
    TableError,
)
from petalbus.handlers.database.values import from_members
from petalbus.handlers.database.writes import BY, SEQ, Operation, Policy, Verdict, Write, judge

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
    with pytest.raises(NoTable, match="nope"):
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
    """S-048, S-053: more than 1 MB is read page by page; filters; many written at once, the throttled ones again."""
    busy = [(400, {"__type": "x#ProvisionedThroughputExceededException", "message": "slowly"})] * 5
    relay.trouble = lambda call, _body: busy.pop() if busy and call == "PutItem" else None
    rows = [{"id": str(n), "pad": "x" * 40_000, "even": n % 2 == 0, "n": n, "none": None} for n in range(60)]
    assert await dynamo.write_many(MACHINE, TABLE, "id", rows) == {}
    assert (busy, relay.calls.count("PutItem")) == ([], 65)
    found = await dynamo.scan(MACHINE, TABLE, [])
    assert {one["id"] for one in found} == {str(n) for n in range(60)}
    assert relay.calls.count("Scan") > 2
    for name, value, number in (("even", True, 30), ("even", "true", 30), ("n", "7", 1), ("n", 7.0, 1)):
        assert len(await dynamo.scan(MACHINE, TABLE, [{"filter_key_name": name, "filter_key_value": value}])) == number
    for value in ("NaN", "1e400", "1e300", "9" * 5000, "-Infinity"):  # null is none of them
        assert await dynamo.scan(MACHINE, TABLE, [{"filter_key_name": "none", "filter_key_value": value}]) == []
    with pytest.raises(Refused, match="no number"):
        await dynamo.scan(MACHINE, TABLE, [{"filter_key_name": "none", "filter_key_value": float("nan")}])
    assert await dynamo.scan("m2", TABLE, []) == []


async def test_reading_goes_on_where_it_was_throttled(dynamo: DynamoTables, relay: Relay) -> None:
    """S-053: a scan asks for the same page again, not for the first one; a table that is not there says so at once."""
    rows = [{"id": str(n), "pad": "x" * 40_000} for n in range(60)]
    assert await dynamo.write_many(MACHINE, TABLE, "id", rows) == {}
    asked: list[Any] = []
    busy = [None, "ProvisionedThroughputExceededException", "ThrottlingException", None, "InternalServerError"]

    def trouble(call: str, body: Any) -> tuple[int, dict[str, Any]] | None:
        if call in ("Scan", "GetItem"):
            asked.append(body.get("ExclusiveStartKey"))
            kind = busy.pop(0) if busy else None
            if kind is not None:
                return 500 if kind.startswith("Internal") else 400, {"__type": f"x#{kind}", "message": "slowly"}
        return None

    relay.trouble = trouble
    assert len(await dynamo.scan(MACHINE, TABLE, [])) == 60
    assert asked.count(None) == 1
    busy[:] = ["ThrottlingException", None]
    assert (await dynamo.get(MACHINE, TABLE, "id", "7"))["id"] == "7"
    asked.clear()
    with pytest.raises(NoTable, match="ResourceNotFound"):
        await dynamo.get(MACHINE, "never-made", "id", "7")
    assert len(asked) == 1


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
        ("AccessDeniedException", 400, Forbidden),  # of one table: it waits for itself alone
        ("", 403, Away),  # a gateway's no
        ("", 404, Away),
        ("", 413, Failing),
    ):
        answers[:] = [(status, {"__type": f"x#{kind}", "message": "no"} if kind else {"message": "no"})] * 2
        with pytest.raises(raised) as told:
            await dynamo.write(write("1", seq=2), Policy.LAST_WRITER)
        assert told.value.away == (raised is Away)
    await relay.shut()
    with pytest.raises(Away, match="cannot be reached"):
        await dynamo.get(MACHINE, TABLE, "id", "1")
    for endpoint in (f"http://u:HIDDEN@127.0.0.1:{relay.port}", "http://u:HIDDEN@[::1", "http://u:HIDDEN@a b:x"):
        made = DynamoTables(lambda: Credentials(f"{relay.url}/token", timeout=5), endpoint=endpoint, timeout=5)
        with pytest.raises(Away) as hidden:
            await made.get(MACHINE, TABLE, "id", "1")
        assert "HIDDEN" not in f"{hidden.value}{made.problem}{made.where}"
        await made.close()


async def seed(tables: DynamoTables, value: str, **attributes: Any) -> None:
    client = await tables._connected()
    await client.put_item(TableName=f"{tables.prefix}{TABLE}", Item={"id": {"S": value}, **attributes})


async def test_items_of_other_programs(dynamo: DynamoTables, relay: Relay) -> None:
    """S-054: what a condition cannot foresee is judged, and written under what was judged; nothing waits for ever."""
    mine = {"robot_instance_id": {"S": MACHINE}}
    await seed(dynamo, "empty", robot_instance_id={"S": ""})
    await seed(dynamo, "null", robot_instance_id={"NULL": True})
    await seed(dynamo, "text", **mine, **{SEQ: {"S": "7"}})
    await seed(dynamo, "by", **mine, **{BY: {"S": MACHINE}})
    await seed(dynamo, "one", **mine, armed={"N": "1"})
    for value, policy in (("empty", Policy.LAST_WRITER), ("null", Policy.LAST_WRITER), ("text", Policy.LAST_WRITER),
                          ("by", Policy.REFUSE)):  # fmt: skip
        told = await dynamo.write(write(value, Operation.UPDATE, data={"x": 1}), policy)
        assert told.answer["x"] == 1
    with pytest.raises(Conflict, match="does not hold: armed"):
        await dynamo.write(write("one", Operation.UPDATE, condition={"armed": True}), Policy.LAST_WRITER)
    relay.trouble = lambda call, _body: (
        (400, {"__type": "x#ConditionalCheckFailedException", "message": "no"}) if call == "PutItem" else None
    )
    with pytest.raises(Conflict, match="does not say why"):
        await dynamo.write(write("one", seq=9), Policy.LAST_WRITER)


async def test_a_deleted_item_is_not_changed(dynamo: DynamoTables) -> None:
    """S-051, S-052: an update of it is refused and says so; a put makes it anew, as does an update that says it."""
    last = Policy.LAST_WRITER
    for policy in (last, None):
        await dynamo.write(write("1", data={"a": 1}, seq=1), None)
        await dynamo.write(write("1", Operation.DELETE, seq=2), policy)
        with pytest.raises(Deleted) as told:
            await dynamo.write(write("1", Operation.UPDATE, data={"b": 1}, seq=3), policy)
        assert (told.value.status, told.value.code) == (404, "no_item")
        alive = await dynamo.write(write("1", Operation.UPDATE, data={"deleted": False}, seq=4), policy)
        assert (alive.answer["a"], alive.answer["deleted"]) == (1, False)
    assert (await dynamo.write(write("1", Operation.DELETE, seq=5), last)).verdict is Verdict.APPLY
    assert (await dynamo.write(write("1", Operation.UPDATE, seq=4), last)).verdict is Verdict.SUPERSEDED
    await dynamo.write(write("1", data={"c": 1}, seq=6), last)
    assert (await dynamo.get(MACHINE, TABLE, "id", "1"))["c"] == 1


async def test_an_update_of_many_members(dynamo: DynamoTables, relay: Relay) -> None:
    """S-051: longer than an expression may be; in one piece, once, and what somebody else changes meanwhile stays."""
    many = {f"member{n}": n for n in range(600)}
    await dynamo.write(write("1", data={"theirs": 1, "member0": -1}, seq=1), Policy.LAST_WRITER)

    def meanwhile(call: str, body: dict[str, Any]) -> None:
        """Another program changes it between our read and our write."""
        if call == "UpdateItem" and "AttributeUpdates" in body and not late:
            late.append(body)

    late: list[dict[str, Any]] = []
    relay.trouble = meanwhile
    change = write("1", Operation.UPDATE, data=many, seq=2)
    relay.calls.clear()
    item = (await dynamo.write(change, Policy.LAST_WRITER)).answer
    assert relay.calls == ["GetItem", "UpdateItem"]
    assert len(late) == 1
    assert {name: item[name] for name in many} == many
    assert item["theirs"] == 1
    assert (await dynamo.write(change, Policy.LAST_WRITER)).verdict is Verdict.REPEATED
    with pytest.raises(Denied):
        await dynamo.write(write("1", Operation.UPDATE, machine="m2", data=many, seq=3), Policy.LAST_WRITER)
    with pytest.raises(Conflict):
        await dynamo.write(write("1", condition={**many, "member7": 8}, seq=3), Policy.LAST_WRITER)
    held = await dynamo.write(write("1", data={"a": 1}, condition=many, seq=3), Policy.LAST_WRITER)
    assert (held.verdict, held.answer.get("theirs")) == (Verdict.APPLY, None)


OWN, YES, NULL, EMPTY, ONE = {"S": MACHINE}, {"BOOL": True}, {"NULL": True}, {"S": ""}, {"N": "1"}
STORED = {  # None: it is not there. More often what lets a write go on to the next question
    "robot_instance_id": [*[OWN] * 8, None, EMPTY, NULL, {"S": "m2"}, ONE],
    SEQ: [None, None, {"N": "4"}, {"N": "4"}, {"N": "5"}, {"N": "5.5"}, {"N": "6"}, {"S": "9"}, YES],
    BY: [None, OWN, OWN, OWN, {"S": "web"}, NULL, EMPTY],
    "deleted": [None, YES, YES, {"BOOL": False}, {"S": "true"}, ONE],
    "c": [None, ONE, YES, NULL, EMPTY, {"L": [ONE]}],
}
CONDITIONS = [
    *[None] * 5, {}, {"id": "x"}, {"c": 1}, {"c": 1.0}, {"c": True}, {"c": None}, {"c": ""}, {"c": float("nan")},
    {"c": [1]}, {"c": (True,)}, {"deleted": True}, {"deleted": 1}, {"deleted": None, "c": 1},
]  # fmt: skip
CASES = st.tuples(
    st.sampled_from([True, True, True, True, False]),
    st.tuples(*map(st.sampled_from, STORED.values())),
    st.sampled_from(CONDITIONS),
    st.sampled_from(Operation),
    st.sampled_from([*Policy, None]),
    st.booleans(),
    st.sampled_from([1, 5, 5, 5]),
)


async def test_the_judge_and_the_table_agree(dynamo: DynamoTables, relay: Relay, dynamo_port: int) -> None:
    """S-054: whatever is stored, the table does under our conditions exactly what the judge allows, in both ways."""
    cases: list[tuple[Any, ...]] = []

    @settings(max_examples=400, deadline=None, database=None, phases=[Phase.generate])
    @given(CASES)
    def draw(case: tuple[Any, ...]) -> None:
        cases.append(case)

    draw()
    numbered = enumerate(cases)
    near = f"http://127.0.0.1:{dynamo_port}"
    tables = DynamoTables(lambda: Credentials(f"{relay.url}/token", timeout=5), endpoint=near, prefix=dynamo.prefix)

    async def some() -> None:
        for number, case in numbered:
            for way in ("asked", "guarded", "whole") if number % 8 == 0 else ("asked",):
                await agree(tables, f"{way}{number}", way, case)

    try:
        await asyncio.gather(*(some() for _ in range(8)))
    finally:
        await tables.close()


async def agree(tables: DynamoTables, value: str, way: str, case: tuple[Any, ...]) -> None:
    """``way``: the call with all conditions; the one under what was judged; or all that ``write`` does."""
    is_there, attributes, condition, operation, policy, revives, seq = case
    members = dict(zip(STORED, attributes, strict=True))
    stored = {name: one for name, one in members.items() if one is not None} if is_there else None
    condition = {**condition, "id": value} if condition and "id" in condition else condition
    data = {"deleted": False} if revives else {"x": 1}
    order = write(value, operation, data=data, seq=seq, condition=condition)
    found = {"id": {"S": value}, **stored} if stored is not None else {}
    try:
        judged: object = judge(from_members(found), order, policy)
    except TableError as error:
        judged = type(error)
    allowed = judged is Verdict.APPLY
    if way == "guarded" and not allowed:
        return
    if stored is not None:
        await seed(tables, value, **stored)
    if way == "whole":
        try:
            told: object = (await tables.write(order, policy)).verdict
        except TableError as error:
            told = type(error)
        assert told == judged, case
        return
    request = conditions.asked(order, policy) if way == "asked" else conditions.guarded(order, policy, found)
    assert request is not None
    try:
        await tables._send(order, *request)
        done = True
    except Changed:
        done = False
    assert done == allowed, (way, judged, case)


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
