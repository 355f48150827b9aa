"""The endpoints on a real HTTP server, with a real S3 server behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from petalbus.daemon.http import bucket_spool
from petalbus.handlers.bucket.files import BAG_MAGIC, MAX_BYTES
from petalbus.petals.proxies.bucket import running

from .conftest import MACHINE, ULOG, World

BOTH = pytest.mark.parametrize("at", ["/bucket", "/test/bucket"])


@BOTH
async def test_there_and_back(world: World, at: str) -> None:
    """S-245, S-253, S-254, S-255, S-256, S-257, C-22, C-24: each endpoint, under both addresses."""
    up = await world.client.post(f"{at}/upload", files={"file": ("flight.ulg", ULOG)})
    assert up.status_code == 200, up.text
    told = up.json()
    assert {"success", "message", "s3_key", "url", "file_url", "size"} <= set(told)
    assert (told["success"], told["message"], told["size"]) == (True, "File uploaded successfully", len(ULOG))
    assert told["url"] == told["file_url"]
    key = told["s3_key"]
    assert key.startswith(f"{MACHINE}/flight-logs/2")
    assert key.endswith("_flight.ulg")
    assert world.stored(key) == ULOG
    assert world.spooled == []
    head = await world.proxy.head_object(key)
    assert head["metadata"]["original-filename"] == "flight.ulg"

    listed = (await world.client.get(f"{at}/list")).json()
    assert [(one["key"], one["size"]) for one in listed["files"]] == [(key, len(ULOG))]
    assert listed["objects"] == listed["files"]
    assert (listed["success"], listed["total_count"], listed["prefix"]) == (True, 1, f"{MACHINE}/")
    assert (await world.client.get(f"{at}/list", params={"prefix": f"{MACHINE}/none"})).json()["files"] == []

    down = await world.client.get(f"{at}/download/{key}")
    assert (down.status_code, down.content) == (200, ULOG)
    gone = await world.client.delete(f"{at}/delete/{key}")
    assert gone.json() == {"success": True, "message": "File deleted successfully", "s3_key": key}

    info = (await world.client.get(f"{at}/info")).json()
    assert (info["bucket_name"], info["machine_id"], info["region"]) == ("logs", MACHINE, "us-east-1")
    assert (info["allowed_extensions"], info["max_file_size"]) == ([".bag", ".ulg"], MAX_BYTES - 1)
    assert (info["status"], info["upload_prefix"], info["spool"]["waiting"]) == ("ready", "flight_logs/", [])


async def test_what_is_not_there(world: World) -> None:
    """S-268, S-273: 404 "File not found", in both error shapes."""
    for answer in (
        await world.client.get(f"/bucket/download/{MACHINE}/none.ulg"),
        await world.client.delete(f"/bucket/delete/{MACHINE}/none.ulg"),
    ):
        assert answer.status_code == 404
        text = f"File not found: {MACHINE}/none.ulg"
        assert answer.json() == {"detail": text, "error": text, "status": 404, "success": False}


async def test_a_raw_body(world: World) -> None:
    """S-253: with its name in the query or a header, another name, and a key of one's own."""
    bag = BAG_MAGIC + b" V2.0\n" + os.urandom(3 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(bag), 100_000):
            yield bag[at : at + 100_000]

    up = await world.client.post("/bucket/upload?filename=a%20b.BAG&custom_s3_key=flights/2026/x.bag", content=pieces())
    assert up.status_code == 200, up.text
    assert world.stored("flights/2026/x.bag") == bag
    up = await world.client.post("/bucket/upload", content=ULOG, headers={"X-Filename": "C:\\logs\\flight.ulg"})
    assert up.json()["s3_key"].endswith("_flight.ulg")
    up = await world.client.post("/bucket/upload?filename=x.ulg&custom_filename=mission.ulg", content=ULOG)
    assert up.json()["s3_key"].endswith("_mission.ulg")
    form = {"custom_filename": "from-form.ulg"}
    up = await world.client.post("/bucket/upload", data=form, files={"file": ("x.ulg", ULOG)})
    assert up.json()["s3_key"].endswith("_from-form.ulg")
    no_name = await world.client.post("/bucket/upload", content=ULOG)
    assert (no_name.status_code, "?filename=" in no_name.json()["detail"]) == (422, True)


