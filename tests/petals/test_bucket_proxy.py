"""The bucket proxy against a real S3 server, and a session token service over HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from petalbus.handlers.bucket import store as store_module
from petalbus.handlers.bucket.errors import Denied, FileRefused
from petalbus.handlers.bucket.files import BAG_MAGIC, DOCUMENTED_ULOG_MAGIC, ULOG_MAGIC, check_file, check_head
from petalbus.handlers.bucket.names import checked_key, make_key, names_machine
from petalbus.petals.proxies.bucket import S3BucketProxy

from support.s3_world import KEYS, RealS3, TokenService, free_port

ULOG = ULOG_MAGIC + b"\x01" + bytes(100)


@pytest.fixture
async def tokens() -> AsyncIterator[tuple[TokenService, str]]:
    async with TokenService() as service:
        yield service, service.url


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """A real S3 server's URL and the folder of its one bucket."""
    async with RealS3(tmp_path) as server:
        yield server.url, server.files


@pytest.fixture
async def proxy(s3: tuple[str, Path], tokens: tuple[TokenService, str]) -> AsyncIterator[S3BucketProxy]:
    made = S3BucketProxy(tokens[1], "logs", endpoint=s3[0], machine_id="m1")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def flight(tmp_path: Path) -> Path:
    path = tmp_path / "flight.ulg"
    path.write_bytes(ULOG)
    return path


async def test_upload_list_download_delete(proxy: S3BucketProxy, flight: Path, tmp_path: Path) -> None:
    """S-063, S-067, S-068, S-069, C-24: the way of a log there and back; both sets of result names."""
    up = await proxy.upload_file(flight)
    assert up["success"], up
    assert up["s3_key"].startswith("m1/flight-logs/")
    assert up["s3_key"].endswith("_flight.ulg")
    assert up["url"] == up["file_url"]
    listed = await proxy.list_files()
    assert [(one["key"], one["size"]) for one in listed["files"]] == [(up["s3_key"], len(ULOG))]
    assert listed["objects"] == listed["files"]
    down = await proxy.download_file(up["s3_key"], tmp_path / "back" / "flight.ulg")
    assert down["success"]
    assert (tmp_path / "back" / "flight.ulg").read_bytes() == ULOG
    head = await proxy.head_object(up["s3_key"])
    assert (head["exists"], head["size"]) == (True, len(ULOG))
    assert (await proxy.delete_file(s3_key=up["s3_key"]))["success"]
    gone = await proxy.head_object(up["s3_key"])
    assert gone == {"error": f"File not found: {up['s3_key']}", "status": 404, "success": False}


async def test_names_and_keys_of_ones_own(proxy: S3BucketProxy, flight: Path) -> None:
    """S-064, S-065, S-070, S-071, C-25: another file name, another key, our own machine id."""
    renamed = await proxy.upload_file(file_path=flight, custom_filename="renamed.ulg", machine_id="m1")
    assert renamed["s3_key"].endswith("_renamed.ulg")
    free = await proxy.upload_file(flight, custom_s3_key="flights/2026/01/07/flight_001.ulg")
    assert free["s3_key"] == "flights/2026/01/07/flight_001.ulg"
    other = await proxy.upload_file(flight, machine_id="m2")
    assert (other["status"], other["success"]) == (403, False)
    assert other["error"].startswith("Access denied")


async def test_moving(proxy: S3BucketProxy, flight: Path) -> None:
    """S-066, S-072: by position and by name; a move of all below a prefix."""
    await proxy.upload_file(flight, custom_s3_key="uploads/a.ulg")
    await proxy.upload_file(flight, custom_s3_key="uploads/b.ulg")
    for one in (await proxy.list_objects(prefix="uploads/"))["objects"]:
        assert (await proxy.move_file(one["key"], one["key"].replace("uploads", "archive")))["success"]
    assert (await proxy.list_objects(prefix="uploads/"))["objects"] == []
    assert [one["key"] for one in (await proxy.list_objects(prefix="archive/"))["objects"]] == [
        "archive/a.ulg",
        "archive/b.ulg",
    ]
    missing = await proxy.move_file(source_key="m1/none.ulg", dest_key="m1/new.ulg")
    assert missing["status"] == 404


async def test_each_machine_sees_only_its_own(
    proxy: S3BucketProxy, s3: tuple[str, Path], tokens: tuple[TokenService, str], flight: Path, tmp_path: Path
) -> None:
    """S-247, S-272, C-23: on every call, also for keys that name no machine, and for tricks in keys."""
    other = S3BucketProxy(tokens[1], "logs", endpoint=s3[0], machine_id="m2")
    await other.start()
    theirs = (await other.upload_file(flight))["s3_key"]
    await other.upload_file(flight, custom_s3_key="flights/x.ulg")
    for key in (theirs, "flights/x.ulg", "m1/../m2/x.ulg", "m1//x.ulg", "m1/%2e%2e/m2/x.ulg", "M1/x.ulg", "/m1/x.ulg"):
        for call in (
            proxy.delete_file(key),
            proxy.head_object(key),
            proxy.download_file(key, tmp_path / "stolen.ulg"),
            proxy.move_file(key, "m1/mine.ulg"),
        ):
            answer = await call
            assert (answer["status"], answer["error"][:13]) == (403, "Access denied"), (key, answer)
    assert not (tmp_path / "stolen.ulg").exists()
    assert (await proxy.upload_file(flight, custom_s3_key="flights/x.ulg"))["status"] == 403
    assert (await proxy.list_files(prefix=""))["files"] == []
    assert (await proxy.list_files(machine_id="m2"))["status"] == 403
    assert (await other.head_object(theirs))["success"]
    await other.stop()


