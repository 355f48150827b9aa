"""What the store sees and does: permissions, connections that break, objects that change; and the daemon as it runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from bucket.wire import Exchange, Wire, answer
from cli.conftest import Buses, Daemon
from petalbus.handlers.bucket import store as store_module

from .conftest import MACHINE, ULOG, World
from support.s3_world import RealS3, TokenService

GRANTED = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}


def action(method: str, target: str) -> str:
    """Which permission a request needs."""
    asked = parse_qs(urlsplit(target).query, keep_blank_values=True)
    if urlsplit(target).path.strip("/") == "logs":
        return "s3:ListBucketMultipartUploads" if "uploads" in asked else "s3:ListBucket"
    if method in ("GET", "HEAD"):
        return "s3:ListMultipartUploadParts" if "uploadId" in asked else "s3:GetObject"
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in asked else "s3:DeleteObject"
    return "s3:PutObject"


async def test_four_permissions_are_enough(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """S-278: whatever the proxy is asked for, also a log in parts and a move."""
    monkeypatch.setattr(store_module, "PART_BYTES", 5 << 20)
    async with Wire(world.s3.url) as wire:
        proxy = world.made(MACHINE, endpoint=wire.url)
        await proxy.start()
        small = await proxy.upload_file(world.log())
        large = await proxy.upload_file(world.log("large.ulg", ULOG + os.urandom(6 << 20)))
        free = await proxy.upload_file(world.log(), custom_s3_key="flights/a.ulg")
        for told in (
            small,
            large,
            free,
            await proxy.list_files(),
            await proxy.list_objects("flights/"),
            await proxy.head_object(small["s3_key"]),
            await proxy.download_file(small["s3_key"], tmp_path / "back.ulg"),
            await proxy.move_file(small["s3_key"], f"deleted/{small['s3_key']}"),
            await proxy.delete_file(large["s3_key"]),
        ):
            assert told["success"], told
        assert {action(*one) for one in wire.requests} == GRANTED
        await proxy.stop()


async def test_a_download_goes_on_where_it_broke(world: World) -> None:
    """S-255, S-267: from the byte that was missing; where the store stays away, the answer ends early and says so."""
    content = ULOG + os.urandom(1 << 20)
    await world.proxy.upload_file(world.log("l.ulg", content), custom_s3_key=f"{MACHINE}/l.ulg")

    async def cut(exchange: Exchange) -> bytes:
        return (await exchange.forward())[:400_000]

    async with Wire(world.s3.url) as wire:
        world.present = proxy = world.made(MACHINE, endpoint=wire.url)
        await proxy.start()
        rule = wire.rule("GET", "l.ulg", cut, times=2)
        got = await world.client.get(f"/bucket/download/{MACHINE}/l.ulg")
        assert (got.content == content, rule.hits) == (True, 2)
        wire.rule("GET", "l.ulg", cut)
        wire.rule("GET", "l.ulg", answer(403, "AccessDenied"), times=100)
        with pytest.raises(httpx.RemoteProtocolError):
            await world.client.get(f"/bucket/download/{MACHINE}/l.ulg")
        refused = await world.client.get(f"/bucket/download/{MACHINE}/l.ulg")
        assert (refused.status_code, refused.json()["error"][:13]) == (403, "Access denied")
        await proxy.stop()


async def test_an_object_that_changes_is_not_mixed(world: World) -> None:
    """S-255: what was looked at and what comes must be the same object."""
    await world.proxy.upload_file(world.log(), custom_s3_key=f"{MACHINE}/c.ulg")

    async def replaced(exchange: Exchange) -> bytes:
        return (await exchange.forward()).replace(b'Etag: "', b'Etag: "0').replace(b'ETag: "', b'ETag: "0')

    async with Wire(world.s3.url) as wire:
        world.present = proxy = world.made(MACHINE, endpoint=wire.url)
        await proxy.start()
        wire.rule("GET", "c.ulg", replaced)
        told = await world.client.get(f"/bucket/download/{MACHINE}/c.ulg")
        assert (told.status_code, "was replaced" in told.json()["error"]) == (502, True)
        assert (await world.client.get(f"/bucket/download/{MACHINE}/c.ulg")).content == ULOG
        await proxy.stop()


@pytest.fixture
def buses() -> Iterator[Buses]:
    """Starts daemons; none survives the test."""
    started = Buses()
    yield started
    started.close()


async def up(buses: Buses, endpoint: str, tokens: str, data: Path | None = None) -> tuple[Daemon, str]:
    """A daemon with a bucket, by the names of existing installations; the address at which it answers."""
    words: dict[str, Any] = {"SESSION_TOKEN_URL": tokens, "S3_BUCKET_NAME": "logs", "AWS_REGION": "eu-central-1"}
    options = ("http_port=0", f"s3_endpoint={endpoint}", "machine_id=drone-7", "mqtt_transport=off")
    started = buses.up(*(word for option in options for word in ("--set", option)), data=data, **words)
    await asyncio.to_thread(started.event, "ready")
    return started, (await asyncio.to_thread(started.event, "http_ready"))["url"]


async def until(client: httpx.AsyncClient, address: str, wanted: Any, seconds: float = 30) -> dict[str, Any]:
    """Ask until the answer is as wanted."""
    end = time.monotonic() + seconds
    while True:
        told: dict[str, Any] = (await client.get(address)).json()
        if wanted(told):
            return told
        assert time.monotonic() < end, told
        await asyncio.sleep(0.05)


async def test_a_log_that_came_while_we_were_offline_is_stored_later(buses: Buses, tmp_path: Path) -> None:
    """S-253, S-257, S-277, S-280, C-22: taken at once, over a killed daemon, and gone from the disk when stored."""
    async with (
        RealS3(tmp_path) as s3,
        TokenService() as tokens,
        Wire(s3.url) as wire,
        httpx.AsyncClient(timeout=30, trust_env=False) as client,
    ):
        daemon, url = await up(buses, wire.url, tokens.url)
        info = await until(client, f"{url}/test/bucket/info", lambda told: told.get("status") == "ready")
        assert (info["bucket_name"], info["region"], info["machine_id"]) == ("logs", "eu-central-1", "drone-7")
        now = await client.post(f"{url}/bucket/upload", files={"file": ("now.ulg", ULOG)})
        assert now.status_code == 200, now.text
        assert (s3.files / now.json()["s3_key"]).read_bytes() == ULOG
        await wire.shut()
        later = await client.post(f"{url}/bucket/upload?wait=0.2&filename=later.ulg", content=ULOG)
        assert (later.status_code, later.json()["queued"]) == (202, True), later.text
        (waits,) = (await client.get(f"{url}/bucket/info")).json()["spool"]["waiting"]
        assert (waits["upload_id"], waits["filename"]) == (later.json()["upload_id"], "later.ulg")
        await asyncio.to_thread(daemon.kill)
        daemon, url = await up(buses, wire.url, tokens.url, data=daemon.data)
        info = await until(client, f"{url}/bucket/info", lambda told: told.get("status") == "ready")
        assert [one["upload_id"] for one in info["spool"]["waiting"]] == [waits["upload_id"]]
        await wire.open()
        await until(client, f"{url}/bucket/info", lambda told: told["spool"]["waiting"] == [])
        listed = (await client.get(f"{url}/bucket/list")).json()
        assert sorted(one["filename"].rpartition("_")[2] for one in listed["files"]) == ["later.ulg", "now.ulg"]
        assert not [path for path in Path(daemon.data, "bucket", "incoming").rglob("*") if path.is_file()]
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_a_daemon_without_a_bucket_says_so(buses: Buses) -> None:
    """S-268: 503 with the settings that are missing."""
    started = buses.up("--set", "http_port=0", "--set", "mqtt_transport=off")
    url = (await asyncio.to_thread(started.event, "http_ready"))["url"]
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        for at in ("/bucket", "/test/bucket"):
            told = await client.get(f"{url}{at}/list")
            assert (told.status_code, "s3_bucket_name" in told.json()["detail"]) == (503, True)
