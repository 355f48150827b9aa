"""Values and judgements, without a cloud."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.database import values
from petalbus.handlers.database.errors import Conflict, Deleted, Refused
from petalbus.handlers.database.writes import Operation, Policy, Verdict, Write, judge

from .conftest import World
from .http_end import CloudService

FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda one: not one or 1e-130 <= abs(one) < 1e126)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**37), 10**37) | FLOATS
    | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_a_value_comes_back(value: Any) -> None:
    """S-050: through a table's form and through a record's."""
    assert values.from_attribute(values.to_attribute(value)) == value
    assert values.members_from_wire(values.members_to_wire({"a": value})) == {"a": value}


@given(st.decimals(-(10**17), 10**17, places=20))
def test_a_decimal_comes_back(value: Decimal) -> None:
    """S-050: as a float where that says the same digits."""
    assert Decimal(str(values.from_attribute(values.to_attribute(value)))) == value


@pytest.mark.parametrize("wrong", [{}, {"S": "a", "N": "1"}, {"N": "x"}, {"Q": 1}, {"L": 3}, {"M": []}])
def test_what_is_no_value(wrong: dict[str, Any]) -> None:
    """Refused, and nothing else."""
    with pytest.raises(Refused):
        values.from_attribute(wrong)
    assert values.from_attribute({"N": "1e37"}) == 10**37
    assert values.from_attribute({"N": "0.30000000000000000000001"}) == Decimal("0.30000000000000000000001")


def test_numbers_that_a_table_has_not() -> None:
    """S-050: refused before anything is stored or sent."""
    long = 10**5000
    for wrong in (
        1e126,
        -1.7e308,
        10**126,
        long,
        -long,
        10**38 + 1,
        Decimal("1e-131"),
        Decimal("1e126"),
        Decimal("1" * 39),
    ):
        with pytest.raises(Refused):
            values.to_attribute({"a": [wrong]})


@given(st.integers(-(10**126), 10**126) | st.floats() | st.decimals())
def test_a_number_is_as_a_table_has_them_or_refused(value: Any) -> None:
    """S-050: 38 digits, between 1e-130 and 9.9e125; a float that is nearer to 0 is 0, one that is no number null."""
    try:
        ((kind, text),) = values.to_attribute(value).items()
    except Refused:
        return
    if kind == "N":
        exact = Decimal(text)
        assert not exact or (-130 <= exact.adjusted() <= 125 and len(str(exact.as_tuple().digits)) < 400)
        near_0 = isinstance(value, float) and abs(value) < 1e-130
        assert near_0 or exact == value or exact == Decimal(str(value))
        assert values.same(value, values.from_attribute({"N": text}))


def test_what_is_the_same() -> None:
    """S-054: as a table compares."""
    for one, other in (
        (1, 1.0),
        (Decimal("0.10"), 0.1),
        ((1,), [1.0]),
        (float("nan"), None),
        ({1, 2}, {2.0, 1}),
        (10**5000,) * 2,
    ):
        assert values.same(one, other)
    for one, other in (
        (1, True),
        ("", None),
        ([1], [True]),
        ({"a": 0}, {"a": False}),
        (b"a", "a"),
        ("1", 1),
        ([], None),
    ):
        assert not values.same(one, other)
    assert values.to_attribute({0.1, Decimal("0.10")}) in ({"NS": ["0.1"]}, {"NS": ["0.10"]})


def test_an_update_does_not_change_a_deleted_item() -> None:
    """S-052: unless it says what becomes of that; and what was done before is no error."""
    told: dict[str, Any] = {"machine": "m1", "table": "t", "key": "id", "value": "1", "data": {"a": 1}, "seq": 5}
    stored = {"id": "1", "deleted": True, "_petalbus_by": "m1", "_petalbus_seq": 4}
    update = Write(operation=Operation.UPDATE, **told)
    with pytest.raises(Deleted):
        judge(stored, update, Policy.LAST_WRITER)
    assert judge({**stored, "_petalbus_seq": 5}, update, Policy.LAST_WRITER) is Verdict.REPEATED
    assert judge(stored, Write(operation=Operation.PUT, **told), None) is Verdict.APPLY
    told["data"] = {"deleted": False}
    assert judge(stored, Write(operation=Operation.UPDATE, **told), None) is Verdict.APPLY


@given(st.lists(st.tuples(st.sampled_from(["m1", "m2"]), st.integers(1, 20)), max_size=12), st.data())
def test_any_order_of_writers_ends_with_the_latest(writes: list[tuple[str, int]], data: st.DataObject) -> None:
    """S-054: under last-writer the item ends as its latest write, repeated as often as one likes."""
    numbered = {(machine, seq) for machine, seq in writes}
    stored: dict[str, Any] = {}
    for machine, seq in data.draw(st.permutations([*numbered, *numbered])):
        write = Write(
            machine=machine, table="t", key="id", value="1", operation=Operation.PUT, data={"v": seq}, seq=seq
        )
        mine = {**stored, "robot_instance_id": machine} if stored else stored  # an item that both may write
        if judge(mine, write, Policy.LAST_WRITER) is Verdict.APPLY:
            stored = {"id": "1", **write.marked}
    if numbered:
        assert stored["v"] == max(seq for _, seq in numbered)


def test_refuse_lets_only_our_own_writes_follow() -> None:
    """S-054: by number, and not what somebody else has written."""
    write = Write(machine="m1", table="t", key="id", value="1", operation=Operation.UPDATE, data={}, seq=5)
    assert judge({"_petalbus_by": "m1", "_petalbus_seq": 4}, write, Policy.REFUSE) is Verdict.APPLY
    assert judge({"_petalbus_by": "m1", "_petalbus_seq": 9}, write, Policy.REFUSE) is Verdict.SUPERSEDED
    for stored in ({"a": 1}, {"_petalbus_by": "m2", "_petalbus_seq": 1}):
        with pytest.raises(Conflict):
            judge(stored, write, Policy.REFUSE)


class Half(float):
    """A number of another library, such as numpy's: a float that JSON's writer does not take."""


async def test_a_float_of_another_library_is_written(world: World, cloud: CloudService) -> None:
    """S-050: as its number, offline too; nothing raises."""
    await world.start()
    proxy = await world.proxy()
    assert not values.is_plain({"a": Half(1.5)})
    told = await proxy.put_item("flights", {"id": "1", "height": Half(1.5), "list": [Half(2.25)]})
    assert told["success"], told
    await world.idle()
    assert cloud.tables["flights"]["1"]["height"] == 1.5
    assert cloud.tables["flights"]["1"]["list"] == [2.25]
