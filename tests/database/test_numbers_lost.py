"""Numbers of writes when some were lost: who gets a new one, and what stays as old as it is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from petalbus.handlers.database import words
from petalbus.handlers.database.writes import BY, SEQ
from petalbus.schemas.vocabulary import Priority

from .conftest import MACHINE, TABLE, World, until
from .http_end import CloudService

HOUR = 3600 * 10**6


async def snapshot(world: World) -> dict[bytes, bytes]:
    """What a power cut leaves on the server's disk: all keys as they are now."""
    found: dict[bytes, bytes] = {}
    async with world.client("looker") as bus:
        cursor = b"0"
        while True:
            cursor, names = await bus.ask("SCAN", cursor, "MATCH", f"{bus.keys.prefix}*", "COUNT", 1000)
            found |= {name: value for name in names if (value := await bus.ask("DUMP", name))}
            if cursor == b"0":
                return found


async def restore(world: World, before: dict[bytes, bytes]) -> None:
    """The server comes back with that, in another run."""
    now = await snapshot(world)
    async with world.client("looker") as bus:
        for name in now:
            await bus.ask("DEL", name)
        for name, value in before.items():
            await bus.ask("RESTORE", name, 0, value, "REPLACE")
        await bus.ask("SET", f"{words.number_key(bus.keys)}:run", "another run of the server")


async def numbers(world: World) -> int:
    """Of how many records numbers are remembered."""
    async with world.client("looker") as bus:
        return int(await bus.ask("HLEN", words.numbers_key(bus.keys)))


async def test_what_waited_offline_is_older_after_a_power_cut(world: World, cloud: CloudService) -> None:
    """S-054, I9: done, then a later write, whose second the power cut took: it does not undo the later one."""
    await cloud.shut()
    handler = await world.start(first_wait=60, most_wait=60)
    proxy = await world.proxy(wait=0.2)
    assert (await proxy.put_item(TABLE, {"id": "0"}))["queued"]  # this one looks whether the cloud is there
    await until(handler.link.is_down)
    assert (await proxy.put_item(TABLE, {"id": "1", "state": "flying"}))["queued"]
    async with asyncio.timeout(10):
        while await numbers(world) < 2:
            await asyncio.sleep(0.02)
    before = await snapshot(world)
    await cloud.open()
    handler.link.look()
    await world.idle()
    done = (await (await world.proxy()).put_item(TABLE, {"id": "1", "state": "landed"}))["success"]
    assert (done, cloud.tables[TABLE]["1"]["state"]) == (True, "landed")
    await world.stop()
    await restore(world, before)
    handler = await world.start()
    await until(lambda: handler.statistics()["held"] or handler.link.successes)
    await world.idle()
    assert (cloud.tables[TABLE]["1"]["state"], handler.statistics()["superseded"]) == ("landed", 1)


async def test_the_last_numbers_are_lost_while_we_run(world: World, cloud: CloudService) -> None:
    """S-054, I9: the server lost them and nobody was started anew; of many writes at once every one is done."""
    await world.start()
    proxy = await world.proxy()
    async with world.client("looker") as bus:
        start = time.time_ns() // 1000 + HOUR
        await bus.ask("SET", words.number_key(bus.keys), start)
        for n in range(12):
            assert (await proxy.put_item(TABLE, {"id": str(n), "v": 1}))["success"]
        await bus.ask("SET", words.number_key(bus.keys), start)
    told = await asyncio.gather(*(proxy.put_item(TABLE, {"id": str(n), "v": 2}) for n in reversed(range(12))))
    assert [answer for answer in told if not answer["success"] or "superseded" in answer] == []
    assert [cloud.tables[TABLE][str(n)]["v"] for n in range(12)] == [2] * 12


