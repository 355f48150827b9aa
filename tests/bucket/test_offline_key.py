"""Logs that come over HTTP while the store is away: whose a key is is looked at later; what was refused is put back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from petalbus.daemon.http import bucket_spool
from petalbus.daemon.http.app import HttpApp
from petalbus.daemon.http.bucket import bucket_router
from petalbus.daemon.http.bucket_spool import Spool
from petalbus.daemon.http.mounts import PetalMounts
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.server import Server, address_of, tcp_listener
from petalbus.handlers.bucket.files import check_file
from petalbus.handlers.bucket.transfer import options_of, put
from petalbus.petals.proxies.bucket import S3BucketProxy
from petalbus.petals.proxies.bucket import proxy as proxy_module

from .conftest import MACHINE, World
from .wire import answer, stall


class Site:
    """The routes of a daemon whose store is behind the wire."""

    def __init__(self, world: World, proxy: S3BucketProxy, client: httpx.AsyncClient, spool: Spool) -> None:
        self.world = world
        self.proxy = proxy
        self.client = client
        self.spool = spool

    async def post(self, key: str, content: bytes) -> httpx.Response:
        """Upload a log under a key; half a second is waited for the store."""
        asked = {"filename": "a.ulg", "custom_s3_key": key, "wait": "0.3"}
        return await self.client.post("/bucket/upload", params=asked, content=content)

    async def theirs(self, key: str) -> None:
        """Another machine's log, stored not through the wire."""
        log = check_file(self.world.log(name="theirs.ulg"))
        async with self.world.store(endpoint=self.world.s3.url) as store:
            await put(store, log, key, options_of(log, "station"))


@pytest.fixture
async def site(world: World) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        proxy = S3BucketProxy(
            world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE, url=world.server.url,
            bus=world.bus_name, request_timeout=5,
        )  # fmt: skip
        await proxy.start()
        stack.push_async_callback(proxy.stop)
        options, spool = HttpOptions(port=0), Spool(world.folder / "spool")
        app = HttpApp(PetalMounts(options), options=options)
        app.include(lambda: bucket_router(lambda _: proxy, spool=spool), prefix="/bucket")
        await asyncio.to_thread(app.build)
        server = Server(app, await tcp_listener("127.0.0.1", 0), options=options, calls=app.calls)
        await server.start()
        stack.push_async_callback(server.stop, timeout=1)
        client = httpx.AsyncClient(timeout=30, trust_env=False, base_url=address_of(server.listener))
        stack.push_async_callback(client.aclose)
        yield Site(world, proxy, client, spool)
        await spool.close()


async def until_told(site: Site) -> dict[str, Any]:
    """What the spool says of its one log, once it has ended."""
    async with asyncio.timeout(20):
        while True:
            waiting: list[dict[str, Any]] = (await site.client.get("/bucket/info")).json()["spool"]["waiting"]
            if not waiting or waiting[0]["error"]:
                return waiting[0] if waiting else {}
            await asyncio.sleep(0.02)


async def test_a_free_key_is_taken_while_the_store_is_away(site: Site) -> None:
    """S-245, S-253, S-268: 202, and stored by itself; what a key says by itself is refused at once all the same."""
    world = site.world
    await world.start()
    await world.wire.shut()
    path = world.log()
    answer = await site.post("flights/a.ulg", path.read_bytes())
    assert (answer.status_code, answer.json()["queued"]) == (202, True), answer.text
    for key in ("flight_logs/m2/a.ulg", "a/../b.ulg"):
        assert (await site.post(key, path.read_bytes())).status_code == 403
    await world.wire.open()
    assert await until_told(site) == {}
    assert world.stored("flights/a.ulg") == path.read_bytes()
    assert (await site.proxy.head_object("flights/a.ulg"))["success"]


@pytest.mark.parametrize("key", ["flights/a.ulg", "station/flight-logs/new.ulg"])
async def test_whose_it_is_is_looked_at_when_the_store_is_back(site: Site, key: str) -> None:
    """S-247, S-272: another machine's object, and a new one below its id: a dead letter with 403, nothing replaced."""
    world = site.world
    await site.theirs("flights/a.ulg")
    await site.theirs("station/flight-logs/old.ulg")
    before = world.stored("flights/a.ulg")
    await world.start()
    await world.wire.shut()
    answer = await site.post(key, world.log().read_bytes())
    assert answer.status_code == 202, answer.text
    await world.wire.open()
    told = await until_told(site)
    assert (told["upload_id"], told["error"][:13]) == (answer.json()["upload_id"], "Access denied")
    (letter,) = await world.bus.dead.list("bucket")
    assert "Access denied" in letter.reason
    (waiting,) = (world.folder / "spool").rglob("*.ulg")
    again = await site.proxy.upload_file(waiting, custom_s3_key=key, upload_id=told["upload_id"])
    assert again["status"] == 403
    assert world.stored("flights/a.ulg") == before
    assert not (world.s3.files / "station/flight-logs/new.ulg").exists()


