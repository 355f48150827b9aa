"""Logs that come over HTTP for a key of the caller's own while the store is away: whose it is is looked at later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

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
from .wire import stall


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
