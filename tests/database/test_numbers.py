"""Numbers of writes: over power cuts and set-back clocks, whoever writes, and whatever comes back from the dead."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.database import words
from petalbus.handlers.database.service import Addresses, HttpTables
from petalbus.handlers.database.writes import BY, SEQ, Policy
from petalbus.schemas.vocabulary import Priority

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService, Relay
from support.servers import RealServer

HOUR = 3600 * 10**6


def now() -> int:
    """Microseconds of the wall clock."""
    return time.time_ns() // 1000


def order(key: str, n: int, **more: Any) -> dict[str, Any]:
    """A record of another program: ``n`` becomes a member ``m<n>``, too."""
    return {"table": TABLE, "key": {"id": key}, "operation": "update", "item": {"n": n, f"m{n}": True}, **more}


async def set_counter(world: World, number: int) -> None:
    """The vehicle's last number: back, as a power cut leaves it, or ahead, as a clock that was wrong."""
    async with world.client("looker") as bus:
        await bus.call("SET", words.number_key(bus.keys), number)


async def counter(world: World) -> int:
    async with world.client("looker") as bus:
        return int(await bus.ask("GET", words.number_key(bus.keys)))


async def kept(world: World) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """What is remembered of records: numbers, bytes."""
    async with world.client("looker") as bus:
        found = []
        for key in (words.numbers_key(bus.keys), words.waiting_key(bus.keys)):
            flat = await bus.ask("HGETALL", key)
            found.append(dict(zip(flat[::2], flat[1::2], strict=True)))
        return found[0], found[1]


async def requeue(world: World) -> None:
    """Try all dead letters again."""
    async with world.client("person") as bus:
        for letter in await bus.dead.list(words.APP):
            await bus.dead.requeue(words.APP, letter.entry)


@pytest.mark.parametrize("policy", list(Policy))
async def test_the_last_numbers_are_lost(world: World, cloud: CloudService, policy: Policy) -> None:
    """S-054, I9: the server lost the counter, and the clock is behind what the cloud has: later writes are done."""
    await world.start(policy=policy)
    proxy = await world.proxy()
    await set_counter(world, now() + HOUR)
    assert (await proxy.put_item(TABLE, {"id": "1", "n": 1}))["success"]
    high = cloud.tables[TABLE]["1"][SEQ]
    await set_counter(world, high - 2_000_000)  # lower: it would look superseded
    assert "superseded" not in await proxy.update_item(TABLE, "1", {"n": 2})
    assert (cloud.tables[TABLE]["1"]["n"], cloud.tables[TABLE]["1"][SEQ] > high) == (2, True)
    high = cloud.tables[TABLE]["1"][SEQ]
    await set_counter(world, high - 1)  # equal: it would look repeated
    assert (await proxy.update_item(TABLE, "1", {"n": 3}))["success"]
    assert (cloud.tables[TABLE]["1"]["n"], cloud.tables[TABLE]["1"][SEQ] > high) == (3, True)
    async with world.client("looker") as bus:
        await bus.call("DEL", words.number_key(bus.keys))
    assert (await proxy.update_item(TABLE, "1", {"n": 4}))["success"]
    assert cloud.tables[TABLE]["1"]["n"] == 4
    assert len(cloud.writes) == 4


async def test_a_power_cut(own_server: RealServer, bus_name: str, cloud: CloudService) -> None:
    """S-054, I9: the server comes back without its last seconds, whose write the cloud has; the clock is no help."""
    world = World(own_server, bus_name, cloud, lambda: HttpTables(Addresses(cloud.url), f"{cloud.url}/token"))
    async with world.stack:
        await world.start()
        await set_counter(world, now() + HOUR)
        proxy = await world.proxy()
        assert (await proxy.put_item(TABLE, {"id": "1", "n": 1}))["success"]
        files = Path(own_server.command("CONFIG", "GET", "dir")[1].decode()) / "appendonlydir"
        before = files.with_name("before")
        await asyncio.to_thread(shutil.copytree, files, before)
        assert (await proxy.update_item(TABLE, "1", {"n": 2}))["success"]
        await proxy.stop()
        await world.stop()
        own_server.kill()
        await asyncio.to_thread(shutil.rmtree, files)
        before.rename(files)
        own_server.start()
        await world.start()
        assert "superseded" not in await (await world.proxy()).update_item(TABLE, "1", {"n": 3})
        assert (cloud.tables[TABLE]["1"]["n"], len(cloud.writes)) == (3, 3)
        await world.stop()


async def test_the_last_numbers_are_lost_with_dynamodb(dynamo_world: World, relay: Relay) -> None:
    """S-054, I9: as with the HTTP service."""
    world = dynamo_world
    await world.start()
    tables = world.tables()
    proxy = await world.proxy()
    proxy._store.tables.prefix = tables.prefix  # type: ignore[union-attr]  # the test's own tables
    await set_counter(world, now() + HOUR)
    assert (await proxy.put_item(TABLE, {"id": "1", "n": 1}))["success"]
    high = await counter(world)
    for n, lost in ((2, high - 2_000_000), (3, None)):
        await set_counter(world, lost or await counter(world) - 1)
        assert "superseded" not in await proxy.update_item(TABLE, "1", {"n": n})
        assert (await proxy.get_item(TABLE, "1"))["data"]["n"] == n
    relay.lose_answers = 1
    assert (await proxy.update_item(TABLE, "1", {"n": 4}))["success"]
    await world.idle()
    assert world.handler is not None
    assert world.handler.statistics()["repeated"] == 1
    await tables.close()


