"""A daemon with a bucket, and the commands: upload, uploads, pause, resume, cancel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import petalbus
from petalbus.handlers.bucket.errors import Away
from petalbus.handlers.bucket.files import ULOG_MAGIC
from petalbus.handlers.bucket.store import Store

from .wire import Wire
from support.certificates import make_certificates
from support.procs import Child, Children, child_environment
from support.s3_world import KEYS, RealS3, TokenService
from support.servers import kill_leftovers


class Site:
    """A daemon on a data directory, and commands for it."""

    def __init__(self, children: Children, data: Path, tokens: TokenService, endpoint: str) -> None:
        self.children = children
        self.data = data
        self.tokens = tokens
        self.environment = {
            "PETALBUS_DATA": str(data),
            "PETALBUS_MACHINE_ID": "m1",
            "PETALBUS_S3_BUCKET_NAME": "logs",
            "PETALBUS_SESSION_TOKEN_URL": tokens.url,
            "PETALBUS_S3_ENDPOINT": endpoint,
            "PETALBUS_ORGANIZATION_FILE": str(data / "none.json"),
        }
        self.daemon: Child | None = None

    async def up(self, **more: str) -> Child:
        """Start the daemon."""
        self.daemon = await self.children.petalbus("up", "--json", environment={**self.environment, **more})
        await self.daemon.line('"ready"', timeout=30)
        return self.daemon

    async def run(self, *words: str, code: int = 0) -> list[dict[str, Any]]:
        """Run a command with ``--json``; its lines."""
        child = await self.children.petalbus(*words, "--json", environment=self.environment)
        assert await child.wait(timeout=30) == code, (child.output, child.errors)
        return [json.loads(line) for line in child.output]

    async def until(self, state: str) -> dict[str, Any]:
        """Wait until the only upload stands so."""
        async with asyncio.timeout(30), petalbus.connect(app="test", data=self.data) as bus:
            while True:
                told = (await bus.request("bucket", "bucket.uploads", {}, timeout=20)).data
                listed: list[dict[str, Any]] = [*told["uploads"], *reversed(told["ended"])]
                if listed and listed[0]["state"] == state:
                    return listed[0]
                await asyncio.sleep(0.02)

    async def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        async with petalbus.connect(app="test", data=self.data) as bus:
            told: dict[str, Any] = (await bus.request("petalbus", "status_request", {}, timeout=20)).data
            return told


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with RealS3(tmp_path) as s3, Wire(s3.url) as made:
        yield made


@pytest.fixture
async def site(children: Children, data_dir: Path, wire: Wire) -> AsyncIterator[Site]:
    async with TokenService() as tokens:
        yield Site(children, data_dir, tokens, wire.url)
    await asyncio.to_thread(kill_leftovers, data_dir)


def log(folder: Path, size: int = 300, name: str = "flight.ulg") -> Path:
    path = folder / name
    path.write_bytes(ULOG_MAGIC + b"\x01" + os.urandom(size))
    return path


async def test_the_commands(site: Site, wire: Wire, tmp_path: Path) -> None:
    """S-063, S-245, S-246: a log from the command line to the store; over kill -9 of the daemon; offline; cancelled."""
    daemon = await site.up()
    first, second = log(tmp_path), log(tmp_path, name="other.ulg")
    told = await site.run("upload", str(first), str(second))
    results = [one for one in told if one["kind"] == "result"]
    assert {Path(one["file"]).name for one in results} == {"flight.ulg", "other.ulg"}
    assert all((tmp_path / "s3" / "logs" / one["s3_key"]).exists() for one in results)
    bad = tmp_path / "a.txt"
    bad.write_text("x")
    assert (await site.run("upload", str(bad), code=1))[-1]["status"] == 400
    await wire.shut()
    large = log(tmp_path, 10_000_000, "large.ulg")
    handed = (await site.run("upload", str(large), "--key", "m1/large.ulg", "--detach", "--priority", "high"))[0]
    assert (await site.until("offline"))["priority"] == "high"
    await site.run("uploads", "pause", handed["id"])
    daemon.kill()
    await daemon.wait()
    await site.up()
    await wire.open()
    assert (await site.until("paused"))["id"] == handed["id"]
    assert not (await site.run("uploads", "resume", "--all"))[0]["paused"]
    await site.until("done")
    assert (tmp_path / "s3" / "logs" / "m1" / "large.ulg").read_bytes() == large.read_bytes()
    await site.run("uploads", "pause", "--all")
    gone = (await site.run("upload", str(first), "--detach"))[0]
    await site.until("paused")
    assert (await site.run("uploads", "cancel", gone["id"])) == [{"id": gone["id"], "cancelled": True}]
    await site.run("uploads", "cancel", "nothing", code=1)
    await site.run("uploads", "cancel", code=2)
    assert (await site.status())["parts"]["bucket"]["statistics"]["done"] >= 1


async def test_ctrl_c_detaches(site: Site, wire: Wire, tmp_path: Path) -> None:
    """The command says that the daemon goes on, and it does."""
    await site.up()
    await wire.shut()
    child = await site.children.petalbus("upload", str(log(tmp_path)), environment=site.environment)
    await site.until("offline")
    child.signal(signal.SIGINT)
    assert await child.wait() == 130
    assert any("detached: the daemon goes on" in line for line in child.errors)
    await wire.open()
    await site.until("done")


async def test_credentials_outlive_the_daemon(site: Site, tmp_path: Path) -> None:
    """S-246: kill -9, the token service is gone, and logs are stored all the same; not where that is switched off."""
    kept = site.data / "bucket" / "credentials.json"
    site.tokens.answer["expiration"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    daemon = await site.up()
    await site.run("upload", str(log(tmp_path)))
    assert kept.stat().st_mode & 0o777 == 0o600
    daemon.kill()
    await daemon.wait()
    await site.tokens.__aexit__()
    daemon = await site.up()
    told = (await site.run("upload", str(log(tmp_path, name="b.ulg"))))[-1]
    assert (tmp_path / "s3" / "logs" / told["s3_key"]).exists()
    assert site.tokens.asked == 1
    everything = [*daemon.output, *daemon.errors, json.dumps(told)]
    assert not any(KEYS[1] in line for line in everything)
    daemon.kill()
    await daemon.wait()
    await site.up(PETALBUS_CREDENTIALS_CACHE="false")
    await site.run("upload", str(log(tmp_path, name="c.ulg")), "--detach")
    assert "token service" in (await site.until("offline"))["last_error"]
    assert not kept.exists()


async def test_without_a_bucket_nothing_of_it_is_loaded(site: Site, tmp_path: Path) -> None:
    """The commands say what is missing."""
    site.environment.pop("PETALBUS_S3_BUCKET_NAME")
    await site.up()
    assert "bucket" not in (await site.status())["parts"]
    child = await site.children.petalbus("upload", str(log(tmp_path)), "--json", environment=site.environment)
    assert await child.wait() == 1
    assert "s3_bucket_name" in child.errors[0]


async def test_over_tls(children: Children, data_dir: Path, tmp_path: Path) -> None:
    """S-245: a store of one's own with a certificate of one's own; one whose certificate is not known is not used."""
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    await asyncio.to_thread(make_certificates, certificates)
    async with RealS3(tmp_path, certificates=certificates) as s3, TokenService() as tokens:
        site = Site(children, data_dir, tokens, s3.url)
        await site.up(AWS_CA_BUNDLE=str(certificates / "ca.crt"))
        path = log(tmp_path, 20_000_000)
        (told,) = [one for one in await site.run("upload", str(path)) if one["kind"] == "result"]
        assert (s3.files / told["s3_key"]).read_bytes() == path.read_bytes()
        async with Store("logs", token_url=tokens.url, endpoint=s3.url) as store:
            with pytest.raises(Away, match="cannot be reached"):
                await store.head("m1/any.ulg")
    await asyncio.to_thread(kill_leftovers, data_dir)


def test_the_handler_needs_no_s3_library_to_be_there() -> None:
    """Loading the handler and the store imports neither the S3 library nor an HTTP client."""
    code = (
        "import sys, petalbus.handlers.bucket.handler, petalbus.handlers.bucket.store, petalbus.daemon.runtime.bucket\n"
        "assert not {'botocore', 'aiobotocore', 'aiohttp', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=child_environment())
