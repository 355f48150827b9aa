"""``.tlog`` files: ours read by pymavlink, pymavlink's read by us, damage survived."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pymavlink import mavutil
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.files.tlog import TlogError, TlogWriter, read_tlog
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame

DIALECT = load_dialect()
START = 1_760_000_000_000_000
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def frames(number: int, *, version: int = 2) -> list[Frame]:
    packer = Packer(DIALECT, system=1, component=1, version=version)
    made = []
    for index in range(number):
        if index % 3:
            message = DIALECT.message("ATTITUDE", time_boot_ms=index, roll=index / 7)
        else:
            message = DIALECT.message("STATUSTEXT", severity=6, text=f"number {index}")
        made.append(Frame.from_raw(packer.pack(message)))
    return made


def entries(number: int, **options: Any) -> list[tuple[int, Frame]]:
    return [(START + index * 20_000, frame) for index, frame in enumerate(frames(number, **options))]


def packed(some: list[tuple[int, Frame]]) -> list[bytes]:
    return [struct.pack(">Q", at) + frame.raw for at, frame in some]


@pytest.mark.parametrize("version", [1, 2])
def test_pymavlink_reads_ours(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ours.tlog"
    written = entries(200, version=version)
    with TlogWriter(path) as tlog:
        assert tlog.write(written[:1]) == 1
        assert tlog.write(written[1:]) == 199
    assert tlog.lost == 0
    assert tlog.written == path.stat().st_size
    reader: Any = mavutil.mavlink_connection(str(path))
    read = []
    while (message := reader.recv_msg()) is not None:
        read.append((round(message._timestamp * 1e6), bytes(message.get_msgbuf())))
    reader.close()
    assert read == [(at, frame.raw) for at, frame in written]
    assert list(read_tlog(path)) == written


def test_we_read_pymavlinks(tmp_path: Path) -> None:
    path = tmp_path / "theirs.tlog"
    with path.open("wb") as file:
        mav = mavlink.MAVLink(file, srcSystem=3, srcComponent=1)
        for index in range(50):
            file.write(struct.pack(">Q", START + index))
            mav.attitude_send(index, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0)
    read = list(read_tlog(path, block=300))
    assert [at for at, _ in read] == [START + index for index in range(50)]
    assert [DIALECT.fields(frame)["time_boot_ms"] for _, frame in read] == list(range(50))
    assert {frame.sysid for _, frame in read} == {3}


def test_a_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.tlog"
    some = entries(30)
    for part in (some[:10], some[10:]):
        with TlogWriter(path) as tlog:
            tlog.write(part)
    assert list(read_tlog(path)) == some


def test_messages_that_the_dialect_does_not_know_and_clocks_of_1970(tmp_path: Path) -> None:
    path = tmp_path / "a.tlog"
    unknown = [
        Frame.from_raw(build_frame(70_000, bytes([index, 9]), crc_extra=77, sysid=1, compid=1, seq=index))
        for index in range(5)
    ]
    some = [(index, frame) for index, frame in enumerate(unknown + frames(5))]
    path.write_bytes(b"".join(packed(some)))
    assert list(read_tlog(path)) == some


@FEW
@given(number=st.integers(1, 12), cut=st.integers(0, 1000), block=st.integers(1, 700))
def test_a_cut_end(tmp_path: Path, number: int, cut: int, block: int) -> None:
    path = tmp_path / "cut.tlog"
    some = entries(number)
    parts = packed(some)
    data = b"".join(parts)[: max(0, sum(map(len, parts)) - cut)]
    path.write_bytes(data)
    whole = next(count for count in range(number, -1, -1) if sum(map(len, parts[:count])) <= len(data))
    assert list(read_tlog(path, block=block)) == some[:whole]


@FEW
@given(
    number=st.integers(2, 12),
    garbage=st.one_of(st.binary(max_size=600), st.lists(st.sampled_from([0xFD, 0xFE]), max_size=60).map(bytes)),
    where=st.integers(0, 12),
    block=st.integers(1, 700),
)
def test_garbage_between_entries_costs_none(
    tmp_path: Path, number: int, garbage: bytes, where: int, block: int
) -> None:
    path = tmp_path / "garbage.tlog"
    some = entries(number)
    parts = packed(some)
    parts.insert(where % (number + 1), garbage)
    path.write_bytes(b"".join(parts))
    assert list(read_tlog(path, block=block)) == some


@FEW
@given(number=st.integers(3, 12), where=st.integers(0, 12), begin=st.integers(0, 60), length=st.integers(1, 200))
@example(number=3, where=0, begin=9, length=29)
def test_a_stretch_that_is_missing_costs_what_it_touched(
    tmp_path: Path, number: int, where: int, begin: int, length: int
) -> None:
    """Frames that are whole come out, with their times where those are whole, too.

    The two ends of the hole may make a whole frame by themselves, where what is missing repeats itself.
    """
    path = tmp_path / "hole.tlog"
    some = entries(number)
    data = b"".join(packed(some))
    start = min(sum(map(len, packed(some)[: where % number])) + begin, len(data))
    left = data[:start] + data[start + length :]
    path.write_bytes(left)
    expected: list[tuple[int | None, Frame]] = []
    offset = 0
    for at, frame in some:
        end = offset + 8 + len(frame.raw)
        if end <= start or offset >= start + length:
            expected.append((at, frame))
        elif offset + 8 >= start + length:
            expected.append((None, frame))  # a part of its time is missing
        offset = end
    read = list(read_tlog(path))
    if len(read) == len(expected) + 1:
        made = next(place for place, (_, frame) in enumerate([*expected, (0, None)]) if frame != read[place][1])
        raw = read[made][1].raw
        assert raw in left[max(0, start - len(raw)) : start + len(raw)], "it was made at the hole"
        del read[made]
    assert [frame for _, frame in read] == [frame for _, frame in expected]
    for (at, _), (true, _) in zip(read, expected, strict=True):
        assert true in (None, at)


@FEW
@given(data=st.binary(max_size=2000))
def test_anything_at_all_is_read_to_its_end(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.tlog"
    path.write_bytes(data)
    assert all(frame.raw in data for _, frame in read_tlog(path, block=1))


def test_what_cannot_be_taken_is_counted(tmp_path: Path) -> None:
    some = entries(100)
    tlog = TlogWriter(tmp_path / "a.tlog", most_waiting=500)
    began = time.monotonic()
    taken = tlog.write(some)
    assert time.monotonic() - began < 1.0
    assert 0 < taken < 100
    assert tlog.lost == 100 - taken
    tlog.close()
    tlog.close()
    assert tlog.write(some[:1]) == 0
    assert tlog.lost == 101 - taken
    assert list(read_tlog(tmp_path / "a.tlog")) == some[:taken]


def test_a_full_disk_is_told() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    tlog = TlogWriter(full)
    assert tlog.write(entries(10)) == 10
    with pytest.raises(TlogError, match=r"/dev/full.*10 frames are not in it") as caught:
        tlog.close()
    assert caught.value.detail == {"lost": 10}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TlogWriter(tmp_path / "no" / "a.tlog")
    with pytest.raises(FileNotFoundError):
        next(read_tlog(tmp_path / "none.tlog"))