async def test_a_store_that_says_nothing_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-268: nobody waits long for the look; the token service counts as well."""
    monkeypatch.setattr(proxy_module, "_ASK_S", 0.3)
    world = site.world
    await world.start()
    world.wire.rule("HEAD", "", stall, times=2)
    assert await site.proxy.may_store("flights/a.ulg") == {"success": True}
    world.tokens.status = 500
    fresh = S3BucketProxy(
        world.tokens.url, "logs", endpoint=world.wire.url, machine_id=MACHINE, url=world.server.url, bus=world.bus_name
    )
    await fresh.start()
    assert await fresh.may_store("flights/a.ulg") == {"success": True}
    await fresh.stop()


async def test_where_nobody_stores_it_later_it_is_refused_at_once(site: Site) -> None:
    """S-268: 503 before the log has come, on a bus that never had a bucket handler."""
    await site.world.wire.shut()
    answer = await site.post("flights/a.ulg", site.world.log().read_bytes())
    assert answer.status_code == 503
    assert site.spool.describe()["waiting"] == []


async def refused(site: Site, content: bytes) -> str:
    """A log that came while the store was away and was then refused; its upload's id."""
    world = site.world
    await world.start()
    await world.wire.shut()
    told = await site.post("m1/a.ulg", content)
    assert told.status_code == 202, told.text
    rule = world.wire.rule("PUT", "", answer(403, "AccessDenied"))
    await world.wire.open()
    assert "AccessDenied" in (await until_told(site))["error"]
    assert rule.hits == 1
    return str(told.json()["upload_id"])


async def put_back(site: Site) -> None:
    """What `petalbus dead requeue` does."""
    (letter,) = await site.world.bus.dead.list("bucket")
    await site.world.bus.dead.requeue("bucket", letter.entry)


async def test_what_was_put_back_keeps_its_file(site: Site) -> None:
    """S-245, S-253: the room is needed while it waits for the store: 507; it is stored later. A refused one goes."""
    world, content = site.world, site.world.log().read_bytes()
    site.spool._limit = 3 * len(content) // 2
    upload = await refused(site, content)
    await world.wire.shut()
    await put_back(site)
    await world.until(upload, lambda one: one["state"] == "offline")
    full = await site.post("m1/b.ulg", content)
    assert full.status_code == 507, full.text
    assert [path.read_bytes() for path in (world.folder / "spool").rglob("*.ulg")] == [content]
    await world.wire.open()
    await world.until(upload, lambda one: one["state"] == "done")
    assert world.stored("m1/a.ulg") == content


async def test_what_was_refused_makes_room(site: Site) -> None:
    """S-253: the last that came is worth more than what nobody takes."""
    content = site.world.log().read_bytes()
    site.spool._limit = 3 * len(content) // 2
    await refused(site, content)
    other = await site.post("m1/b.ulg", site.world.log().read_bytes())
    assert other.status_code == 200, other.text
    assert site.spool.describe()["waiting"] == []
    assert not [path for path in (site.world.folder / "spool").rglob("*") if path.is_file()]


@pytest.mark.parametrize("end", ["stored", "stored between two looks", "refused again", "cancelled"])
async def test_what_was_put_back_is_followed(site: Site, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """S-245, S-253: its file is deleted when it is stored or cancelled, without a restart, and kept when refused."""
    monkeypatch.setattr(bucket_spool, "_LOOK_S", 1.0 if end == "stored between two looks" else 0.05)
    monkeypatch.setattr(bucket_spool, "_AGAIN_S", 0.05)
    world, content = site.world, site.world.log().read_bytes()
    upload = await refused(site, content)
    if end == "stored between two looks":
        await put_back(site)
        await world.until(upload, lambda one: one["state"] == "done")
    else:
        await world.wire.shut()
        await put_back(site)
        async with asyncio.timeout(20):
            while site.spool.describe()["waiting"][0]["error"] is not None:
                await asyncio.sleep(0.02)
        if end == "refused again":
            world.wire.rule("PUT", "", answer(403, "InvalidObjectState"))
        if end == "cancelled":
            assert await world.bus.cancel(upload)
        await world.wire.open()
    if end == "refused again":
        assert "InvalidObjectState" in (await until_told(site))["error"]
        assert len(list((world.folder / "spool").rglob("*.ulg"))) == 1
        return
    async with asyncio.timeout(20):
        while site.spool.describe()["waiting"] or list((world.folder / "spool").rglob("*.ulg")):
            await asyncio.sleep(0.02)
    assert (world.s3.files / "m1/a.ulg").exists() is (end != "cancelled")