async def test_a_large_log_is_stored_in_parts(
    proxy: S3BucketProxy, s3: tuple[str, Path], flight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes arrive; one that changes meanwhile is refused and leaves nothing behind."""
    monkeypatch.setattr(store_module, "PART_BYTES", 5 * 1024 * 1024)
    content = ULOG + os.urandom(11 * 1024 * 1024)
    flight.write_bytes(content)
    up = await proxy.upload_file(flight, custom_s3_key="m1/large.ulg")
    assert up["success"], up
    assert (s3[1] / "m1" / "large.ulg").read_bytes() == content


async def test_credentials_are_fetched_once_and_never_shown(
    s3: tuple[str, Path], tokens: tuple[TokenService, str], flight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S-246, S-250, S-258, S-260: nothing is asked before the first call; parallel calls ask once."""
    service, url = tokens
    proxy = S3BucketProxy(session_token_url=url, bucket_name="logs", region="eu", endpoint=s3[0], machine_id="m1")
    await proxy.start()
    assert service.asked == 0
    answers = await asyncio.gather(*(proxy.upload_file(flight) for _ in range(5)))
    assert all(answer["success"] for answer in answers)
    assert service.asked == 1
    await proxy.stop()
    service.status = 500
    second = S3BucketProxy(url, "logs", endpoint=s3[0], machine_id="m1")
    await second.start()
    refused = await second.upload_file(flight)
    assert (refused["status"], refused["error"][:21]) == (403, "Authentication failed")
    service.status, service.answer = 200, {"accessKeyId": KEYS[0], "secretAccessKey": "wrong", "sessionToken": "token"}
    await second.stop()
    third = S3BucketProxy(url, "logs", endpoint=s3[0], machine_id="m1")
    await third.start()
    assert (await third.upload_file(flight))["status"] == 403
    await third.stop()
    assert KEYS[1] not in caplog.text


async def test_what_is_away_or_not_configured_is_told(tokens: tuple[TokenService, str], flight: Path) -> None:
    """S-268, S-271: the one error shape; the proxy says why it is not ready."""
    bare = S3BucketProxy("", "")
    await bare.start()
    assert not bare.is_ready
    assert "s3_bucket_name" in bare.reason
    assert (await bare.upload_file(flight))["status"] == 503
    gone = S3BucketProxy(
        tokens[1], "logs", endpoint=f"http://127.0.0.1:{free_port()}", machine_id="m1", request_timeout=1
    )
    await gone.start()
    assert gone.is_ready
    assert (await gone.upload_file(flight))["status"] == 503
    await gone.stop()
    nameless = S3BucketProxy(tokens[1], "logs")
    await nameless.start()
    assert "machine id" in (await nameless.upload_file(flight))["error"]
    await nameless.stop()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", ULOG, "Invalid file extension. Only .bag, .ulg files are allowed"),
        ("a.ulg", b"", "File validation failed: File is empty"),
        ("a.ulg", b"\x00" * 20, "File validation failed: Invalid ULog header (magic/version mismatch)"),
        ("a.ulg", DOCUMENTED_ULOG_MAGIC, "File validation failed: Invalid ULog header (magic/version mismatch)"),
        ("a.bag", b"x" * 20, "File validation failed: Invalid ROS bag header"),
    ],
)
def test_only_flight_logs_are_taken(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """S-248, S-249, S-251, S-261, S-262, S-263, S-269, S-270, S-279, C-21: before anything is sent."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileRefused) as refused:
        check_file(path)
    assert str(refused.value) == says


def test_real_logs_are_taken(tmp_path: Path) -> None:
    """S-248, S-249: any case of the extension; the documented magic only where asked for; too large is refused."""
    for name, content in (("a.ULG", ULOG), ("b.Bag", BAG_MAGIC + b" V2.0\n")):
        (tmp_path / name).write_bytes(content)
        assert check_file(tmp_path / name).size == len(content)
    check_head(".ulg", DOCUMENTED_ULOG_MAGIC, accept_documented=True)
    with (tmp_path / "huge.ulg").open("wb") as huge:
        huge.write(ULOG)
        huge.truncate(2 * 1024**3)
    with pytest.raises(FileRefused, match="too large"):
        check_file(tmp_path / "huge.ulg")


def test_keys() -> None:
    """S-252, S-259, C-20: the usual template and the documented one; whose a key is."""
    usual = make_key("{machine}/flight-logs/{stamp}_{uuid}_{name}", machine="m1", name="a.ulg", prefix="flight_logs/")
    documented = make_key("{prefix}/{machine}/{stamp}_{name}", machine="m1", name="a.ulg", prefix="flight_logs/")
    assert documented.startswith("flight_logs/m1/2")
    for key in (usual, documented, "deleted/m1/a.ulg", "deleted/flight_logs/m1/a.ulg", "m1/r1/ulog/a.ulg"):
        assert names_machine(key, "m1", "flight_logs/"), key
    for key in ("m2/a.ulg", "flight_logs/m2/a.ulg", "deleted/m2/a.ulg", "m1", "m1x/a.ulg", "x/m1/a.ulg"):
        assert not names_machine(key, "m1", "flight_logs/"), key
    for key in ("", "a/../b", "a//b", "/a", "a/", "a/%2e%2e/b", "a/%252e%252e/b", "a\\b", "a\x00b", "x" * 1025):
        with pytest.raises(Denied):
            checked_key(key)
