"""Above the memory ceiling: what is on its way is finished, nobody is declared dead, consumers come back and drain."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusFull, BusUnavailable
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status

from support.servers import RealServer, poll_until


class Member:
    """A member of the app; ``go`` lets its handlers finish."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.go = asyncio.Event()
        self.runs = Counter[str]()

        @bus.on("n", concurrency=None, redelivery="rerun")
        async def handle(record: Record) -> dict[str, bool]:
            self.runs[record.id] += 1
            await self.go.wait()
            return {"ok": True}


def full(server: RealServer) -> None:
    """The ceiling is reached. (Clients have room of their own, or the server would throw them out one after
    the other.)
    """
    server.command("CONFIG", "SET", "maxmemory-clients", "0", "maxmemory", "1")


async def test_at_the_ceiling_work_is_finished_and_sends_are_refused(
    own_clients: Clients, own_server: RealServer
) -> None:
    """I5, I6: commits, replies, dead letters and heartbeats pass; new records do not; nobody is taken for dead."""
    members = [Member(own_clients.make("app")) for _ in range(2)]
    for member in members:
        await member.bus.start()
    gcs = await own_clients.open("gcs")
    for number in range(8):
        await gcs.send("app", "n", {}, id=f"m{number}", key=f"k{number}")
    await until(lambda: sum(len(member.runs) for member in members) == 8, "all run")
    full(own_server)
    with pytest.raises(BusFull):
        await gcs.send("app", "n", {})
    await asyncio.sleep(2.0)  # longer than a lease: who cannot beat would be dead now
    for member in members:
        member.go.set()
    for number in range(8):
        await until(lambda one=f"m{number}": _status(gcs, one, Status.COMPLETED), f"m{number} is completed")
        assert len(await replies_to(gcs, f"m{number}")) == 1
    assert members[0].runs + members[1].runs == {f"m{number}": 1 for number in range(8)}
    assert [member.bus.statistics()["consumer"]["taken_over"] for member in members] == [0, 0]
    assert [member.bus.statistics()["consumer"]["fenced"] for member in members] == [0, 0]


async def test_at_the_ceiling_consumers_come_back_and_drain(own_clients: Clients, own_server: RealServer) -> None:
    """I5: a consumer that lost its connections, and one that starts anew, can both work the backlog off."""
    first = Member(own_clients.make("app"))
    first.go.set()
    await first.bus.start()
    gcs = await own_clients.open("gcs")
    for number in range(50):
        await gcs.request("app", "n", {}, id=f"a{number}")
    await first.bus.close()
    await asyncio.gather(*(gcs.send("app", "n", {}, id=f"b{number}") for number in range(100)))
    full(own_server)
    second = Member(own_clients.make("app"))
    second.go.set()
    await second.bus.start()
    own_server.command("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: len(second.runs) == 100, "the backlog is worked off")
    await until(lambda: _drained(gcs), "all are settled")
    own_server.command("CONFIG", "SET", "maxmemory", "0")
    await gcs.request("app", "n", {}, id="c")


async def _status(bus: Bus, message_id: str, status: Status) -> bool:
    return await bus.status(message_id) is status


async def _drained(gcs: Bus) -> bool:
    return await pending(gcs, "app") == 0


async def test_a_dead_letter_can_be_mended_once_there_is_room_again(
    own_clients: Clients, own_server: RealServer
) -> None:
    """A requeue at the ceiling either works or leaves the letter where it was: never neither."""
    app, gcs = own_clients.make("app", max_attempts=1), await own_clients.open("gcs")

    @app.on("n")
    async def handle(record: Record) -> None:
        if not record.data.get("ok"):
            raise OSError("no")

    await app.start()
    await gcs.send("app", "n", {}, id="d1")
    await until(lambda: _status(gcs, "d1", Status.FAILED), "it is buried")
    (letter,) = await gcs.dead.list("app")
    full(own_server)
    try:
        await gcs.dead.requeue("app", letter.entry, data={"ok": True})
    except BusFull:
        assert [one.record.id for one in await gcs.dead.list("app")] == ["d1"]
        own_server.command("CONFIG", "SET", "maxmemory", "0")
        await gcs.dead.requeue("app", letter.entry, data={"ok": True})
    await until(lambda: _status(gcs, "d1", Status.COMPLETED), "it ran")


async def test_a_disk_that_cannot_be_written_is_waited_out(own_clients: Clients, own_server: RealServer) -> None:
    """I1, I6: MISCONF: sends say that nothing was stored; finished work is settled when the disk is back,
    nobody died.
    """
    members = [Member(own_clients.make("app")) for _ in range(2)]
    for member in members:
        await member.bus.start()
    gcs = await own_clients.open("gcs")
    for number in range(8):
        await gcs.send("app", "n", {}, id=f"m{number}", key=f"k{number}")
    await until(lambda: sum(len(member.runs) for member in members) == 8, "all run")
    _break_disk(own_server)
    with pytest.raises(BusUnavailable, match="cannot write to its disk"):
        await gcs.send("app", "n", {})
    for member in members:
        member.go.set()
    await asyncio.sleep(2.0)
    _mend_disk(own_server)
    for number in range(8):
        await until(lambda one=f"m{number}": _status(gcs, one, Status.COMPLETED), f"m{number} is completed")
        assert len(await replies_to(gcs, f"m{number}")) == 1
    assert members[0].runs + members[1].runs == {f"m{number}": 1 for number in range(8)}
    assert [member.bus.statistics()["consumer"]["taken_over"] for member in members] == [0, 0]


def _break_disk(server: RealServer) -> None:
    """Make the server refuse writes as it does when its disk is full: its last snapshot could not be written."""
    (server.paths.server_dir / "dump.rdb").mkdir()
    server.command("CONFIG", "SET", "save", "3600 1", "stop-writes-on-bgsave-error", "yes")
    server.command("BGSAVE")
    poll_until(lambda: server.command("INFO", "persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails")


def _mend_disk(server: RealServer) -> None:
    (server.paths.server_dir / "dump.rdb").rmdir()
    server.command("BGSAVE")
    poll_until(lambda: server.command("INFO", "persistence")["rdb_last_bgsave_status"] == "ok", "the snapshot succeeds")
