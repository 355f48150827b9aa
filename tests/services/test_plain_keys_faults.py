"""Plain keys while things break: the bridge is killed, the server is restarted, programs come and go."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import redis.asyncio

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status

from .plain_program import APP, CONTROL, Program, bridging
from support.procs import Child, Children
from support.servers import RealServer

EACH_WAY = 500
BRIDGE = """
import asyncio, sys
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.services import Ingest, PlainKeys, PlainOptions

async def main():
    async with Bus(sys.argv[1], app="petalbus") as bus:
        print("ready", flush=True)
        plain = PlainKeys(bus, options=PlainOptions(look_every=0.1, ceiling=100))
        await asyncio.gather(Ingest(bus).run(), plain.run())

asyncio.run(main())
"""


@pytest.fixture
def bus_server(own_server: RealServer) -> RealServer:
    """A server of the test's own: plain keys have no name of the bus in them."""
    return own_server


@pytest.fixture
def bus_name() -> str:
    return "petalbus"


async def bridge_process(children: Children, server: RealServer) -> Child:
    child = await children.code(BRIDGE, server.url)
    await child.line("ready")
    return child


async def test_five_hundred_messages_each_way_while_the_bridge_is_killed(
    own_server: RealServer, clients: Clients, keys: redis.asyncio.Redis, children: Children
) -> None:
    """S-084, S-085, S-089, S-155, I1, I2: kill -9 in the middle, twice: none lost, none twice."""
    control = clients.make(CONTROL)
    got: list[int] = []

    @control.on("n")
    async def handle(record: Record) -> None:
        got.append(record.data["n"])

    await control.start()
    program = Program(keys)
    bridge = await bridge_process(children, own_server)

    async def outwards() -> None:
        for number in range(EACH_WAY):
            await control.send(APP, "n", {"n": number})
            if number % 10 == 0:
                await asyncio.sleep(0.01)

    async def inwards() -> None:
        for number in range(EACH_WAY):
            await program.send("n", {"n": number})
            if number % 10 == 0:
                await asyncio.sleep(0.01)

    async with program.running():
        sending = asyncio.gather(outwards(), inwards())
        for some in (50, 200):
            await until(lambda some=some: len(program.got) > some and len(got) > some, "some have come", seconds=20)
            bridge.kill()
            await bridge.wait()
            bridge = await bridge_process(children, own_server)
        await sending
        await until(lambda: len(program.got) >= EACH_WAY and len(got) >= EACH_WAY, "all have come", seconds=20)
        # the last word: whatever would come twice has come by the time that this one is there
        await control.send(APP, "n", {"n": -1})
        await program.send("n", {"n": -1})
        await until(lambda: got[-1] == -1 and program.got[-1]["payload"]["n"] == -1, "the last ones come")
    assert got[:-1] == list(range(EACH_WAY))
    assert sorted(message["payload"]["n"] for message in program.got) == [-1, *range(EACH_WAY)]


