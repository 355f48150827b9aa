"""What is a flight log: a file before it is uploaded, and the same while it comes in pieces."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from petalbus.handlers.bucket.errors import FileRefused
from petalbus.handlers.bucket.files import (
    BAG_MAGIC,
    DOCUMENTED_ULOG_MAGIC,
    MAX_BYTES,
    ULOG_MAGIC,
    ArrivingLog,
    check_file,
    unchanged,
)

from support.procs import ROOT

ULOG = ULOG_MAGIC + b"\x01" + bytes(8)
BAG = BAG_MAGIC + b" V2.0\n" + bytes(50)
DATA = Path(os.environ.get("FLIGHT_LOGS_FOLDER") or ROOT.parent / "shared" / "data")

EXTENSION = "Invalid file extension. Only .bag, .ulg files are allowed"
EMPTY = "File validation failed: File is empty"
NO_ULOG = "File validation failed: Invalid ULog header (magic/version mismatch)"
NO_BAG = "File validation failed: Invalid ROS bag header"

FLAWS = [
    ("flight.txt", ULOG, EXTENSION),
    ("flight", ULOG, EXTENSION),
    (".ulg", ULOG, EXTENSION),
    ("flight.ulg.txt", ULOG, EXTENSION),
    ("flight.ulg ", ULOG, EXTENSION),
    ("flight.ulog", ULOG, EXTENSION),
    ("flight.ulg", b"", EMPTY),
    ("flight.bag", b"", EMPTY),
    ("flight.ulg", BAG, NO_ULOG),
    ("flight.bag", ULOG, NO_BAG),
    ("flight.ulg", ULOG[:15], NO_ULOG),
    ("flight.ulg", ULOG[:7], NO_ULOG),
    ("flight.ulg", b"U", NO_ULOG),
    ("flight.bag", BAG[:6], NO_BAG),
    ("flight.ulg", b"\x00" + ULOG, NO_ULOG),
    ("flight.ulg", DOCUMENTED_ULOG_MAGIC + bytes(20), NO_ULOG),
    ("flight.bag", b"#rosbag V2.0\n" + bytes(20), NO_BAG),
]


def arrive(name: str, content: bytes, step: int, *, size: int | None = None, documented: bool = False) -> bytes:
    """What passes of a log that comes in pieces."""
    log = ArrivingLog(name, size=size, accept_documented=documented)
    passed = b"".join(log.take(content[at : at + step]) for at in range(0, len(content), step))
    return passed + log.end()


@pytest.mark.parametrize(("name", "content", "says"), FLAWS)
def test_flaws_have_their_texts(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """S-248, S-249, S-251, S-261, S-262, S-263, S-269, S-270, S-279, C-21: renamed, cut, empty."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileRefused) as refused:
        check_file(tmp_path / name)
    assert (str(refused.value), refused.value.status) == (says, 400)
    for step in (1, 5, 1 << 20):
        with pytest.raises(FileRefused) as refused:
            arrive(name, content, step)
        assert str(refused.value) == says


