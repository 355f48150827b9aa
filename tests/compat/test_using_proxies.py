"""The samples of the document about proxies, as they stand there, against the real parts."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.petals.hosting import PetalHost
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.bucket import S3BucketProxy
from petalbus.petals.proxies.redis import RedisProxy

from . import spec
from .spec import PROXIES
from support.mavlink_rig import rig
from support.procs import Children
from support.s3_world import RealS3, TokenService
from support.servers import RealServer


@pytest.fixture
async def redis(server: RealServer, bus_name: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(url=server.url, bus=bus_name) as proxy:
        for key in await proxy.scan_keys("*"):
            if not key.startswith("{"):
                await proxy.delete(key)
        yield proxy


async def started(petal: type, proxies: dict[str, BaseProxy], server: RealServer, bus_name: str) -> Any:
    """A sample's petal, started as the runtime does it."""

    def connect(app: str) -> Bus:
        return Bus(server.url, app=app, bus=bus_name, options=BusOptions(presence=False))

    host: PetalHost[Any] = PetalHost(petal, proxies, connect)
    await host.start()
    host.petal.host = host
    return host.petal


async def test_the_basic_pattern(
    redis: RedisProxy, server: RealServer, bus_name: str, children: Children, tmp_path: Path
) -> None:
    """S-002, S-012, S-013, S-014, S-016: a petal declares redis and the vehicle, is given both, writes and reads."""
    sample = spec.load(spec.block(PROXIES, "async def your_method"), tmp_path).YourPetal
    async with rig(server, bus_name) as made:
        await made.sim(children)
        proxies: dict[str, BaseProxy] = {"redis": redis, "ext_mavlink": await made.proxy()}
        petal = await started(sample, proxies, server, bus_name)
        await petal.your_method()
        assert await redis.get("key") == "value"
        await petal.host.stop()


async def test_the_job_manager(redis: RedisProxy, server: RealServer, bus_name: str, tmp_path: Path) -> None:
    """S-029, S-030, S-031, S-032: pending jobs are found and read, expired ones deleted, all counted by status."""
    sample: Any = spec.load(spec.block(PROXIES, "class JobManagerPetal"), tmp_path).JobManagerPetal

    class JobManagerPetal(sample):  # the helper that the sample calls and does not show
        def _is_expired(self, completed_at: float, hours: int) -> bool:
            return time.time() - completed_at > hours * 3600

    petal = await started(JobManagerPetal, {"redis": redis}, server, bus_name)
    for status, count in (("pending", 250), ("processing", 2), ("completed", 3), ("failed", 1)):
        for number in range(count):
            age = 90_000 if number else 60
            job = {"id": number, "completed_at": time.time() - age}
            await redis.set(f"job:{status}:{number}", json.dumps(job))
    jobs = await petal.list_pending_jobs()
    assert sorted(job["id"] for job in jobs) == list(range(250))
    assert await petal.get_job_statistics() == {"pending": 250, "processing": 2, "completed": 3, "failed": 1}
    assert await petal.cleanup_expired_jobs(max_age_hours=24) == {"deleted": 2}
    assert (await petal.get_job_statistics())["completed"] == 1
    await petal.host.stop()


async def test_the_telemetry_cache(redis: RedisProxy, server: RealServer, bus_name: str, tmp_path: Path) -> None:
    """S-017, S-018, S-033: JSON with an hour to live, read back; None for another flight."""
    petal = await started(
        spec.load(
            spec.block(PROXIES, "class JobManagerPetal") + spec.block(PROXIES, "class TelemetryCachePetal"), tmp_path
        ).TelemetryCachePetal,
        {"redis": redis},
        server,
        bus_name,
    )
    await petal.cache_flight_data("f1", {"altitude": 10.5})
    assert await petal.get_cached_flight_data("f1") == {"altitude": 10.5}
    assert await petal.get_cached_flight_data("f2") is None
    assert 3590 <= await redis.ttl("flight:f1:telemetry") <= 3600
    await petal.host.stop()


async def test_the_list_of_redis_methods(redis: RedisProxy) -> None:
    """S-017, S-018, S-019, S-020, S-021, S-022, S-023, S-024, S-025, S-026, S-027, S-028, S-029: as documented."""
    seen: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def callback(channel: str, message: str) -> None:
        seen.put_nowait((channel, message))

    names = {
        "redis_proxy": redis,
        "key": "k",
        "value": "v",
        "expiration_seconds": 60,
        "hash_key": "h",
        "field": "f",
        "list_key": "l",
        "start": 0,
        "end": -1,
        "channel": "c",
        "message": "m",
        "callback": callback,
    }
    await spec.run(spec.block(PROXIES, "await redis_proxy.hgetall(hash_key)"), **names)
    assert await redis.hgetall("h") == {"f": "v"}
    assert await redis.lrange("l", 0, -1) == ["v", "v"]
    assert await redis.publish("c", "again") == 1
    async with asyncio.timeout(5):
        assert await seen.get() == ("c", "again")


async def test_caching_as_documented(redis: RedisProxy, server: RealServer, bus_name: str, tmp_path: Path) -> None:
    """S-006: the basic usage of the Redis proxy."""
    code = spec.block(PROXIES, "async def cache_telemetry")
    petal = await started(spec.load(code, tmp_path).YourPetal, {"redis": redis}, server, bus_name)
    await petal.cache_telemetry({"battery": 80})
    assert json.loads(await redis.get("telemetry:latest") or "") == {"battery": 80}
    await petal.host.stop()


