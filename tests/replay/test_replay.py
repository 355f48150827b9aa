"""Replay: recorded history comes into a fresh bus as it was: ids, order, fields, at the pace asked for."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import tracemalloc
from pathlib import Path

import pytest

import petalbus.daemon.connect
from bus.clients import Clients, until
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.replay import NoHistory, ReplayError, ReplayProgress, ReplayRefused, replay
from petalbus.daemon.server.discover import announce, withdraw
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.daemon.server.errors import NoRunningBus
from petalbus.schemas.vocabulary import Status
from replay.recording import content, content_at, content_of, record_flight

from support.procs import Children
from support.servers import RealServer, plain_client


async def test_everything_comes_over_as_it_was(clients: Clients, into: Path, server: RealServer) -> None:
    """Topics, compact topics with their form, inboxes, replies, dead letters, raw records: ids, fields, counts."""
    await record_flight(clients)
    before = await content_at(server.url, clients.bus)
    report = await replay(server.url, into=into, bus=clients.bus, speed=None)
    assert await content_of(into, clients.bus) == before
    assert report.streams == {name: len(rows) for name, rows in before.items()}
    assert {"topic:mavlink.rx", "topic:telemetry", "queue:vehicle:inbox:3", "queue:gcs:replies"} <= before.keys()
    assert {"dead:vehicle", "ingest"} <= before.keys()
    assert report.records == sum(report.streams.values())
    assert await content_at(server.url, clients.bus) == before, "the source is only read"
    async with EmbeddedServer(into) as fresh:
        form = Keys(clients.bus).form("mavlink.rx")
        client, source = plain_client(fresh.url), plain_client(server.url)
        assert await client.hgetall(form) == await source.hgetall(form)
        await client.aclose()
        await source.aclose()


async def test_the_fresh_bus_knows_the_messages(clients: Clients, into: Path, server: RealServer) -> None:
    """Status and deduplication follow what was recorded: an answered message is completed, a repetition is one."""
    await record_flight(clients, frames=11)
    gcs = await clients.open("gcs")
    await gcs.send("away", "note", {}, id="unread")
    await replay(server.url, into=into, bus=clients.bus, speed=None)
    async with EmbeddedServer(into) as fresh:
        there = Clients(fresh.url, clients.bus)
        again = await there.open("gcs")
        assert await again.status("c10") is Status.COMPLETED
        assert await again.status("unread") is Status.PENDING
        assert await again.status("nobody") is Status.FAILED
        assert (await again.send("away", "note", {}, id="unread")).duplicate
        reply = await again.request("vehicle", "command", {"command": "step 10"}, id="c10", priority=3)
        assert reply.data["command"] == "step 10"
        await there.close()


async def test_the_files_of_a_stopped_bus_are_read_and_not_touched(data_dir: Path, into: Path) -> None:
    """A data directory as it was left: a private server on a copy, the original byte for byte the same."""
    async with EmbeddedServer(data_dir) as recorded:
        clients = Clients(recorded.url, "petalbus")
        await record_flight(clients, frames=20)
        before = await content_at(recorded.url, "petalbus")
        await clients.close()
    files = {path: digest(path) for path in sorted((data_dir / "server").rglob("*")) if path.is_file()}
    report = await replay(data_dir, into=into, speed=None)
    assert (report.bus, report.records) == ("petalbus", sum(map(len, before.values())))
    assert await content_of(into, "petalbus") == before
    assert {path: digest(path) for path in files} == files
    assert sorted(path.name for path in into.iterdir()) == ["bus.lock", "server"], "nothing is left of the copy"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


ORPHAN = """
import asyncio, sys
from petalbus.daemon.server.embedded import EmbeddedServer
async def main():
    await EmbeddedServer(sys.argv[1]).start()
    print("ready", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.processes
async def test_a_server_whose_daemon_was_killed_is_a_source_and_no_target(
    data_dir: Path, into: Path, children: Children
) -> None:
    daemon = await children.code(ORPHAN, str(data_dir))
    await daemon.line("ready")
    daemon.signal(signal.SIGKILL)
    await daemon.wait()
    url = f"unix://{data_dir / 'bus.sock'}"
    clients = Clients(url, "petalbus")
    await record_flight(clients, frames=5)
    await clients.close()
    with pytest.raises(ReplayRefused, match="still runs there"):
        await replay(url, into=data_dir, speed=None)
    before = await content_at(url, "petalbus")
    await replay(data_dir, into=into, speed=None)
    assert await content_of(into, "petalbus") == before


async def test_it_is_refused_into_a_running_bus(clients: Clients, data_dir: Path, server: RealServer) -> None:
    """Never into a running production bus: nothing of it is touched."""
    await record_flight(clients, frames=3)
    async with EmbeddedServer(data_dir) as production:
        announce(production.paths, url=production.url, server_pid=production.pid)
        client = plain_client(production.url)
        await client.xadd("{petalbus}:topic:live", {"x": 1})
        with pytest.raises(ReplayRefused, match="a bus runs there"):
            await replay(server.url, into=data_dir, bus=clients.bus, speed=None)
        withdraw(production.paths)
        with pytest.raises(ReplayRefused, match="runs there"):
            await replay(server.url, into=data_dir, bus=clients.bus, speed=None)
        assert await client.dbsize() == 1
        await client.aclose()
    with pytest.raises(ReplayRefused, match="holds records already"):
        await replay(server.url, into=data_dir, bus=clients.bus, speed=None)
    assert list(await content_of(data_dir, "petalbus")) == ["topic:live"]


async def test_it_is_refused_into_its_own_source(data_dir: Path) -> None:
    async with EmbeddedServer(data_dir) as recorded:
        clients = Clients(recorded.url, "petalbus")
        await record_flight(clients, frames=1)
        await clients.close()
    with pytest.raises(ReplayRefused, match="its own source"):
        await replay(data_dir, into=data_dir)


@pytest.mark.parametrize("speed", [1.0, 4.0, None])
async def test_the_pace_is_kept(clients: Clients, into: Path, server: RealServer, speed: float | None) -> None:
    """Real time, faster, and as fast as it goes; the report says what was asked for and what was reached."""
    await record_flight(clients, frames=40, pause=0.02)
    seen: list[ReplayProgress] = []
    report = await replay(server.url, into=into, bus=clients.bus, speed=speed, progress=seen.append)
    assert 0.75 < report.duration < 3
    assert report.kept is not None
    if speed is None:
        assert report.elapsed < 0.3
        assert report.kept > 2
    else:
        assert report.elapsed >= report.duration / speed * 0.98, "never early"
        assert report.kept == pytest.approx(speed, rel=0.3)
        assert report.late < 0.3
    assert seen[-1].records == report.records
    assert seen[-1].position == pytest.approx(report.duration)


async def test_a_part_is_replayed(clients: Clients, into: Path, server: RealServer) -> None:
    """From a stream id to a stream id, and only the streams asked for."""
    await record_flight(clients)
    before = await content_at(server.url, clients.bus)
    frames = [entry.decode() for entry, _ in before["topic:mavlink.rx"]]
    report = await replay(
        server.url,
        into=into,
        bus=clients.bus,
        speed=None,
        start=frames[10],
        end=frames[19],
        streams=["mavlink.rx", "queue:vehicle:*"],
    )
    after = await content_of(into, clients.bus)
    assert [entry.decode() for entry, _ in after["topic:mavlink.rx"]] == frames[10:20]
    assert after.keys() <= {"topic:mavlink.rx", "queue:vehicle:inbox:3", "queue:vehicle:inbox:1"}
    assert report.streams["topic:mavlink.rx"] == 10


async def test_seconds_since_the_start(clients: Clients, into: Path, server: RealServer) -> None:
    await record_flight(clients, frames=40, pause=0.02)
    options = {"bus": clients.bus, "speed": None, "streams": ["mavlink.rx"]}
    report = await replay(server.url, into=into, start="0.2", end="0.5", **options)  # type: ignore[arg-type]
    assert report.duration <= 0.3
    assert 5 <= report.records <= 16


async def test_what_is_not_there_is_said(clients: Clients, into: Path, server: RealServer, tmp_path: Path) -> None:
    await record_flight(clients, frames=1)
    with pytest.raises(NoHistory, match=r"no stream 'battery'.*topic:mavlink\.rx"):
        await replay(server.url, into=into, bus=clients.bus, streams=["battery"])
    with pytest.raises(NoHistory, match="nothing is recorded of bus 'other'"):
        await replay(server.url, into=into, bus="other")
    with pytest.raises(NoHistory, match="between those points"):
        await replay(server.url, into=into, bus=clients.bus, start="2001-01-01", end="2001-01-02")
    with pytest.raises(NoHistory, match="no bus has been recorded"):
        await replay(tmp_path / "nowhere", into=into)
    with pytest.raises(ReplayError, match="broke off: no server"):
        await replay(f"unix://{tmp_path}/none.sock", into=into)
    with pytest.raises(ValueError, match="speed"):
        await replay(server.url, into=into, speed=-1)
    assert (await replay(server.url, into=into, bus=clients.bus, speed=None)).records, "the directory is still fresh"


async def test_tools_see_it_while_it_runs_and_it_ends_in_order(
    clients: Clients, into: Path, server: RealServer
) -> None:
    """The fresh bus is found under its directory like any other; a replay that is cancelled stops its server."""
    await record_flight(clients, frames=60, pause=0.02)
    task = asyncio.create_task(replay(server.url, into=into, bus=clients.bus, speed=0.5), name="replay")
    await until(lambda: (into / "bus.json").exists() or task.done(), "the fresh bus is announced")
    async with petalbus.daemon.connect.connect(app="viewer", data=into) as viewer:
        assert viewer.keys.bus == clients.bus
        async with viewer.subscribe("mavlink.rx", start="oldest") as frames:
            async for record in frames:
                assert record.type == "mavlink.HEARTBEAT"
                break
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(NoRunningBus):
        petalbus.daemon.connect.connect(app="viewer", data=into)
    part = await content_of(into, clients.bus)
    whole = await content_at(server.url, clients.bus)
    for name, rows in part.items():
        assert rows == whole[name][: len(rows)]
    assert 0 < len(part["topic:mavlink.rx"]) < 60


async def test_memory_is_bounded(own_server: RealServer, bus_name: str, into: Path) -> None:
    """A recording of 40 MB is never in memory as a whole; entries of 1 MiB and of thousands of fields come over."""
    keys = Keys(bus_name)
    client = plain_client(own_server.url)
    async with client.pipeline(transaction=False) as pipe:
        for number in range(20_000):
            pipe.xadd(keys.topic(f"t{number % 5}"), {"data": b"x" * 1000, "n": number})
            if number % 500 == 0:
                await pipe.execute()
        await pipe.execute()
    for _ in range(20):
        await client.xadd(keys.topic("large"), {"data": b"y" * (1 << 20)})
    await client.xadd(keys.ingest, {f"f{number}": "z" for number in range(9000)})
    before = await content(client, bus_name)
    await client.aclose()
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        report = await replay(own_server.url, into=into, bus=bus_name, speed=None)
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert report.records == 20_021
    assert peak < 40 << 20, f"{peak >> 20} MiB"
    assert await content_of(into, bus_name) == before


async def test_too_little_memory_is_said(own_server: RealServer, bus_name: str, into: Path) -> None:
    client = plain_client(own_server.url)
    for _ in range(24):
        await client.xadd(Keys(bus_name).topic("large"), {"data": b"y" * (1 << 20)})
    await client.aclose()
    with pytest.raises(ReplayError, match="no memory left"):
        await replay(own_server.url, into=into, bus=bus_name, speed=None, memory_mb=16)