@pytest.mark.parametrize("name", ["real_fake_sensors_sample.bag", "sample_appended_multiple.ulg"])
def test_real_logs_pass(name: str, tmp_path: Path) -> None:
    """S-245, S-248, S-249, S-261, S-262: whole, in pieces, by a name in capitals, and cut short."""
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"the recorded logs are not beside this checkout: no {file}")
    content = file.read_bytes()
    found = check_file(file)
    assert (found.size, found.extension) == (len(content), file.suffix)
    assert unchanged(found)
    assert arrive(name, content, 4096) == content
    cut = tmp_path / name.upper()
    cut.write_bytes(content[: len(content) // 2])
    assert check_file(cut).extension == file.suffix


def test_the_documented_magic_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    """S-261, C-21: no real log begins with ``ULogData``."""
    content = DOCUMENTED_ULOG_MAGIC + bytes(20)
    (tmp_path / "a.ulg").write_bytes(content)
    assert check_file(tmp_path / "a.ulg", accept_documented=True).size == len(content)
    assert arrive("a.ulg", content, 3, documented=True) == content


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    """S-251, S-270: links, pipes, folders, sockets and missing files are told, and nothing waits for them."""
    real = tmp_path / "real.ulg"
    real.write_bytes(ULOG)
    (tmp_path / "link.ulg").symlink_to(real)
    (tmp_path / "broken.ulg").symlink_to(tmp_path / "nothing.ulg")
    (tmp_path / "elsewhere.ulg").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.ulg")
    (tmp_path / "folder.ulg").mkdir()
    before = time.monotonic()
    for name, says in (
        ("link.ulg", "is a symbolic link; give the file itself"),
        ("broken.ulg", "is a symbolic link; give the file itself"),
        ("elsewhere.ulg", "is a symbolic link; give the file itself"),
        ("pipe.ulg", "is not a regular file"),
        ("folder.ulg", "is not a regular file"),
        ("missing.ulg", "cannot be read (No such file or directory)"),
    ):
        with pytest.raises(FileRefused) as refused:
            check_file(tmp_path / name)
        assert str(refused.value) == f"File validation failed: {tmp_path / name} {says}"
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(tmp_path / "s.ulg"))
        with pytest.raises(FileRefused, match="cannot be read"):
            check_file(tmp_path / "s.ulg")
    (tmp_path / "way").symlink_to(tmp_path)
    assert check_file(tmp_path / "way" / "real.ulg").size == len(ULOG)  # a folder may be a link
    assert time.monotonic() - before < 10


def test_sizes(tmp_path: Path) -> None:
    """S-263: less than 2 GiB, by the file's size, by what the sender says, and by what comes."""
    for size, fits in ((MAX_BYTES - 1, True), (MAX_BYTES, False), (MAX_BYTES + 1, False)):
        path = tmp_path / "a.ulg"
        with path.open("wb") as file:
            file.write(ULOG)
            file.truncate(size)
        says = f"File validation failed: File is too large ({size} bytes; the limit is {MAX_BYTES})"
        if fits:
            assert check_file(path).size == size
            ArrivingLog("a.ulg", size=size)
            continue
        for call in (lambda: check_file(path), lambda: ArrivingLog("a.ulg", size=size)):  # noqa: B023  # called here
            with pytest.raises(FileRefused) as refused:
                call()
            assert str(refused.value) == says
    log = ArrivingLog("a.ulg")
    log.take(ULOG)
    log.size = MAX_BYTES - 10
    log.take(bytes(9))
    with pytest.raises(FileRefused, match="too large"):
        log.take(b"x")
    with pytest.raises(FileRefused, match="empty"):
        ArrivingLog("a.ulg", size=0)


def test_a_file_that_changes_is_not_the_same(tmp_path: Path) -> None:
    """S-263: by its size, by its time, by becoming a link, by going away."""
    path = tmp_path / "a.ulg"
    path.write_bytes(ULOG)
    found = check_file(path)
    with path.open("ab") as file:
        file.write(b"more")
    assert not unchanged(found)
    found = check_file(path)
    os.utime(path, ns=(1, 1))
    assert not unchanged(found)
    found = check_file(path)
    path.rename(tmp_path / "b.ulg")
    assert not unchanged(found)
    path.symlink_to(tmp_path / "b.ulg")
    assert not unchanged(found)


@settings(max_examples=200, deadline=None)
@given(some.binary(max_size=60), some.integers(1, 20), some.sampled_from(["a.ulg", "a.bag"]))
def test_in_pieces_as_in_one(content: bytes, step: int, name: str) -> None:
    """S-270: however it is cut, what passes is all or nothing."""
    content = (ULOG if name == "a.ulg" else BAG) + content if len(content) % 2 else content

    def outcome(step: int) -> bytes | str:
        try:
            return arrive(name, content, step)
        except FileRefused as error:
            return str(error)

    assert outcome(step) == outcome(max(len(content), 1))
    assert outcome(step) == content or isinstance(outcome(step), str)
