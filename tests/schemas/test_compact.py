"""The compact form of high-rate topics: an entry and the declaration beside the stream make a whole record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from petalbus.schemas import CompactEntry, CompactForm, RecordInvalid
from petalbus.schemas.compact import is_compact
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