async def test_the_counter_is_raised_once_for_each_run_of_the_server(world: World) -> None:
    """S-054: what a power cut may have taken from it is left out; a start of the handler alone costs nothing."""
    await world.start()
    await world.stop()
    ahead = now() + HOUR
    await set_counter(world, ahead)
    await world.start()
    assert await counter(world) == ahead
    await world.stop()
    async with world.client("looker") as bus:
        await bus.call("SET", f"{words.number_key(bus.keys)}:run", "another run of the server")
    for _ in range(2):
        await world.start()
        assert await counter(world) == ahead + 60_000_000
        await world.stop()


async def test_two_programs_write_one_item(world: World, cloud: CloudService) -> None:
    """S-054: however their writes meet on the way, each is done: the handler numbers them as they are stored."""
    await world.start()
    one, two = await world.proxy(), await world.proxy()

    async def write(proxy: Any, name: str) -> None:
        told = await asyncio.gather(*(proxy.update_item(TABLE, "1", {f"{name}{n}": True}) for n in range(30)))
        assert all(answer["success"] and "superseded" not in answer for answer in told)

    await asyncio.gather(write(one, "a"), write(two, "b"))
    assert all(cloud.tables[TABLE]["1"][f"{name}{n}"] for name in "ab" for n in range(30))


async def test_records_without_numbers(world: World, cloud: CloudService) -> None:
    """S-054, I9: after the server's clock was set back places count up only; and petals' numbers may be far ahead."""
    await world.start()
    async with world.client("other") as bus:
        key = words.order_key(TABLE, "id", "1")
        inbox = bus.keys.inbox(words.APP, Priority.HIGH)
        mark = f"{now() // 1000 + 3_600_000}-2000"
        await bus.call("XADD", inbox, mark, "none", "")  # no record: a dead letter
        for n in range(3):
            await bus.request(words.APP, words.WRITE, order("1", n), key=key, priority=Priority.HIGH, timeout=20)
        assert [cloud.tables[TABLE]["1"].get(f"m{n}") for n in range(3)] == [True] * 3
        await set_counter(world, now() + 5 * HOUR)
        assert (await (await world.proxy()).update_item(TABLE, "1", {"n": 7}))["success"]
        told = await bus.request(
            words.APP, words.WRITE, order("1", 8), key=key, priority=Priority.HIGH, timeout=20
        )  # fmt: skip
        assert "superseded" not in told.data
    assert cloud.tables[TABLE]["1"]["n"] == 8


async def test_numbers_that_records_bring_along(world: World, cloud: CloudService) -> None:
    """S-054: an older one is left out, and says so; one far ahead would freeze the item: refused."""
    await world.start()
    proxy = await world.proxy()
    assert (await proxy.put_item(TABLE, {"id": "1", "n": 1}))["success"]
    async with world.client("other") as bus:
        told = await bus.request(words.APP, words.WRITE, order("1", 2, seq=now() - HOUR), timeout=20)
        assert (told.data["superseded"], told.data["data"]["n"]) == (True, 1)
        with pytest.raises(ReplyError, match="more than a day ahead"):
            await bus.request(words.APP, words.WRITE, order("1", 3, seq=2**63 - 1), timeout=20)
        await bus.request(words.APP, words.WRITE, order("1", 4, seq=now() + HOUR), timeout=20)
    assert (await proxy.update_item(TABLE, "1", {"n": 5}))["success"]
    assert cloud.tables[TABLE]["1"]["n"] == 5


async def test_a_dead_letter_keeps_its_number(world: World, cloud: CloudService) -> None:
    """S-054: tried again it does not undo a later write, over a restart; what is remembered goes with what ends."""
    await world.start()
    proxy = await world.proxy()
    cloud.trouble = lambda call, _body: (422, b"no") if call == "setData" else None
    assert (await proxy.put_item(TABLE, {"id": "1", "n": 1}))["status"] == 422
    cloud.trouble = lambda _call, _body: None
    assert (await proxy.put_item(TABLE, {"id": "1", "n": 2}))["success"]
    await world.stop()
    handler = await world.start()
    await asyncio.sleep(0.3)
    assert len((await kept(world))[0]) == 1
    await requeue(world)
    await world.idle()
    assert cloud.tables[TABLE]["1"]["n"] == 2
    assert (handler.statistics()["superseded"], await world.dead()) == (1, [])
    async with asyncio.timeout(10):
        while await kept(world) != ({}, {words.BYTES.encode(): b"0"}):
            await asyncio.sleep(0.05)


