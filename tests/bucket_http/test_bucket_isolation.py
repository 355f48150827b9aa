"""Each machine sees only its own, through every method of the proxy and every endpoint, on a real S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from petalbus.petals.proxies.bucket import S3BucketProxy

from .conftest import ULOG, World
from .hostile import HOSTILE


@pytest.fixture
async def shared(world: World) -> World:
    """Others have stored logs: machine-10 by every way, and ``fleet``, whose id looks like nobody's."""
    log = world.log()
    assert (await world.other.upload_file(log, custom_s3_key="machine-10/flight-logs/theirs.ulg"))["success"]
    assert (await world.other.upload_file(log, custom_s3_key="flight_logs/machine-10/theirs.ulg"))["success"]
    assert (await world.other.upload_file(log, custom_s3_key="flights/theirs.ulg"))["success"]
    fleet = world.made("fleet")
    await fleet.start()
    assert (await fleet.upload_file(log, custom_s3_key="fleet/flight-logs/theirs.ulg"))["success"]
    await fleet.stop()
    assert (await world.proxy.upload_file(log, custom_s3_key="machine-1/ours.ulg"))["success"]
    return world


def refused(answer: dict[str, Any]) -> bool:
    """The one shape of it."""
    return (answer["status"], answer["success"], answer["error"][:13]) == (403, False, "Access denied")


def everything(world: World) -> dict[str, bytes]:
    """The bucket, looked at from the store's side."""
    return {str(path.relative_to(world.s3.files)): path.read_bytes() for path in world.s3.files.rglob("*.ulg")}


async def test_hostile_keys_are_refused_by_every_method(shared: World, tmp_path: Path) -> None:
    """S-247, S-255, S-256, S-272, S-280, C-23: 403 "Access denied", and nothing in the bucket has changed."""
    before, proxy, log = everything(shared), shared.proxy, shared.log()
    stolen = tmp_path / "stolen.ulg"
    for key in HOSTILE:
        answers = {
            "upload": await proxy.upload_file(log, custom_s3_key=key),
            "download": await proxy.download_file(key, stolen),
            "delete": await proxy.delete_file(key),
            "head": await proxy.head_object(key),
            "open": await proxy.open_file(key),
            "move from": await proxy.move_file(key, "machine-1/mine.ulg"),
            "move to": await proxy.move_file("machine-1/ours.ulg", key),
        }
        for name, answer in answers.items():
            assert refused(answer), (name, key, answer)
    assert not stolen.exists()
    assert everything(shared) == before


async def test_hostile_keys_are_refused_by_every_endpoint(shared: World) -> None:
    """S-253, S-255, S-256, S-272, C-22, C-23: 403 as well, under both addresses."""
    before = everything(shared)
    for number, key in enumerate(HOSTILE):
        at = ("/bucket", "/test/bucket")[number % 2]
        name = quote(key, safe="").replace(".", "%2E")  # clients resolve dots themselves
        file = {"file": ("a.ulg", ULOG)}
        for answer in (
            await shared.client.get(f"{at}/download/{name}"),
            await shared.client.delete(f"{at}/delete/{name}"),
            await shared.client.post(f"{at}/upload?custom_s3_key={name}", files=file),
        ):
            assert answer.status_code == 403, (answer.request.method, key, answer.text)
            told = answer.json()
            assert refused(told)
            assert told["detail"] == told["error"]
        assert (await shared.client.head(f"{at}/download/{name}")).status_code == 403
    assert everything(shared) == before
    assert shared.spooled == []


async def test_listing_shows_only_ours(shared: World) -> None:
    """S-247, S-254, S-266: whatever the prefix; a prefix that names another machine is refused."""
    for prefix in (None, "", "m", "machine-1", "machine-1/", "flight", "flight_logs/", "fleet", "fleet/", "flights/"):
        told = await shared.proxy.list_files(prefix)
        assert told["success"], (prefix, told)
        assert {one["key"] for one in told["files"]} <= {"machine-1/ours.ulg"}, prefix
        query = {} if prefix is None else {"prefix": prefix}
        answer = (await shared.client.get("/bucket/list", params=query)).json()
        assert answer["files"] == told["files"]
    for prefix in ("machine-10", "machine-10/"):
        told = await shared.proxy.list_files(prefix)
        assert told.get("files", []) == []
    for prefix in ("machine-10/", "flight_logs/machine-10/", "../", "machine-1/../", "machine-1//", "Machine-1/", "\n"):
        assert refused(await shared.proxy.list_files(prefix)), prefix
        assert (await shared.client.get("/bucket/list", params={"prefix": prefix})).status_code == 403, prefix


async def test_ours_are_found_behind_others(shared: World) -> None:
    """S-068, S-254: the number asked for counts our own, not what lies before them; what is left out is told."""
    log = shared.log()
    for number in range(12):
        await shared.other.upload_file(log, custom_s3_key=f"flights/a{number:02}.ulg")
    for number in range(3):
        assert (await shared.proxy.upload_file(log, custom_s3_key=f"flights/b{number}.ulg"))["success"]
    told = await shared.proxy.list_files("flights/", max_keys=2)
    assert [one["key"] for one in told["files"]] == ["flights/b0.ulg", "flights/b1.ulg"]
    assert (told["truncated"], told["total_count"]) == (True, 2)
    told = await shared.proxy.list_objects("flights/")
    assert (len(told["objects"]), told["truncated"]) == (3, False)


async def test_the_machine_of_the_instance_is_the_one(shared: World) -> None:
    """S-265, S-266, S-280, C-25: ``machine_id`` may be ours and nothing else; it is written into the metadata."""
    log = shared.log()
    told = await shared.proxy.upload_file(log, machine_id="machine-1")
    assert told["success"]
    assert (await shared.proxy.head_object(told["s3_key"]))["metadata"]["machine-id"] == "machine-1"
    for machine in ("machine-10", "Machine-1", "machine-1 ", "", "machine-1/../machine-10"):
        assert refused(await shared.proxy.upload_file(log, machine_id=machine)), machine
        assert refused(await shared.proxy.list_files(machine_id=machine)), machine


async def test_a_key_template_cannot_lead_to_others(shared: World) -> None:
    """S-259, C-20: what it makes is looked at like any other key."""
    proxy = shared.made("machine-1", key_template="{prefix}/machine-10/{stamp}_{name}")
    await proxy.start()
    assert refused(await proxy.upload_file(shared.log()))
    await proxy.stop()
    documented = shared.made("machine-1", key_template="{prefix}/{machine}/{stamp}_{name}")
    await documented.start()
    told = await documented.upload_file(shared.log("mission_log.ulg"))
    assert told["s3_key"].startswith("flight_logs/machine-1/2")
    assert told["s3_key"].endswith("_mission_log.ulg")
    assert (await shared.proxy.head_object(told["s3_key"]))["success"]
    assert refused(await shared.other.head_object(told["s3_key"]))
    await documented.stop()


def test_the_documented_arguments() -> None:
    """S-258, C-25, C-28: with and without a region, at any address; nothing is asked when it is made."""
    made = S3BucketProxy("http://localhost:3001/session-token", "b", "flight_logs/", False, 30)
    assert (made.region, made.upload_prefix) == ("us-east-1", "flight_logs/")
    named = S3BucketProxy(
        session_token_url="http://localhost:3000/session-token",
        bucket_name="flight-logs-bucket",
        region="us-west-2",
        upload_prefix="flight_logs/",
        debug=False,
        request_timeout=30,
    )
    assert (named.region, named.session_token_url) == ("us-west-2", "http://localhost:3000/session-token")
