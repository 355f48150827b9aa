"""Stopped, busy and cut-off consumers: the dead are relieved in time, the slow never, and who comes back does
no harm.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.clients import until
from chaos.world import World, finals, lag, settled, stats, status_is, the_reply
from petalbus.daemon.bus.errors import ReplyError
from petalbus.schemas.vocabulary import ReplyKind, Status

from support.procs import Child
from support.proxy import Proxy

pytestmark = pytest.mark.processes


async def runner_of(members: list[Child], message_id: str) -> Child:
    """The member that runs a record."""

    def found() -> list[Child]:
        return [member for member in members if any(line.startswith(f"start {message_id} ") for line in member.output)]

    await until(found, f"{message_id} runs")
    return found()[0]


async def test_a_stopped_consumer_is_relieved_and_fenced_when_it_comes_back(world: World) -> None:
    """I6: SIGSTOP in the middle of `rerun` work: taken over within 2 s; after SIGCONT it changes nothing: one reply."""
    members = [await world.member(), await world.member()]
    gcs = await world.sender()
    await gcs.send("app", "rerun", {"hold": True}, id="m1")
    frozen = await runner_of(members, "m1")
    other = members[1 - members.index(frozen)]
    async with lag() as late:
        begun = time.monotonic()
        frozen.freeze()
        await other.line("^start m1 2", timeout=5)
        took = time.monotonic() - begun
    assert took < 2.0 + late[0], f"{took:.2f} s"
    world.go()
    reply = await the_reply(gcs, "m1")
    assert reply.data["by"] == other.pid
    frozen.thaw()
    await frozen.line("^end m1")
    await until(lambda: _fenced(frozen, 1), "it has noticed")
    assert [record.data["by"] for record in await finals(gcs, "m1")] == [other.pid]
    assert await gcs.status("m1") is Status.COMPLETED
    await _both_work(world, members)


async def _fenced(member: Child, times: int) -> bool:
    return bool((await stats(member))["fenced"] >= times)


async def _both_work(world: World, members: list[Child]) -> None:
    """New records are handled, none is stuck at the one that was fenced, and both take part."""
    gcs = await world.sender("after")
    names = [f"new{number}" for number in range(250)]  # more than one of them reads ahead
    await asyncio.gather(
        *(
            gcs.send("app", ("rerun", "report")[number % 2], {"pause": 0.005}, id=name, key=f"k{number}")
            for number, name in enumerate(names)
        )
    )
    workers = {(await the_reply(gcs, name)).data["by"] for name in names}
    assert workers == {member.pid for member in members}
    await settled(gcs)


async def test_a_stopped_consumer_of_work_that_must_not_run_twice(world: World) -> None:
    """I2, I6: `report`: one error reply says that nobody knows; the one that comes back is not heard any more."""
    members = [await world.member(), await world.member()]
    gcs = await world.sender()
    asking = asyncio.create_task(gcs.request("app", "report", {"hold": True}, id="m1", timeout=15), name="asking")
    frozen = await runner_of(members, "m1")
    frozen.freeze()
    with pytest.raises(ReplyError) as unknown:
        await asking
    assert unknown.value.error_code == "OUTCOME_UNKNOWN"
    world.go()
    frozen.thaw()
    await frozen.line("^end m1")
    await _both_work(world, members)
    assert [record.kind for record in await finals(gcs, "m1")] == [ReplyKind.ERROR]
    assert world.effects()["m1"] == 1
    assert await gcs.status("m1") is Status.FAILED


async def test_a_record_that_reaches_a_stopped_consumer_late_is_relieved_too(world: World) -> None:
    """I6: the server still delivers to the read that the dead one left behind: that record waits no 2 s either."""
    frozen = await world.member("block=20.0")
    other = await world.member("block=20.0")
    gcs = await world.sender()
    await gcs.send("app", "rerun", {}, id="m0")
    await the_reply(gcs, "m0")
    frozen.freeze()

    async def forgotten() -> bool:
        return int(await gcs.call("HLEN", gcs.keys.beats)) == 2  # the other member's, and ours

    await until(forgotten, "it is declared dead")
    for number in range(1, 5):
        async with lag() as late:
            begun = time.monotonic()
            await gcs.send("app", "rerun", {}, id=f"m{number}")
            await other.line(f"^start m{number} ", timeout=6)
            took = time.monotonic() - begun
        assert took < 2.0 + late[0], f"m{number} waited {took:.2f} s"
    frozen.thaw()
    await _both_work(world, [frozen, other])


async def test_a_busy_consumer_is_not_taken_for_dead(world: World) -> None:
    """I6: a handler that keeps the loop busy for 4 s, on each of two members: nothing is taken over, nothing
    runs twice.
    """
    members = [await world.member(), await world.member()]
    gcs = await world.sender()
    await gcs.send("app", "rerun", {"spin": 4.0}, id="spin0", key="s0")
    first = await runner_of(members, "spin0")
    await gcs.send("app", "report", {"spin": 1.5}, id="spin1", key="s1")
    for number in range(10):
        await gcs.send("app", "rerun", {}, id=f"m{number}", key=f"k{number}")
    for name in ("spin0", "spin1", *(f"m{number}" for number in range(10))):
        assert (await the_reply(gcs, name)).kind is ReplyKind.RESULT
    effects = world.effects()
    assert set(effects.values()) == {1}
    for member in members:
        assert (await stats(member))["taken_over"] == 0
        assert (await stats(member))["fenced"] == 0
    assert first.returncode is None


async def test_a_frozen_server_makes_nobody_dead(own_world: World) -> None:
    """I6: the server stands still for 3 s while both members work: all go on where they were."""
    members = [await own_world.member(), await own_world.member()]
    gcs = await own_world.sender()
    for number in range(4):
        await gcs.send("app", ("rerun", "report")[number % 2], {"hold": True}, id=f"m{number}", key=f"k{number}")
    await until(lambda: len(own_world.effects()) == 4, "all run")
    own_world.server.freeze()
    await asyncio.sleep(3.0)
    own_world.server.thaw()
    own_world.go()
    for number in range(4):
        assert (await the_reply(gcs, f"m{number}")).kind is ReplyKind.RESULT
    assert set(own_world.effects().values()) == {1}
    for member in members:
        assert (await stats(member))["taken_over"] == 0


async def test_a_consumer_that_is_cut_off_from_the_server_is_relieved(world: World) -> None:
    """I6: alive, but its wire is dead: its work is taken over; when the wire is back it is fenced and starts anew."""
    async with Proxy(world.clients.url) as proxy:
        cut_off = await world.member(url=proxy.url)
        gcs = await world.sender()
        await gcs.send("app", "rerun", {"hold": True}, id="m1")
        await cut_off.line("^start m1 1")
        other = await world.member()
        proxy.stall()
        async with lag() as late:
            begun = time.monotonic()
            await other.line("^start m1 2", timeout=6)
            took = time.monotonic() - begun
        assert took < 2.0 + late[0], f"{took:.2f} s"
        world.go()
        assert (await the_reply(gcs, "m1")).data["by"] == other.pid
        proxy.cut()
        proxy.resume()
        await until(lambda: _fenced(cut_off, 1), "it has noticed")
        await _both_work(world, [cut_off, other])
        assert len(await finals(gcs, "m1")) == 1


async def test_both_ends_stop_and_come_back(world: World) -> None:
    """I2: requester and handler are both stopped for longer than a lease, with nobody else there: nothing is
    doubled.
    """
    member = await world.member()
    gcs = await world.sender()
    await gcs.send("app", "rerun", {"hold": True}, id="m1")
    await member.line("^start m1 1")
    member.freeze()
    await asyncio.sleep(2.0)
    member.thaw()
    world.go()
    assert (await the_reply(gcs, "m1")).data["by"] == member.pid
    await status_is(gcs, "m1", Status.COMPLETED)
    assert world.effects() == {"m1": 1}
    assert (await stats(member))["fenced"] == 0
