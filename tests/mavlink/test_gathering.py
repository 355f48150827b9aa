"""When a list of parameters is whole: pure logic."""

from __future__ import annotations

from petalbus.handlers.mavlink.params.gathering import HASH, Gathering
from petalbus.handlers.mavlink.params.listing import _values
from petalbus.handlers.mavlink.params.pack import PackedParam, decode_param_pack, encode_param_pack
from petalbus.handlers.mavlink.params.values import ParamEncoding, ParamType, ParamValue, decode_value


def tell(gathering: Gathering, names: list[str], places: range, *, total: int | None = None) -> None:
    for place in places:
        count = len(names) if total is None else total
        gathering.on_value(ParamValue(names[place], b"\0\0\0\0", ParamType.REAL32, place, count), 0.0)


NAMES = [f"P{place}" for place in range(10)]
MORE = [*NAMES[:2], "NEW", *NAMES[2:]]


def test_a_list_without_a_change_is_whole_when_no_position_is_missing() -> None:
    gathering = Gathering()
    assert not gathering.over
    tell(gathering, NAMES, range(9))
    assert (gathering.missing, gathering.over, gathering.whole) == ([9], False, False)
    gathering.on_value(ParamValue(HASH, b"1234", ParamType.UINT32, 65535, 10), 0.0)
    assert gathering.missing == [9]
    tell(gathering, NAMES, range(9, 10))
    assert gathering.whole
    assert list(gathering.values) == NAMES


def test_an_answer_by_name_counts() -> None:
    """It has no position."""
    gathering = Gathering()
    tell(gathering, NAMES, range(9))
    gathering.on_value(ParamValue("P9", b"\0\0\0\0", ParamType.REAL32, 65535, 10), 0.0)
    assert gathering.whole


def test_a_change_of_the_total_spoils_the_pass() -> None:
    """Each position was heard, and one name was not."""
    gathering = Gathering()
    tell(gathering, NAMES, range(5))
    tell(gathering, MORE, range(5, 11))
    assert gathering.over
    assert not gathering.whole
    assert "NEW" not in gathering.values
    gathering.begin()
    assert gathering.missing == []
    tell(gathering, MORE, range(11))
    assert gathering.whole
    assert set(gathering.values) == set(MORE)


def test_a_parameter_that_goes_is_not_told() -> None:
    """What was heard before it went does not count in the next pass."""
    gathering = Gathering()
    tell(gathering, MORE, range(5))
    tell(gathering, NAMES, range(4, 10))
    assert not gathering.whole
    gathering.begin()
    tell(gathering, NAMES, range(10))
    assert gathering.whole
    assert list(gathering.values) == NAMES


def test_one_that_comes_for_one_that_goes_is_found() -> None:
    """The total stays, a name is told twice: too few names for the positions."""
    gathering = Gathering()
    other = [*NAMES[:2], "NEW", *NAMES[2:8], NAMES[9]]
    tell(gathering, NAMES, range(5))
    tell(gathering, other, range(5, 10))
    assert len(gathering.values) == 9
    assert (gathering.over, gathering.whole) == (True, False)
    gathering.begin()
    tell(gathering, other, range(10))
    assert gathering.whole


def test_a_vehicle_that_counts_one_too_many_is_believed_the_second_time() -> None:
    """It would be listed for ever."""
    gathering = Gathering()
    twice = [*NAMES[:9], NAMES[0]]
    tell(gathering, twice, range(10))
    assert not gathering.whole
    gathering.begin()
    tell(gathering, twice, range(10))
    assert gathering.whole


def test_an_integer_that_no_float_can_hold_is_told_as_ardupilot_tells_it() -> None:
    """Seconds since 2016: the file has all digits, PARAM_VALUE has not, and the list is one of PARAM_VALUEs."""
    pack = decode_param_pack(encode_param_pack([PackedParam("STAT_RESET", 302400123, ParamType.INT32)]))
    told = _values(pack, ParamEncoding.C_CAST)["STAT_RESET"]
    assert told.param_type == ParamType.INT32
    assert abs(decode_value(told.raw, ParamType.INT32, ParamEncoding.C_CAST) - 302400123) < 32
