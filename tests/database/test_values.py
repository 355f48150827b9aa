"""Values and judgements, without a cloud."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.database import values
from petalbus.handlers.database.errors import Conflict, Refused
from petalbus.handlers.database.writes import Operation, Policy, Verdict, Write, judge

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**37), 10**37) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_a_value_comes_back(value: Any) -> None:
    """S-050: through a table's form and through a record's."""
    assert values.from_attribute(values.to_attribute(value)) == value
    assert values.members_from_wire(values.members_to_wire({"a": value})) == {"a": value}


@given(st.decimals(allow_nan=False, allow_infinity=False, places=20))
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
