"""kill -9 between read, effect, append and acknowledge: what is promised holds at every place."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from bus.clients import pending, until
from chaos.world import World, finals, lag, settled, stats, status_is, the_reply
from petalbus.daemon.bus.errors import ReplyError
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind, Status

from support.procs import Child

pytestmark = pytest.mark.processes

PRODUCER = """
import asyncio, sys, petalbus
async def main(url, bus, first, last):
    async with petalbus.connect(url, app="gcs", bus=bus) as gcs:
        print("ready", flush=True)
        for number in range(int(first), int(last)):
            receipt = await gcs.send("app", "rerun", {"n": number}, id=f"m{number}")
            print("sent", receipt.id, receipt.stream_id, receipt.duplicate, flush=True)
    print("finished", flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_consumer_dies_around_the_effect_of_rerun_work(world: World, where: str) -> None:
    """I1, I2, I6: `rerun`: the successor runs it again within 2 s; one reply; the effect at least once."""
    gcs = await world.sender()
    first = await world.member()
    await gcs.send("app", "rerun", {"die": where}, id="m1")
    assert await first.wait() == -9
    died = time.monotonic()
    async with lag() as late:
        second = await world.member()
        assert await second.line("^start m1") == "start m1 2"
        took = time.monotonic() - died
    reply = await the_reply(gcs, "m1")
    assert (reply.kind, reply.data["by"]) == (ReplyKind.RESULT, second.pid)
    assert world.effects() == {"m1": 1 if where == "before" else 2}
    assert took < 3.0 + late[0], "a start of a process, and a lease"
    await settled(gcs)


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_consumer_dies_around_the_effect_of_work_that_must_not_run_twice(world: World, where: str) -> None:
    """I2: `report`: the successor does not run it: exactly one reply, an error that says that nobody knows."""
    gcs = await world.sender()
    first, second = await world.member(), await world.member()
    asking = asyncio.create_task(gcs.request("app", "report", {"die": where}, id="m1", timeout=15), name="asking")
    with pytest.raises(ReplyError) as unknown:
        await asking
    assert unknown.value.error_code == "OUTCOME_UNKNOWN"
    await settled(gcs)
    assert len(await finals(gcs, "m1")) == 1
    assert world.effects()["m1"] == (0 if where == "before" else 1)
    assert await gcs.status("m1") is Status.FAILED
    (letter,) = await gcs.dead.list("app")
    assert (letter.reason, letter.record.id) == ("outcome unknown", "m1")
    survivor = second if first.returncode is not None else first
    assert (await gcs.request("app", "report", {}, id="m2")).data["by"] == survivor.pid


async def test_a_dead_consumers_work_is_taken_over_within_two_seconds(world: World) -> None:
    """I6: kill -9 of a member with many records in hand, twice: the sibling starts each within 2 s, and each
    once more.
    """
    gcs = await world.sender()
    for turn in range(2):
        first, second = await world.member("workers=1"), await world.member()
        names = [f"t{turn}m{number}" for number in range(20)]
        for number, name in enumerate(names):
            await gcs.send("app", "rerun", {"hold": number == 0 or None}, id=name, key=f"k{number}")
        await until(lambda names=names: world.effects().keys() & set(names), "something runs")
        victim, survivor = await _holder(first, second, names[0])
        async with lag() as late:
            begun = time.monotonic()
            victim.kill()
            await survivor.line(f"^start {names[0]} 2", timeout=5)
            took = time.monotonic() - begun
        assert took < 2.0 + late[0], f"{took:.2f} s"
        world.go()
        for name in names:
            assert (await the_reply(gcs, name)).kind is ReplyKind.RESULT
        await settled(gcs)
        survivor.kill()
        await survivor.wait()
        world.effects_file.with_suffix(".go").unlink()


async def _holder(first: Child, second: Child, message_id: str) -> tuple[Child, Child]:
    """Who runs it, and the other."""
    lines = (f"start {message_id} 1" in first.output, f"start {message_id} 1" in second.output)
    while not any(lines):
        await asyncio.sleep(0.005)
        lines = (f"start {message_id} 1" in first.output, f"start {message_id} 1" in second.output)
    return (first, second) if lines[0] else (second, first)


async def test_a_consumer_dies_while_it_settles(world: World) -> None:
    """I2: kill -9 at many moments after the handler returned: committed or not, there is one reply, and it is
    a result.
    """
    gcs = await world.sender()
    delays = [0.0, 0.0, 0.0001, 0.0003, 0.0006, 0.001, 0.002]
    for number, delay in enumerate(delays):
        members = [await world.member("dead_after=0.5", "heartbeat=0.1") for _ in range(1)]
        await gcs.send("app", "rerun", {"settle": delay, "n": number}, id=f"m{number}")
        assert await members[0].wait() == -9
    await world.member("dead_after=0.5", "heartbeat=0.1")
    for number in range(len(delays)):
        reply = await the_reply(gcs, f"m{number}")
        assert (reply.kind, reply.data["n"]) == (ReplyKind.RESULT, number)
        assert await gcs.status(f"m{number}") is Status.COMPLETED
    await settled(gcs)
    for number in range(len(delays)):
        assert len(await finals(gcs, f"m{number}")) == 1
        assert 1 <= world.effects()[f"m{number}"] <= 2


async def test_a_poison_record_is_buried_once_and_the_innocent_are_not(world: World) -> None:
    """I8: it kills its process each time: after its attempts one dead letter; those read behind it are handled."""
    gcs = await world.sender()
    for number in range(10):
        await gcs.send("app", "rerun", {"n": number}, id=f"i{number}")
    await gcs.send("app", "rerun", {"die": "before", "always": True}, id="poison")
    for number in range(10, 20):
        await gcs.send("app", "rerun", {"n": number}, id=f"i{number}")
    deaths = 0
    while True:
        child = await world.member("dead_after=0.4", "heartbeat=0.1", "max_attempts=3")
        done = asyncio.ensure_future(child.wait(timeout=20))
        buried = asyncio.ensure_future(status_is(gcs, "poison", Status.FAILED, seconds=20))
        await asyncio.wait([done, buried], return_when=asyncio.FIRST_COMPLETED)
        if buried.done():
            done.cancel()
            break
        buried.cancel()
        deaths += 1
        assert deaths <= 3, "one death for each attempt"
    assert deaths == 3
    for number in range(20):
        assert (await the_reply(gcs, f"i{number}")).data["n"] == number
    await settled(gcs)
    (letter,) = await gcs.dead.list("app")
    assert (letter.record.id, letter.reason, letter.attempts) == ("poison", "attempts", 4)
    assert "died 3 times" in letter.detail
    assert [record.data["error_code"] for record in await finals(gcs, "poison")] == ["ATTEMPTS_EXHAUSTED"]
    effects = world.effects()
    assert effects["poison"] == 0
    assert max(effects.values()) <= 1 + deaths, "only what was not yet settled when the process died ran again"


async def test_the_innocent_that_run_beside_a_poison_record_survive_it(world: World) -> None:
    """I8: long work that is under way each time the process is killed is not blamed for it: only the poison is
    buried.
    """
    gcs = await world.sender()
    for number in range(3):
        await gcs.send("app", "rerun", {"n": number, "pause": 0.3}, id=f"long{number}", key=f"k{number}")
    await gcs.send("app", "rerun", {"die": "before", "always": True}, id="poison", key="p")
    for _ in range(12):
        child = await world.member("dead_after=0.4", "heartbeat=0.1", "max_attempts=3")
        done = asyncio.ensure_future(child.wait(timeout=20))
        finished = asyncio.ensure_future(status_is(gcs, "poison", Status.FAILED, seconds=20))
        await asyncio.wait([done, finished], return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            done.cancel()
            break
        finished.cancel()
    for number in range(3):
        assert (await the_reply(gcs, f"long{number}")).kind is ReplyKind.RESULT
    assert [letter.record.id for letter in await gcs.dead.list("app")] == ["poison"]


async def test_a_producer_dies_and_starts_over(world: World) -> None:
    """I1, I2: what it was told is stored is stored, once; its successor sends everything again and doubles nothing."""
    gcs = await world.sender("looking", presence=False)
    acknowledged: dict[str, str] = {}
    for stop_after in (40, 160):
        producer = await world.children.code(PRODUCER, world.clients.url, world.clients.bus, "0", "300")
        await producer.line(f"^sent m{stop_after} ")
        producer.kill()
        await producer.wait()
        acknowledged |= _receipts(producer)
    last = await world.children.code(PRODUCER, world.clients.url, world.clients.bus, "0", "300")
    assert await last.wait() == 0
    receipts = _receipts(last)
    assert acknowledged.items() <= receipts.items(), "the first receipt's stream id is the one for good"
    rows = await gcs.call("XRANGE", gcs.keys.inbox("app", 2), "-", "+")
    stored = [Record.from_fields(fields) for _, fields in rows]
    assert [record.data["n"] for record in stored] == list(range(300)), "each once, in order"
    assert [entry.decode() for entry, _ in rows] == [receipts[record.id] for record in stored]


def _receipts(producer: Child) -> dict[str, str]:
    lines = [line.split() for line in producer.output if line.startswith("sent ") and len(line.split()) == 4]
    return {words[1]: words[2] for words in lines}


async def test_the_server_dies_while_handlers_run(own_world: World) -> None:
    """I1, I2: kill -9 of the server, 1 s away, twice, in the middle of work of both kinds: all is settled
    once, run once.
    """
    members = [await own_world.member() for _ in range(2)]
    gcs = await own_world.sender()
    ids = []
    for number in range(120):
        kind = ("rerun", "report")[number % 2]
        ids.append(f"m{number}")
        await gcs.send("app", kind, {"n": number, "pause": 0.02}, id=ids[-1], key=f"k{number % 16}")
        if number in (40, 90):
            own_world.server.kill()
            await asyncio.sleep(1.0)
            own_world.server.start()
    for number, one in enumerate(ids):
        reply = await the_reply(gcs, one)
        assert (reply.kind, reply.data["n"]) == (ReplyKind.RESULT, number)
    await settled(gcs)
    assert own_world.effects() == dict.fromkeys(ids, 1), "nobody was declared dead while the server was away"
    for one in ids:
        assert len(await finals(gcs, one)) == 1
    counts = [(await stats(member))["fenced"] for member in members]
    assert counts == [0, 0]


async def test_everybody_dies_at_once(own_world: World) -> None:
    """I1: server, producer and consumers killed together: what was acknowledged is there when they come back."""
    member = await own_world.member()
    producer = await own_world.children.code(PRODUCER, own_world.clients.url, own_world.clients.bus, "0", "2000")
    await producer.line("^sent m300 ")
    for victim in (member, producer):
        victim.kill()
    own_world.server.kill()
    await producer.wait()
    own_world.server.start()
    acknowledged = _receipts(producer)
    await own_world.member()
    gcs = await own_world.sender()
    for one in acknowledged:
        await status_is(gcs, one, Status.COMPLETED)
    await settled(gcs)
    effects = own_world.effects()
    assert acknowledged.keys() <= effects.keys()
    assert await pending(gcs, "app") == 0
    stored = await gcs.call("XLEN", gcs.keys.inbox("app", 2))
    assert len(acknowledged) <= stored <= len(acknowledged) + 1, "at most the one whose receipt was under way is more"
    assert Counter(effects.values())[1] >= stored - 64, "only what was in hand may have run twice"
