"""The compact form of high-rate topics: an entry and the declaration beside the stream make a whole record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petalbus.schemas import CompactEntry, CompactForm, RecordInvalid
from petalbus.schemas.compact import MAX_UNNAMED, Declared, is_compact
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

FORM = CompactForm(
    topic="mavlink.rx", type_prefix="mavlink.", source="vehicle", names={"30": "ATTITUDE"}, boot_id="0123456789ab"
)
ENTRY = CompactEntry("30", 42, b"\xfd\x1c")


def stored(form: CompactForm) -> dict[bytes, bytes]:
    return {name.encode(): value for name, value in form.to_hash().items()}


def test_an_entry_becomes_a_whole_record() -> None:
    record = FORM.decode("7-0", ENTRY.to_fields())
    assert (record.id, record.type, record.source, record.data) == (
        "mavlink.rx@7-0",
        "mavlink.ATTITUDE",
        "vehicle",
        b"\xfd\x1c",
    )
    assert (record.boot_id, record.mono, record.stream_id) == ("0123456789ab", 42, "7-0")
    assert record.content_type == "application/octet-stream"


@settings(max_examples=50, deadline=None)
@given(st.from_regex(r"\A[a-z0-9_]{1,20}\Z"), st.integers(0, 2**63 - 1), st.binary(max_size=64))
def test_what_is_written_is_what_is_read(kind: str, mono: int, data: bytes) -> None:
    record = FORM.decode("1-1", CompactEntry(kind, mono, data).to_fields())
    assert (record.mono, record.raw) == (mono, data)
    assert record.type == "mavlink." + FORM.names.get(kind, kind)


def test_the_declaration_is_read_as_it_was_stored_and_later_members_do_not_matter() -> None:
    assert CompactForm.from_hash(stored(FORM)) == FORM
    assert CompactForm.from_hash(stored(FORM) | {b"later": b"1"}) == FORM


@pytest.mark.parametrize("names", [b"[]", b"5", b'{"30":5}', b"{", b"\xff"])
def test_a_broken_declaration_is_refused(names: bytes) -> None:
    with pytest.raises(RecordInvalid, match="'form'"):
        CompactForm.from_hash(stored(FORM) | {b"names": names})


@pytest.mark.parametrize("boots", [b"{", b"5", b'["1-0"]', b'[["1-0"]]', b'[["x","b"]]', b'[["1-0",7]]', b'[[1,"b"]]'])
def test_a_broken_list_of_boots_is_refused(boots: bytes) -> None:
    with pytest.raises(RecordInvalid, match="broken list of boots"):
        CompactForm.from_hash(stored(FORM) | {b"boots": boots})


def test_entries_keep_the_boot_that_they_were_written_in() -> None:
    """I9: each boot's entries lie between its first id and the next boot's; ids compare as numbers."""
    listed = b'[["9-1","boot-a"],["10-0","boot-b"],["10-10","boot-c"]]'
    form = CompactForm.from_hash(stored(FORM) | {b"boots": listed, b"boot_id": b"boot-c"})
    expected = {"9-1": "boot-a", "9-99": "boot-a", "10-0": "boot-b", "10-9": "boot-b", "10-10": "boot-c"}
    expected["100-0"] = "boot-c"
    assert {place: form.decode(place, ENTRY.to_fields()).boot_id for place in expected} == expected


def test_entries_older_than_all_known_boots_have_no_boot_clock_time() -> None:
    """I9: a time of an unknown boot would be compared with the wrong clock."""
    form = CompactForm.from_hash(stored(FORM) | {b"boots": b'[["9-1","boot-a"]]'})
    record = form.decode("9-0", ENTRY.to_fields())
    assert (record.boot_id, record.mono) == (None, None)


def known() -> Declared:
    declared = Declared()
    declared.form = FORM
    assert declared.outdated("1800000000000-0", CompactEntry("30", 10**12, b"").to_fields())
    return declared


def test_a_reader_looks_again_when_the_source_was_rebooted() -> None:
    """I9: boot clock and stream ids part then, also where the new boot has lasted longer than the old one had."""
    declared = known()
    assert not declared.outdated("1800000001000-0", CompactEntry("30", 1001 * 10**9, b"").to_fields())
    assert not declared.outdated("1800000002400-0", CompactEntry("30", 1002 * 10**9, b"").to_fields()), "a small delay"
    assert declared.outdated("1800000030000-0", CompactEntry("30", 20 * 10**9, b"").to_fields())
    assert not declared.outdated("1800000031000-0", CompactEntry("30", 21 * 10**9, b"").to_fields())
    assert declared.outdated("1800009000000-0", CompactEntry("30", 100 * 10**9, b"").to_fields())


def test_a_reader_looks_once_for_each_kind_without_a_name() -> None:
    declared = known()
    moment = 1800000000000
    for number in range(1, MAX_UNNAMED + 1):
        fields = CompactEntry(f"unnamed{number}", 10**12, b"").to_fields()
        assert declared.outdated(f"{moment}-{number}", fields)
        assert not declared.outdated(f"{moment}-{number}", fields)
    assert not declared.outdated(f"{moment}-0", CompactEntry("one too many", 10**12, b"").to_fields()), "bounded"


def test_a_reader_that_knows_nothing_looks_at_every_entry_and_minds_no_nonsense() -> None:
    declared = Declared()
    for fields in (ENTRY.to_fields(), [b"d", b"x"], [b"k", b"\xff", b"m", b"-", b"d", b""], [b"m", b"9" * 30]):
        assert declared.outdated("1800000000000-0", fields)


@pytest.mark.parametrize("missing", [b"topic", b"type_prefix", b"source", b"names"])
def test_a_declaration_that_lacks_something_is_refused(missing: bytes) -> None:
    with pytest.raises(RecordInvalid, match="'form'"):
        CompactForm.from_hash({name: value for name, value in stored(FORM).items() if name != missing})


@pytest.mark.parametrize(
    "fields",
    [
        [b"k", b"30", b"d", b"x"],
        [b"k", b"30", b"m", b"soon", b"d", b"x"],
        [b"k", b"\xff", b"m", b"1", b"d", b"x"],
        [b"m", b"1", b"d", b"x"],
        [b"k", b"30", b"m", b"1"],
    ],
)
def test_a_broken_entry_is_refused_with_its_place(fields: list[bytes]) -> None:
    with pytest.raises(RecordInvalid, match=r"entry 9-3 of topic 'mavlink\.rx'"):
        FORM.decode("9-3", fields)


def test_an_entry_has_the_limits_of_a_record() -> None:
    with pytest.raises(RecordInvalid, match="'data': has 1048577 bytes"):
        FORM.decode("1-0", CompactEntry("30", 1, b"x" * (MAX_PAYLOAD_BYTES + 1)).to_fields())
    with pytest.raises(RecordInvalid, match="'mono'"):
        FORM.decode("1-0", CompactEntry("30", -1, b"x").to_fields())
    with pytest.raises(RecordInvalid, match="'type'"):
        FORM.decode("1-0", CompactEntry("a b", 1, b"x").to_fields())


def test_fields_of_a_later_version_are_kept() -> None:
    record = FORM.decode("1-0", [*ENTRY.to_fields(), b"lq", b"97"])
    assert record.extra == {"lq": b"97"}


def test_compact_entries_are_told_from_records() -> None:
    assert is_compact(ENTRY.to_fields())
    assert not is_compact([b"id", b"k", b"type", b"d", b"source", b"s", b"data", b"{}"])
