"""The record: what goes on the wire, what is refused, and with which words."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings

from petalbus.schemas import Priority, Record, RecordInvalid, ReplyKind
from petalbus.schemas.compression import compress, decompress
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns, new_id
from petalbus.schemas.vocabulary import MAX_FIELDS, MAX_PAYLOAD_BYTES, MAX_UNKNOWN_BYTES

from . import strategies as some

MINIMAL = {"id": "1", "type": "command", "source": "gcs", "data": "{}"}
HOUR = 3_600_000_000_000


def flat(fields: dict[str, Any]) -> list[bytes]:
    out: list[bytes] = []
    for name, value in fields.items():
        out += (name.encode(), value if isinstance(value, bytes) else str(value).encode())
    return out


def read(**more: Any) -> Record:
    return Record.from_fields(flat(MINIMAL | more))


@settings(max_examples=100, deadline=None)
@given(some.records())
def test_s153_what_is_written_is_read_again_with_every_unknown_field(record: Record) -> None:
    fields = record.to_fields()
    again = Record.from_fields(fields, stream_id="5-1")
    assert again.to_fields() == fields
    assert again.stream_id == "5-1"
    assert set(again.extra) == set(record.extra)


def test_looking_at_the_payload_does_not_change_what_is_written() -> None:
    record = read(data=b' {"a": 1}', later=b"\xff")
    fields = record.to_fields()
    assert record.data == {"a": 1}
    assert record.body == b' {"a": 1}'
    assert record.to_fields() == fields


def test_every_field_is_read_as_what_it_means() -> None:
    record = read(
        recipient="HEAR_FC", priority=4, reply_to="0", kind="progress", wants_reply=1, deadline=7, time=8, boot_id="ab",
        mono=9, key="k", schema=2, traceparent="00-1-2-01", new_thing="x",
    )  # fmt: skip
    assert record.priority is Priority.CRITICAL
    assert record.kind is ReplyKind.PROGRESS
    assert record.wants_reply is True
    assert (record.deadline, record.time, record.mono, record.schema_version) == (7, 8, 9, 2)
    assert record.extra == {"new_thing": b"x"}


def test_what_is_left_out_has_its_default() -> None:
    record = read()
    assert (record.priority, record.schema_version, record.wants_reply) == (Priority.NORMAL, 1, False)
    assert record.content_type is record.deadline is record.recipient is record.kind is None


LONG = "x" * 200
REFUSED = [
    ({"id": ""}, "id"),
    ({"id": "two words"}, "id"),
    ({"id": "line\n"}, "id"),
    ({"id": LONG}, "id"),
    ({"id": b"\xff"}, "id"),
    ({"type": ""}, "type"),
    ({"type": "a:b"}, "type"),
    ({"type": "command\n"}, "type"),
    ({"type": LONG}, "type"),
    ({"source": "a:b"}, "source"),
    ({"source": "{bus}"}, "source"),
    ({"source": LONG}, "source"),
    ({"recipient": "a b"}, "recipient"),
    ({"recipient": ""}, "recipient"),
    ({"priority": "0"}, "priority"),
    ({"priority": "5"}, "priority"),
    ({"priority": "high"}, "priority"),
    ({"priority": ""}, "priority"),
    ({"reply_to": ""}, "reply_to"),
    ({"kind": "perhaps"}, "kind"),
    ({"wants_reply": "perhaps"}, "wants_reply"),
    ({"deadline": "-1"}, "deadline"),
    ({"deadline": "soon"}, "deadline"),
    ({"deadline": "1.5"}, "deadline"),
    ({"deadline": str(2**63)}, "deadline"),
    ({"time": ""}, "time"),
    ({"mono": "9" * 5000}, "mono"),
    ({"boot_id": LONG}, "boot_id"),
    ({"key": LONG}, "key"),
    ({"content_type": LONG}, "content_type"),
    ({"schema": "0"}, "schema"),
    ({"traceparent": LONG}, "traceparent"),
    ({"stream_id": "1-1"}, "stream_id"),
    ({"raw": "{}"}, "raw"),
    ({"schema_version": "1"}, "schema_version"),
    ({"n" * 129: "1"}, "n" * 40 + "..."),
]


@pytest.mark.parametrize(
    ("broken", "field"), REFUSED, ids=[f"{next(iter(b))[:20]}-{i}" for i, (b, _) in enumerate(REFUSED)]
)
def test_s153_a_malformed_field_is_refused_by_name(broken: dict[str, Any], field: str) -> None:
    with pytest.raises(RecordInvalid) as caught:
        read(**broken)
    assert caught.value.field == field
    assert caught.value.code == "record_invalid"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("missing", ["id", "type", "source"])
def test_a_missing_field_is_named(missing: str) -> None:
    with pytest.raises(RecordInvalid, match=f"'{missing}': is missing"):
        Record.from_fields(flat({name: value for name, value in MINIMAL.items() if name != missing}))


def test_a_name_without_a_value_is_refused() -> None:
    with pytest.raises(RecordInvalid, match="a value for each name"):
        Record.from_fields([*flat(MINIMAL), b"later"])


def test_a_field_that_is_there_twice_is_refused() -> None:
    with pytest.raises(RecordInvalid, match="'id': is there more than once"):
        Record.from_fields([*flat(MINIMAL), b"id", b"2"])


def test_a_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(RecordInvalid, match="UTF-8"):
        Record.from_fields([*flat(MINIMAL), b"\xff", b"2"])


def test_too_many_fields_are_refused() -> None:
    assert len(read(**{f"f{number}": "" for number in range(MAX_FIELDS - 4)}).extra) == MAX_FIELDS - 4
    with pytest.raises(RecordInvalid, match=f"at most {MAX_FIELDS}"):
        read(**{f"f{number}": "" for number in range(MAX_FIELDS - 3)})


def test_unknown_fields_are_kept_up_to_their_limit() -> None:
    assert read(later="x" * (MAX_UNKNOWN_BYTES - 5)).extra
    with pytest.raises(RecordInvalid, match=f"at most {MAX_UNKNOWN_BYTES} bytes") as caught:
        read(later="x" * (MAX_UNKNOWN_BYTES - 4))
    assert caught.value.field == "later"


def test_a_payload_of_one_mebibyte_goes_and_one_byte_more_does_not() -> None:
    largest = b'"' + b"x" * (MAX_PAYLOAD_BYTES - 2) + b'"'
    assert len(read(data=largest).data) == MAX_PAYLOAD_BYTES - 2
    with pytest.raises(RecordInvalid, match=f"has {MAX_PAYLOAD_BYTES + 1} bytes .expected at most 1048576 bytes"):
        read(data=largest + b" ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'a':1}", b'{"a":NaN}', b"[Infinity]", b'"\xff"', b"nul", b"{} {}", b"1e999"]
)
def test_a_payload_that_is_not_json_says_so_when_it_is_looked_at(body: bytes) -> None:
    record = read(data=body)
    with pytest.raises(RecordInvalid, match="'data': is not JSON"):
        _ = record.data


def test_bytes_of_another_content_type_are_given_as_they_are() -> None:
    assert read(data=b"\x00\xff", content_type="application/octet-stream").data == b"\x00\xff"
    assert read(data=b"[1]", content_type="application/json").data == [1]


# Compression.

BODY = b'{"log":"' + bytes(range(97, 123)) * 400 + b'"}'


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
def test_s150_a_compressed_payload_is_read_like_any_other(encoding: str) -> None:
    record = read(data=compress(BODY, encoding), encoding=encoding)
    assert len(record.raw) < len(BODY) / 10
    assert record.body == BODY
    assert record.data["log"].startswith("abc")


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
@pytest.mark.parametrize("more", [1, 2, 300, 20 * MAX_PAYLOAD_BYTES])
def test_a_bomb_is_refused_before_it_unfolds(encoding: str, more: int) -> None:
    fits = b"\0" * MAX_PAYLOAD_BYTES
    assert decompress(compress(fits, encoding), encoding) == fits
    bomb = compress(fits + b"\0" * more, encoding)
    assert len(bomb) < MAX_PAYLOAD_BYTES
    with pytest.raises(RecordInvalid, match=r"'data': unfolds to more than allowed \(expected at most 1048576 bytes"):
        _ = read(data=bomb, encoding=encoding).data


def test_a_bomb_that_does_not_tell_its_size_is_refused() -> None:
    quiet = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bomb = quiet.compress(b"\0" * (MAX_PAYLOAD_BYTES + 1)) + quiet.flush()
    with pytest.raises(RecordInvalid, match="'data'"):
        decompress(bomb, "zstd")
    small = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    assert decompress(small.compress(b"[1]") + small.flush(), "zstd") == b"[1]"


def test_a_frame_that_wants_much_memory_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    worker = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    with pytest.raises(RecordInvalid, match="too much memory"):
        decompress(worker.compress(b"[1]") + worker.flush(), "zstd")


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
def test_a_cut_or_damaged_payload_is_refused(encoding: str) -> None:
    whole = compress(BODY, encoding)
    for broken in (whole[:-1], whole[: len(whole) // 2], whole + b"!", b"", b"not compressed"):
        with pytest.raises(RecordInvalid, match="'data'"):
            decompress(broken, encoding)


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(RecordInvalid, match=r"'encoding': 'lzma' is unknown \(expected zlib or zstd"):
        _ = read(data=zlib.compress(b"{}"), encoding="lzma").data
    with pytest.raises(RecordInvalid, match="'encoding'"):
        compress(b"{}", "lzma")


# Deadlines.


def test_a_deadline_of_this_boot_is_judged_by_the_boot_clock() -> None:
    now = boot_clock_ns()
    assert not read(deadline=now + HOUR, boot_id=BOOT_ID).expired(now)
    assert read(deadline=now, boot_id=BOOT_ID).expired(now)
    assert read(deadline=now - 1, boot_id=BOOT_ID).expired(now)


def test_a_record_without_a_deadline_never_expires() -> None:
    assert not read().expired(2**62)
    assert not read(boot_id="000000000000").expired(2**62)


def test_a_deadline_of_another_boot_has_passed() -> None:
    other = "f" * 12 if BOOT_ID != "f" * 12 else "0" * 12
    assert read(deadline=boot_clock_ns() + HOUR, boot_id=other).expired(0)


def test_a_deadline_that_nobody_translated_has_passed() -> None:
    assert read(deadline=boot_clock_ns() + HOUR).expired(0)


def test_the_kernels_full_boot_id_means_the_same_boot() -> None:
    spelled = f"{BOOT_ID[:8]}-{BOOT_ID[8:]}-4abc-8def-0123456789ab"
    assert not read(deadline=boot_clock_ns() + HOUR, boot_id=spelled).expired(0)
    assert not read(deadline=boot_clock_ns() + HOUR, boot_id=spelled.upper()).expired(0)


# Ids.


def test_i2_new_ids_are_ids_and_never_the_same() -> None:
    made = [new_id() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert read(id=made[0]).id == made[0]