async def test_only_flight_logs_are_taken(world: World) -> None:
    """S-251, S-253, S-263, S-269, S-270: 400 with the known texts, and nothing is left anywhere."""
    for name, content, says in (
        ("a.txt", ULOG, "Invalid file extension. Only .bag, .ulg files are allowed"),
        ("a.ulg", b"", "File validation failed: File is empty"),
        ("a.ulg", b"x" * 100, "File validation failed: Invalid ULog header (magic/version mismatch)"),
        ("a.bag", ULOG, "File validation failed: Invalid ROS bag header"),
    ):
        for answer in (
            await world.client.post("/bucket/upload", files={"file": (name, content)}),
            await world.client.post(f"/bucket/upload?filename={name}", content=content),
        ):
            assert (answer.status_code, answer.json()["detail"], answer.json()["error"]) == (400, says, says)
    assert world.spooled == []
    assert not list(world.s3.files.rglob("*"))


async def test_the_first_bytes_decide_before_the_rest_comes(world: World) -> None:
    """S-251, S-263, S-270: what is no log, is too large or may not be stored is refused while it is being sent."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield b"no log " * 10_000
            sent += 70_000
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20):
        with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            answer = await world.client.post("/bucket/upload?filename=a.ulg", content=endless())
            assert answer.status_code == 400
    assert sent < 64 << 20
    assert world.spooled == []
    reader, writer = await asyncio.open_connection(world.client.base_url.host, world.client.base_url.port)
    head = f"POST /bucket/upload?filename=a.ulg HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BYTES}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(10):
        said = await reader.readuntil(b"}")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert f"File is too large ({MAX_BYTES} bytes; the limit is {MAX_BYTES})".encode() in said
    writer.close()


async def test_broken_uploads_leave_nothing(world: World) -> None:
    """S-253: forms that are none, have no file, or end early; a client that goes away in the middle."""
    kind = "multipart/form-data"
    two = [("file", ("a.ulg", ULOG)), ("file", ("b.ulg", ULOG))]
    for status, options in (
        (400, {"content": b"x", "headers": {"content-type": kind}}),
        (400, {"content": b"x", "headers": {"content-type": f"{kind}; boundary=b"}}),
        (400, {"content": b"--b\r\n", "headers": {"content-type": f"{kind}; boundary=b"}}),
        (422, {"files": {"other": ("a.ulg", ULOG)}}),
        (422, {"files": {"file": ("", ULOG)}}),
        (400, {"files": two}),
        (400, {"files": {"file": ("x" * 300 + ".ulg", ULOG)}}),
        (400, {"data": {"note": "x" * 5000}, "files": {"file": ("a.ulg", ULOG)}}),
        (403, {"files": {"file": ("a\nb.ulg", ULOG)}}),
    ):
        answer = await world.client.post("/bucket/upload", **options)  # type: ignore[arg-type]  # options of one call
        assert answer.status_code == status, (options, answer.text)
        assert {"detail", "error", "status"} <= set(answer.json())
    _, writer = await asyncio.open_connection(world.client.base_url.host, world.client.base_url.port)
    writer.write(b"POST /bucket/upload?filename=a.ulg HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n")
    writer.write(ULOG + bytes(2 << 20))
    await writer.drain()
    async with asyncio.timeout(10):
        while not world.spooled:
            await asyncio.sleep(0.01)
        writer.close()
        while world.spooled:
            await asyncio.sleep(0.01)
    assert not [path for path in world.s3.files.rglob("*") if path.is_file()]


RANGES = [
    ("bytes=0-9", 206, 0, 9),
    ("bytes=10-", 206, 10, 207),
    ("bytes=-8", 206, 200, 207),
    ("bytes=-9999", 206, 0, 207),
    ("bytes=200-9999", 206, 200, 207),
    ("Bytes = 0-0", 206, 0, 0),
    ("bytes=208-", 416, 0, 0),
    ("bytes=-0", 416, 0, 0),
    ("bytes=5-2", 200, 0, 207),
    ("bytes=0-1,4-5", 200, 0, 207),
    ("lines=0-1", 200, 0, 207),
]


async def test_ranges(world: World) -> None:
    """S-255: one range is answered with its bytes; what cannot be, as RFC 9110 says."""
    await world.proxy.upload_file(world.log(), custom_s3_key=f"{MACHINE}/r.ulg")
    address = f"/bucket/download/{MACHINE}/r.ulg"
    for asked, status, first, last in RANGES:
        answer = await world.client.get(address, headers={"Range": asked})
        head = await world.client.head(address, headers={"Range": asked})
        assert (answer.status_code, head.status_code) == (status, status), asked
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{len(ULOG)}"
            assert answer.json()["status"] == 416
            continue
        assert answer.content == ULOG[first : last + 1], asked
        assert answer.headers["content-length"] == head.headers["content-length"] == str(last + 1 - first)
        part = f"bytes {first}-{last}/{len(ULOG)}" if status == 206 else None
        assert answer.headers.get("content-range") == part


async def test_heads_and_conditions(world: World) -> None:
    """S-255: HEAD says what GET would; an object that is known already is not sent again."""
    await world.proxy.upload_file(world.log(), custom_s3_key=f"{MACHINE}/r t\u00e9.ulg")
    address = f"/bucket/download/{MACHINE}/r%20t%C3%A9.ulg"
    head, got = await world.client.head(address), await world.client.get(address)
    assert head.content == b""
    assert {**head.headers, "date": "", "x-request-id": ""} == {**got.headers, "date": "", "x-request-id": ""}
    assert head.headers["content-type"] == "application/x-ulog"
    assert head.headers["content-disposition"] == "attachment; filename*=UTF-8''r%20t%C3%A9.ulg"
    assert (head.headers["accept-ranges"], head.headers["last-modified"][-3:]) == ("bytes", "GMT")
    etag = head.headers["etag"]
    assert (await world.client.get(address, headers={"If-None-Match": f'"x", W/{etag}'})).status_code == 304
    assert (await world.client.get(address, headers={"If-None-Match": '"x"'})).status_code == 200
    for tag, status in ((etag, 206), ('"old"', 200)):
        answer = await world.client.get(address, headers={"Range": "bytes=0-1", "If-Range": tag})
        assert answer.status_code == status


async def test_large_logs_go_through_in_pieces(world: World) -> None:
    """S-245, S-253, S-255: in parts to the store and in pieces back; the same bytes."""
    content = ULOG + os.urandom(20 << 20)
    up = await world.client.post("/bucket/upload", files={"file": ("large.ulg", content)})
    assert up.status_code == 200, up.text
    assert (await world.client.get(f"/bucket/download/{up.json()['s3_key']}")).content == content


async def test_without_a_bucket(world: World) -> None:
    """S-268, S-271: 503 with the reason on every endpoint; credentials that are refused are told as such."""
    bare = world.made(MACHINE, endpoint=None)
    bare.bucket_name = ""
    await bare.start()
    world.present = bare
    for says in ("not configured: s3_bucket_name", "no bucket proxy runs in this process"):
        for method, address in (
            ("GET", "list"),
            ("GET", "download/a.ulg"),
            ("DELETE", "delete/a.ulg"),
            ("POST", "upload?filename=a.ulg"),
        ):
            answer = await world.client.request(method, f"/bucket/{address}", content=ULOG)
            assert (answer.status_code, says in answer.json()["detail"]) == (503, True), answer.text
        info = await world.client.get("/bucket/info")
        assert says in info.text
        world.present = None
    assert info.status_code == 503
    world.present = refused = world.made(MACHINE)
    world.tokens.status = 403
    await refused.start()
    answer = await world.client.get("/bucket/list")
    assert (answer.status_code, answer.json()["error"][:21]) == (403, "Authentication failed")
    await refused.stop()


async def test_the_disk_and_the_room_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are refused before there is no room: 507, and nothing of them is left."""
    world.spool._limit = 1000
    answer = await world.client.post("/bucket/upload?filename=a.ulg", content=ULOG + bytes(1000))
    assert (answer.status_code, "wait for the store here" in answer.json()["detail"]) == (507, True)
    world.spool._limit = 1 << 30
    monkeypatch.setattr(bucket_spool, "_LEFT_FREE", 1 << 60)
    answer = await world.client.post("/bucket/upload?filename=a.ulg", content=ULOG)
    assert (answer.status_code, "bytes free" in answer.json()["detail"]) == (507, True)
    assert world.spooled == []