async def test_what_was_left_behind_is_forgotten(world: World, cloud: CloudService) -> None:
    """S-054: numbers and bytes of records that ended while nobody looked; a dropped dead letter's, too."""
    await world.start()
    proxy = await world.proxy()
    cloud.trouble = lambda call, _body: (422, b"no") if call == "setData" else None
    assert (await proxy.put_item(TABLE, {"id": "1"}))["status"] == 422
    cloud.trouble = lambda _call, _body: None
    cloud.wait.clear()
    sent = asyncio.create_task(proxy.put_item(TABLE, {"id": "2"}))
    await until(lambda: cloud.writes)
    async with asyncio.timeout(10):
        while len(waiting := set((await kept(world))[1]) - {words.BYTES.encode()}) != 1:
            await asyncio.sleep(0.05)
    assert int((await kept(world))[1][words.BYTES.encode()]) > 500
    async with world.client("person") as bus:
        for letter in await bus.dead.list(words.APP):
            await bus.dead.drop(words.APP, letter.entry)
        await bus.cancel(waiting.pop().decode())
    cloud.wait.set()
    assert (await sent)["status"] == 499
    await world.stop()
    await world.start()
    async with asyncio.timeout(10):
        while await kept(world) != ({}, {words.BYTES.encode(): b"0"}):
            await asyncio.sleep(0.05)


async def test_writes_of_an_earlier_version_are_done_first(world: World, cloud: CloudService) -> None:
    """S-054, I9: they wait at priority normal, numbered; later ones of the same items come at high: all are done."""
    proxy = await world.proxy()
    async with world.client("earlier") as bus:
        for n in range(1, 4):
            for key in "abc":
                name = words.order_key(TABLE, "id", key)
                await bus.send(
                    words.APP, words.WRITE, order(key, n, seq=now()), key=name, priority=Priority.NORMAL
                )  # fmt: skip
    for key in "abc":
        assert (await proxy.update_item(TABLE, key, {"n": 9, "m9": True}))["queued"]
    await world.start()
    await world.idle()
    for key in "abc":
        item = cloud.tables[TABLE][key]
        assert (item["n"], [item.get(f"m{n}") for n in (1, 2, 3, 9)]) == (9, [True] * 4)
        assert [body["data"]["n"] for _, body in cloud.writes if body["filter_value"] == key] == [1, 2, 3, 9]
    assert await world.dead() == []


async def test_writes_of_an_earlier_version_that_were_begun(world: World, cloud: CloudService) -> None:
    """S-054, I9: one of them was under way when the earlier version went."""
    await cloud.shut()
    await world.start()
    async with world.client("earlier") as bus:
        for n in (1, 2):
            await bus.send(
                words.APP, words.WRITE, order("a", n), key=words.order_key(TABLE, "id", "a"), priority=Priority.NORMAL
            )
    assert world.handler is not None
    held = world.handler
    await until(lambda: held.statistics()["held"] == 1)
    await world.stop()
    assert (await (await world.proxy(wait=0.1)).update_item(TABLE, "a", {"n": 9}))["queued"]
    await cloud.open()
    await world.start()
    await world.idle()
    assert [body["data"]["n"] for _, body in cloud.writes] == [1, 2, 9]


async def test_questions_pass_what_waits(world: World, cloud: CloudService) -> None:
    """S-054: however many writes wait, whoever asks for the state gets an answer."""
    await cloud.shut()
    await world.start()
    await (await world.proxy()).batch_write(TABLE, [{"id": str(n)} for n in range(1600)])
    async with world.client("person") as bus:
        told = await bus.request(words.APP, words.STATUS, {}, timeout=10, priority=Priority.CRITICAL)
    assert (told.data["online"], told.data["held"]) == (False, 256)
    assert await world.waiting() == 1600


async def test_the_caller_is_told(world: World, cloud: CloudService) -> None:
    """S-054: a write that came too late says so, in each of the calls."""
    await world.start()
    proxy = await world.proxy()
    cloud.tables[TABLE] = {"1": {"id": "1", "n": 1, SEQ: now() + 30 * HOUR, BY: "m2"}}
    told = await proxy.update_item(TABLE, "1", {"n": 2})
    assert told == {"data": {"id": "1", "n": 1}, "success": True, "superseded": True}
    many = await proxy.batch_write(TABLE, [{"id": "1", "n": 3}, {"id": "2"}])
    assert (many["success"], many["superseded"], many["data"]["written"]) == (True, ["1"], ["1", "2"])
    assert cloud.tables[TABLE]["1"]["n"] == 1


async def test_a_write_of_another_machine(world: World, cloud: CloudService) -> None:
    """I4: what a proxy of another machine writes does not become an item of this one."""
    await world.start()
    told = await (await world.proxy(machine="m2")).put_item(TABLE, {"id": "1"})
    assert (told["status"], told["error_code"]) == (403, "access_denied")
    assert ("write of machine 'm2'" in told["error"], cloud.writes) == (True, [])
    assert (await (await world.proxy(machine=MACHINE)).put_item(TABLE, {"id": "1"}))["success"]