async def test_a_missing_proxy_degrades(
    redis: RedisProxy, server: RealServer, bus_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S-015, S-080: get_proxy gives None while there is none; the petal goes on."""
    code = spec.block(PROXIES, "async def safe_proxy_usage")
    petal = await started(spec.load(code, tmp_path).YourPetal, {}, server, bus_name)
    with caplog.at_level(logging.WARNING):
        await petal.safe_proxy_usage()
    assert "Redis proxy not available" in caplog.text
    await petal.host.stop()
    whole = await started(spec.load(code, tmp_path).YourPetal, {"redis": redis}, server, bus_name)
    await redis.set("key", "value")
    await whole.safe_proxy_usage()
    await whole.host.stop()


async def test_health_checks(
    redis: RedisProxy,
    server: RealServer,
    bus_name: str,
    children: Children,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """S-001, S-005, S-007, S-015, S-081: every required proxy has one; optional ones may be missing."""
    methods = spec.block(PROXIES, "async def check_proxy_health") + spec.block(PROXIES, "# Always declare required")
    code = "class HealthPetal(Petal):\n" + "\n".join(f"    {line}" for line in methods.split("\n"))
    sample = spec.load(code, tmp_path).HealthPetal
    async with rig(server, bus_name) as made:
        await made.sim(children)
        proxies: dict[str, BaseProxy] = {"redis": redis, "ext_mavlink": await made.proxy()}
        petal = await started(sample, proxies, server, bus_name)
        assert petal.get_optional_proxies() == ["cloud", "bucket"]
        with caplog.at_level(logging.INFO):
            await petal.check_proxy_health()
        assert "redis health: {'status': 'healthy'" in caplog.text
        assert "ext_mavlink health: {'status': 'healthy'" in caplog.text
        await petal.host.stop()


@pytest.fixture
async def bucket(tmp_path: Path) -> AsyncIterator[S3BucketProxy]:
    async with RealS3(tmp_path) as s3, TokenService() as tokens:
        proxy = S3BucketProxy(tokens.url, s3.bucket, endpoint=s3.url, machine_id="m1")
        await proxy.start()
        yield proxy
        await proxy.stop()


async def test_uploading_a_flight_log(bucket: S3BucketProxy, server: RealServer, bus_name: str, tmp_path: Path) -> None:
    """S-010, S-065, S-069, S-070: the documented key, the documented result; an error for what is no log."""
    code = spec.block(PROXIES, "class FlightLogPetal")
    petal = await started(spec.load(code, tmp_path).FlightLogPetal, {"bucket": bucket}, server, bus_name)
    log, text = tmp_path / "a.ulg", tmp_path / "a.txt"
    log.write_bytes(bytes.fromhex("554c6f67011235") + b"\x01" + bytes(50))
    text.write_text("no log")
    told = await petal.upload_flight_log(log, "2026-01-07", "flight_001")
    assert told["status"] == "success"
    assert told["url"].endswith("/flights/2026/01/07/flight_001.ulg")
    refused = await petal.upload_flight_log(text, "2026-01-07", "flight_002")
    assert refused["status"] == "error"
    assert refused["reason"].startswith("Invalid file extension")
    await petal.host.stop()


async def test_the_bucket_calls_as_documented(bucket: S3BucketProxy, tmp_path: Path) -> None:
    """S-063, S-064, S-066, S-067, S-068: in the documented forms; what is not there is told, nothing raises."""
    log = tmp_path / "file.ulg"
    log.write_bytes(bytes.fromhex("554c6f67011235") + b"\x01" + bytes(50))
    code = spec.block(PROXIES, "await bucket_proxy.list_objects").replace("/path/to/file.ulg", str(log))
    await spec.run(code, bucket_proxy=bucket)
    listed = await bucket.list_objects(prefix="flights/")
    assert [one["key"] for one in listed["objects"]] == ["flights/2026/01/07/flight_001.ulg"]
    assert any(one["key"].endswith("renamed.ulg") for one in (await bucket.list_files())["files"])


async def test_organising_files(bucket: S3BucketProxy, server: RealServer, bus_name: str, tmp_path: Path) -> None:
    """S-066, S-071, S-072: one file to the archive; a whole prefix moved; what fails is listed."""
    code = spec.block(PROXIES, "class FileOrganizerPetal")
    petal = await started(spec.load(code, tmp_path).FileOrganizerPetal, {"bucket": bucket}, server, bus_name)
    log = tmp_path / "file.ulg"
    log.write_bytes(bytes.fromhex("554c6f67011235") + b"\x01" + bytes(50))
    for number in range(3):
        await bucket.upload_file(log, custom_s3_key=f"uploads/pending/{number}.ulg")
    archived = await petal.archive_processed_file("uploads/pending/0.ulg")
    assert archived["status"] == "archived"
    assert archived["new_path"].startswith("archive/20")
    moved = await petal.batch_organize_files("uploads/", "sorted")
    assert moved == {"moved": ["sorted/1.ulg", "sorted/2.ulg"], "failed": []}
    gone = await petal.archive_processed_file("uploads/pending/0.ulg")
    assert gone["status"] == "error"
    await petal.host.stop()