async def test_what_waited_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart: what came whole is stored, what did not is deleted; what fails is kept while there is room."""
    monkeypatch.setattr(bucket_spool, "_AGAIN_S", 0.05)
    folder = world.folder / "spool"
    for name, whole in (("whole", True), ("half", False)):
        (folder / name / "log").mkdir(parents=True)
        (folder / name / "log" / f"{name}.ulg").write_bytes(ULOG)
        if whole:
            (folder / name / "upload.json").write_text('{"custom_filename": "", "custom_s3_key": "flights/whole.ulg"}')
    world.tokens.status = 403
    refused = world.made(MACHINE)
    await refused.start()
    async with asyncio.timeout(20):
        await world.spool.resume(refused)
        while not (waiting := world.spool.describe()["waiting"]) or waiting[0]["error"] is None:
            await asyncio.sleep(0.01)
        assert (waiting[0]["upload_id"], waiting[0]["error"][:21]) == ("whole", "Authentication failed")
        assert [path.name for path in world.spooled if path.suffix == ".ulg"] == ["whole.ulg"]
        await world.spool.close()
        world.tokens.status = 200
        await world.spool.resume(world.proxy)
        while world.spooled:
            await asyncio.sleep(0.01)
    assert world.stored("flights/whole.ulg") == ULOG
    assert world.spool.describe()["waiting"] == []
    await refused.stop()


async def test_in_an_app_of_somebodys_own(world: World, tmp_path: Path) -> None:
    """S-275, S-276: the documented integration; a logger without a handler is one."""
    from petal_app_manager.api import bucket_api  # as programs do

    logger = logging.getLogger("somebody")
    logger.handlers.clear()
    logger.propagate = False
    bucket_api._set_logger(logger)
    bucket_api._set_logger(logging.Logger("bare"))  # noqa: LOG001  # one that nobody has set up
    app = FastAPI()
    app.include_router(bucket_api.router, prefix="/bucket")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        assert running.latest() is world.other  # it was started last
        assert (await client.get("/bucket/info")).json()["machine_id"] == "machine-10"
        app.state.proxies = {"bucket": world.proxy}
        assert (await client.get("/bucket/info")).json()["machine_id"] == MACHINE
        up = await client.post("/bucket/upload", files={"file": ("flight.ulg", ULOG)})
        assert up.status_code == 200, up.text
        assert (await client.get(f"/bucket/download/{up.json()['s3_key']}")).content == ULOG
        refused = await client.delete("/bucket/delete/machine-10/x.ulg")
        assert (refused.status_code, refused.json()["error"][:13]) == (403, "Access denied")
        app.state.proxies = {}
        await world.other.stop()
        await world.proxy.stop()
        assert (await client.get("/bucket/info")).status_code == 503
        assert "/bucket/download/{s3_key}" in (await client.get("/openapi.json")).json()["paths"]
