"""The samples of the document about buckets, as they stand there, against a real S3 server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from petalbus.petals.proxies.bucket import S3BucketProxy

from . import spec
from .spec import BUCKET
from support.s3_world import RealS3, TokenService

ULOG = bytes.fromhex("554c6f67011235") + b"\x01" + bytes(50)


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[tuple[RealS3, TokenService]]:
    async with RealS3(tmp_path) as server, TokenService() as tokens:
        yield server, tokens


async def test_the_documented_calls(
    s3: tuple[RealS3, TokenService], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-258, S-264, S-265, S-266, S-267, S-274: start, upload with a machine id and a name, list, download."""
    server, tokens = s3

    def make(session_token_url: str, bucket_name: str, region: str) -> S3BucketProxy:
        assert (session_token_url, bucket_name, region) == (
            "http://session-service:3000/token",
            "my-flight-logs",
            "us-west-2",
        )
        return S3BucketProxy(tokens.url, server.bucket, region=region, endpoint=server.url, machine_id="drone-123")

    proxy = (await spec.run(spec.block(BUCKET, "us-west-2"), S3BucketProxy=make))["proxy"]
    assert proxy.is_ready
    log = tmp_path / "flight.ulg"
    log.write_bytes(ULOG)
    code = spec.block(BUCKET, 'custom_filename="mission_2025_01_15.ulg"').replace("/path/to/flight.ulg", str(log))
    uploaded = (await spec.run(code, proxy=proxy))["result"]
    assert uploaded["s3_key"].startswith("drone-123/")
    said = capsys.readouterr().out
    assert "Uploaded to: drone-123/" in said
    assert f"File URL: {server.url}" in said
    await spec.run(spec.block(BUCKET, "await proxy.list_files"), proxy=proxy)
    assert f"File: {uploaded['s3_key']}, Size: {len(ULOG)}" in capsys.readouterr().out
    await proxy.upload_file(log, custom_s3_key="flight_logs/drone-123/20250727_143022_mission_log.ulg")
    code = spec.block(BUCKET, "await proxy.download_file").replace("/downloads/", f"{tmp_path}/downloads/")
    await spec.run(code, proxy=proxy)
    assert "Downloaded to" in capsys.readouterr().out
    assert (tmp_path / "downloads" / "mission_log.ulg").read_bytes() == ULOG
    await proxy.stop()


async def test_the_documented_integration(s3: tuple[RealS3, TokenService]) -> None:
    """S-253, S-254, S-258, S-274, S-275, S-276: the proxy, the router and the logger, each as it stands there."""
    server, tokens = s3
    made = (await spec.run(spec.block(BUCKET, 'upload_prefix="flight_logs/"'), S3BucketProxy=S3BucketProxy))["proxy"]
    assert (made.bucket_name, made.upload_prefix) == ("flight-logs-bucket", "flight_logs/")
    config = SimpleNamespace(SESSION_TOKEN_URL=tokens.url, S3_BUCKET_NAME=server.bucket, AWS_REGION="us-east-1")
    proxies: dict[str, S3BucketProxy] = {}
    await spec.run(spec.block(BUCKET, "# Add to proxy registry"), config=config, proxies=proxies)
    proxy = proxies["bucket"]
    proxy._endpoint, proxy._machine = server.url, "drone-001"  # what the document has no argument for
    await proxy.start()
    app = FastAPI()
    await spec.run(spec.block(BUCKET, "app.include_router"), app=app)
    await spec.run(spec.block(BUCKET, "_set_logger"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        up = await client.post("/bucket/upload", files={"file": ("mission_log.ulg", ULOG)})
        assert up.json()["success"], up.text
        assert (await client.get("/bucket/list")).json()["files"][0]["key"] == up.json()["s3_key"]
    await proxy.stop()