async def test_a_restart_of_the_server_loses_nothing(
    own_server: RealServer, clients: Clients, bus: Bus, keys: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """S-133, I1: kill -9 of the server between a program's message and its reply."""
    caplog.set_level("CRITICAL")
    control = clients.make(CONTROL)
    await control.start()
    program = Program(keys, answer=lambda _: {"status": "success"})
    await program.announce()
    async with bridging(bus) as bridge:
        await until(lambda: APP in bridge.statistics()["programs"], "the program is served")
        asking = asyncio.create_task(control.request(APP, "command", {"command": "takeoff"}, timeout=15))
        await until(lambda: bridge.counts["handed"] == 1, "it is handed over")
        await asyncio.to_thread(own_server.restart)
        async with program.running():
            assert (await asking).data == {"status": "success"}
            for number in range(20):
                reply = await control.request(APP, "command", {"command": f"c{number}"}, timeout=5)
                assert reply.data == {"status": "success"}
        assert len(program.got) == 21


async def test_a_message_that_was_added_and_not_removed_is_handled_once(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """I2: what a crash between the two steps leaves in the set is known by its id, and goes."""
    control = clients.make(CONTROL)
    got: list[Record] = []

    @control.on("ping")
    async def handle(record: Record) -> None:
        got.append(record)

    await control.start()
    program = Program(keys)
    async with bridging(bus):
        sent = await program.send("ping", {}, message_id="m1")
        await until(lambda: got, "it is handled")
        message = {"id": sent, "sender": APP, "recipient": CONTROL, "message_type": "ping", "payload": {}}
        await keys.zadd(f"queue:{CONTROL}:inbox", {json.dumps(message): 1})
        await program.send("ping", {}, message_id="m2")
        await until(lambda: len(got) == 2, "the next one is handled")
        assert await keys.zcard(f"queue:{CONTROL}:inbox") == 0
    assert [record.id for record in got] == ["m1", "m2"]


async def test_a_message_that_was_handed_over_and_not_acknowledged_is_handed_over_once(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """I2: what the marker beside the queue is for; here the acknowledgement is taken back as a crash would lose it."""
    control = clients.make(CONTROL)
    await control.start()
    program = Program(keys)
    await program.announce()
    receipt = await control.send(APP, "n", {"n": 1})
    inbox = bus.keys.inbox(APP, 2)
    async with bridging(bus) as bridge:
        await until(lambda: bridge.counts["handed"] == 1, "it is handed over")
        assert await program.take() is not None
        # a consumer that died with the entry in its hands, and of which nobody knows that it had finished
        await bus.call("HSET", bus.keys.ids, receipt.id, f"q{receipt.stream_id}|2|{APP}|{CONTROL}")
    await bus.call("XGROUP", "SETID", inbox, "inbox", "0")
    async with bridging(bus) as bridge:
        await control.send(APP, "n", {"n": 2})
        await until(lambda: bridge.counts["handed"] == 2, "both have passed")
        message = await program.take()
        assert message is not None
        assert message["payload"] == {"n": 2}
        assert await program.take() is None
        assert await control.status(receipt.id) is Status.DELIVERED


async def test_a_program_that_goes_offline_gets_its_messages_when_it_is_back(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-092, S-118: offline: they wait on the bus. What lay in its queue is its own, also for a bridge started anew."""
    control = clients.make(CONTROL)
    await control.start()
    program = Program(keys)
    await program.announce()
    async with bridging(bus) as bridge:
        await control.send(APP, "n", {"n": 0})
        await until(lambda: bridge.counts["handed"] == 1, "the first is handed over")
        await program.announce("offline")
        await until(lambda: not bridge.statistics()["programs"], "it is not served any more")
        await control.send(APP, "n", {"n": 1})
    async with bridging(bus) as bridge:
        await _looked(bridge, bus)
        assert await keys.zcard(f"queue:{APP}:inbox") == 1
        await program.announce()
        await until(lambda: bridge.counts["handed"] == 1, "the second is handed over")
    assert [(await program.take() or {})["payload"]["n"] for _ in range(2)] == [0, 1]


async def test_a_program_that_joins_the_bus_is_left_to_it(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-085: its own heartbeat on the bus moves: then it reads its inbox itself, and its plain queue is read for it."""
    control = clients.make(CONTROL)
    await control.start()
    program = Program(keys)
    await program.announce()
    async with bridging(bus) as bridge:
        await until(lambda: APP in bridge.statistics()["programs"], "it is served")
        native = clients.make(APP)
        got: list[Any] = []

        @native.on("n")
        async def handle(record: Record) -> None:
            got.append(record.data["n"])

        await native.start()
        await until(lambda: not bridge.statistics()["programs"], "it is left alone")
        await control.send(APP, "n", {"n": 1})
        await until(lambda: got == [1], "it reads its inbox itself")
        await program.send("n", {"n": 2}, recipient=APP)
        await until(lambda: got == [1, 2], "its plain queue is read for it")
        await native.close()
        await until(lambda: APP in bridge.statistics()["programs"], "it is served again")


async def test_a_key_of_another_type_in_the_way_stops_nobody_else(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """S-089, I8: queues, hashes and statuses that are something else: told, and the others go on."""
    caplog.set_level("WARNING")
    other, got = clients.make("other"), []

    @other.on("ping")
    async def handle(record: Record) -> None:
        got.append(record)

    control = clients.make(CONTROL)
    await other.start()
    await control.start()
    await keys.set("status:stranger", "online")
    await keys.lpush(f"queue:{CONTROL}:inbox", "x")
    program = Program(keys)
    await program.announce()
    await keys.set("message:m1", "something")
    await keys.set(f"queue:{APP}:outbox", "something")
    async with bridging(bus) as bridge:
        await until(lambda: CONTROL in bridge.statistics()["unreadable"], "the list is told")
        message = {"id": "m1", "sender": APP, "recipient": "other", "message_type": "ping", "payload": {}}
        await keys.zadd("queue:other:inbox", {json.dumps(message): 1})
        await until(lambda: got, "the other's message is handled")
        await control.send(APP, "n", {"n": 1}, id="m1x")
        await until(lambda: bridge.counts["handed"] == 1, "a message goes out")
        assert bridge.statistics()["last_error"] is None
    assert any(f"queue:{CONTROL}:inbox" in record.getMessage() for record in caplog.records)


async def test_without_any_program_it_does_next_to_nothing(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """A look a second is a handful of reads; nothing is written but what is shown of the bus's own applications."""
    await clients.open(CONTROL)
    async with bridging(bus, look_every=0.2):
        await _shown(keys)
        before = await keys.info("commandstats")
        begin = time.monotonic()
        await asyncio.sleep(1.0)  # what is measured is a span of time
        after = await keys.info("commandstats")
        looks = (time.monotonic() - begin) / 0.2
    calls = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in after
        if name not in ("cmdstat_info", "cmdstat_evalsha", "cmdstat_hincrby", "cmdstat_hset", "cmdstat_sadd")
    }
    assert sum(calls.values()) <= 8 * (looks + 1), calls


async def test_it_can_be_switched_off(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    program = Program(keys)
    await clients.open(CONTROL)
    await program.announce()
    async with bridging(bus, enabled=False) as bridge:
        await program.send("ping", {})
        assert bridge.statistics()["enabled"] is False
        assert not await keys.exists(f"status:{CONTROL}")
    assert await keys.zcard(f"queue:{CONTROL}:inbox") == 1


async def _shown(keys: redis.asyncio.Redis) -> None:
    async def there() -> bool:
        return bool(await keys.exists(f"status:{CONTROL}"))

    await until(there, "the application is shown")


async def _looked(bridge: Any, bus: Bus) -> None:
    """Wait until the bridge has looked a few times."""
    for _ in range(3):
        looked = bridge._looked_at
        await until(lambda looked=looked: bridge._looked_at > looked, "it looks")