async def test_numbers_are_lost_and_the_cloud_is_away_at_first(world: World, cloud: CloudService) -> None:
    """S-054, I9: an attempt that failed does not make a new number an old one."""
    cloud.tables[TABLE] = {"1": {"id": "1", "v": 1, SEQ: time.time_ns() // 1000 + HOUR, BY: MACHINE}}
    asked: list[str] = []

    def trouble(call: str, _body: Any) -> tuple[int, bytes] | None:
        asked.append(call)
        return (503, b'{"message": "not now"}') if asked.count("getData") == 1 else None

    cloud.trouble = trouble
    handler = await world.start()
    assert (await (await world.proxy()).put_item(TABLE, {"id": "1", "v": 2}))["success"]
    await world.idle()
    assert (handler.link.attempts, handler.statistics()["superseded"]) == (2, 0)
    assert cloud.tables[TABLE]["1"]["v"] == 2


async def test_a_dead_letter_after_the_server_was_replaced(world: World, cloud: CloudService) -> None:
    """S-054: it is older than what the cloud has, whatever the last number is: it is left out."""
    await world.start()
    proxy = await world.proxy()
    async with world.client("looker") as bus:
        await bus.ask("SET", words.number_key(bus.keys), time.time_ns() // 1000 + HOUR)
        cloud.trouble = lambda call, _body: (422, b"no") if call == "setData" else None
        assert (await proxy.put_item(TABLE, {"id": "1", "v": "old"}))["status"] == 422
        cloud.trouble = lambda _call, _body: None
        assert (await proxy.put_item(TABLE, {"id": "1", "v": "new"}))["success"]
        await bus.ask("DEL", words.number_key(bus.keys))
        for letter in await bus.dead.list(words.APP):
            await bus.dead.requeue(words.APP, letter.entry)
    assert world.handler is not None
    handler = world.handler
    await until(lambda: handler.statistics()["superseded"])
    assert cloud.tables[TABLE]["1"]["v"] == "new"
    assert "superseded" not in await proxy.put_item(TABLE, {"id": "1", "v": "newer"})
    assert cloud.tables[TABLE]["1"]["v"] == "newer"


async def test_a_refused_write_has_a_number(world: World, cloud: CloudService) -> None:
    """S-054: one that was refused before the cloud was asked does not undo a later one when it is tried again."""
    handler = await world.start()
    proxy = await world.proxy()
    async with world.client("person") as bus:
        data = {"table": TABLE, "key": {"id": "1"}, "operation": "put", "item": {"v": "old"}, "machine": "m2"}
        await bus.send(words.APP, words.WRITE, data, key=words.order_key(TABLE, "id", "1"), priority=Priority.HIGH)
        async with asyncio.timeout(10):
            while not await world.dead():
                await asyncio.sleep(0.02)
        assert (await proxy.put_item(TABLE, {"id": "1", "v": "new"}))["success"]
        handler._machine = lambda: "m2"  # the vehicle's id was set right
        cloud.tables[TABLE]["1"] |= {"robot_instance_id": "m2", BY: "m2"}
        await bus.dead.requeue(words.APP, (await bus.dead.list(words.APP))[0].entry)
        await until(lambda: handler.statistics()["superseded"])
    assert cloud.tables[TABLE]["1"]["v"] == "new"


async def test_a_number_that_was_brought_along_twice(world: World, cloud: CloudService) -> None:
    """S-054, I4: under two ids it is one write; one that was done, but whose result was lost, is no conflict."""
    await world.start()
    seq = time.time_ns() // 1000
    cloud.tables[TABLE] = {"2": {"id": "2", "n": 1, "robot_instance_id": MACHINE, SEQ: seq, BY: MACHINE}}
    async with world.client("other") as bus:

        async def write(key: str, **more: Any) -> Any:
            data = {"table": TABLE, "key": {"id": key}, "operation": "update", "item": {"n": 1}, "seq": seq}
            return (await bus.request(words.APP, words.WRITE, data | more, timeout=20)).data

        assert "repeated" not in await write("1")
        assert (await write("1"))["repeated"] is True
        assert (await write("2", condition={"n": 0}))["repeated"] is True
    assert (len(cloud.writes), cloud.tables[TABLE]["1"][SEQ], await world.dead()) == (1, seq, [])
