"""Reconnection as a state machine: whatever happens to the server or the wire, nothing is lost, doubled or stuck."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from bus.clients import Clients, Counting, pending, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError, BusUnavailable, OutcomeUnknown
from petalbus.daemon.bus.handlers import Context
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from support.servers import RealServer


async def _status(bus: Bus, message_id: str, status: Status) -> bool:
    return await bus.status(message_id) is status


async def test_traffic_goes_on_after_the_server_was_away(own_clients: Clients, own_server: RealServer) -> None:
    """I1, I2, I3, S-133: kill -9 of the server in the middle of traffic, 2 s away: every send and request ends well."""
    app = Counting(own_clients.make("app"))
    await app.bus.start()
    gcs = await own_clients.open("gcs")
    sends = [asyncio.create_task(gcs.send("app", "n", {"n": n}, id=f"s{n}"), name=f"send-{n}") for n in range(200)]
    asks = [
        asyncio.create_task(
            gcs.request("app", "n", {"n": n}, id=f"r{n}", priority=Priority.HIGH, timeout=15), name="ask"
        )
        for n in range(200)
    ]
    await until(lambda: len(app.runs) > 20, "traffic flows")
    own_server.kill()
    late = [asyncio.create_task(gcs.send("app", "n", {"n": n}, id=f"s{n}"), name=f"late-{n}") for n in range(200, 300)]
    await asyncio.sleep(2.0)
    own_server.start()
    receipts = await asyncio.gather(*sends, *late)
    replies = await asyncio.gather(*asks)
    assert [reply.data["n"] for reply in replies] == list(range(200))
    assert len({receipt.stream_id for receipt in receipts}) == 300
    await until(lambda: len(app.runs) == 500, "all are handled")
    await until(lambda: app.bus.statistics()["consumer"]["held"] == 0, "all are settled")
    assert await pending(gcs, "app") == 0
    for number in (0, 100, 199):
        assert len(await replies_to(gcs, f"r{number}")) == 1
    stored = own_server.command("XRANGE", gcs.keys.inbox("app", 2), "-", "+")
    assert [fields[b"id"] for _, fields in stored] == [b"s%d" % n for n in range(300)], "order of sending"


async def test_while_the_server_is_away_sends_wait_and_then_say_what_is_known(
    own_clients: Clients, own_server: RealServer
) -> None:
    """S-133: a send waits for the server; after its time it fails with "unknown", and sending again settles it."""
    gcs = await own_clients.open("gcs", send_timeout=0.5, connect_timeout=0.5)
    await gcs.send("app", "n", {"n": 0}, id="m0")
    own_server.kill()
    with pytest.raises(OutcomeUnknown, match="safe"):
        await gcs.send("app", "n", {"n": 1}, id="m1")
    with pytest.raises(BusUnavailable):
        await gcs.publish("news", "n", {})
    own_server.start()
    await until(lambda: gcs.statistics()["command"]["state"] == "live", "it is connected again")
    assert (await gcs.send("app", "n", {"n": 0}, id="m0")).duplicate
    await gcs.send("app", "n", {"n": 1}, id="m1")
    assert own_server.command("XLEN", gcs.keys.inbox("app", 2)) == 2


async def test_work_that_was_finished_while_the_server_was_away_is_settled_not_repeated(
    own_clients: Clients, own_server: RealServer
) -> None:
    """I2: the result waits longer than any send may; it is committed when the server is back, and nothing runs
    twice.
    """
    app = own_clients.make("app", send_timeout=0.5)
    started, go = asyncio.Event(), asyncio.Event()
    runs = Counter[str]()

    async def work(record: Record) -> dict[str, bool]:
        runs[record.id] += 1
        started.set()
        await go.wait()
        return {"ok": True}

    app.on("report", redelivery="report")(work)
    app.on("rerun", redelivery="rerun")(work)
    await app.start()
    gcs = await own_clients.open("gcs")
    for kind in ("report", "rerun"):
        await gcs.send("app", kind, {}, id=kind, key=kind)
    await until(lambda: len(runs) == 2, "both run")
    own_server.kill()
    go.set()
    await asyncio.sleep(1.5)  # longer than send_timeout
    own_server.start()
    for kind in ("report", "rerun"):
        await until(lambda kind=kind: _status(gcs, kind, Status.COMPLETED), f"{kind} is completed")
        assert [record.data for record in await replies_to(gcs, kind)] == [{"ok": True}]
    assert runs == {"report": 1, "rerun": 1}
    assert await gcs.dead.list("app") == []


async def test_scripts_that_the_server_forgot_are_loaded_again(clients: Clients, server: RealServer) -> None:
    """NOSCRIPT after SCRIPT FLUSH: sends, requests, progress notes and commits notice by themselves."""
    app, gcs = clients.make("app"), await clients.open("gcs")
    go, started = asyncio.Event(), asyncio.Event()

    @app.on("note", redelivery="report")
    async def note(_record: Record, told: Context) -> dict[str, bool]:
        started.set()
        await go.wait()
        await told.progress({"half": True})
        return {"ok": True}

    counting = Counting(app)
    await app.start()
    asking = asyncio.create_task(gcs.request("app", "note", {}, timeout=10), name="asking")
    await asyncio.wait_for(started.wait(), 5)
    server.command("SCRIPT", "FLUSH")
    go.set()
    assert (await asking).data == {"ok": True}
    for number in range(10):
        server.command("SCRIPT", "FLUSH")
        assert (await gcs.request("app", "n", {"n": number}, timeout=10)).data == {"n": number}
    assert counting.order == list(range(10))


async def test_sends_keep_their_order_over_a_forgotten_script(clients: Clients, server: RealServer) -> None:
    """I3: scripts vanish in the middle of pipelined sends: what is sent again is still in the order of sending."""
    gcs = await clients.open("gcs")
    tasks = []
    for number in range(600):
        tasks.append(asyncio.create_task(gcs.send("app", "n", {"n": number}), name=f"send-{number}"))
        if number % 100 == 50:
            server.command("SCRIPT", "FLUSH")
        if number % 10 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    rows = await gcs.call("XRANGE", gcs.keys.inbox("app", 2), "-", "+")
    assert [Record.from_fields(fields).data["n"] for _, fields in rows] == list(range(600))


async def test_a_deleted_inbox_is_made_again(clients: Clients, server: RealServer) -> None:
    """NOGROUP: somebody deleted the stream: records sent afterwards are handled."""
    app = Counting(clients.make("app"))
    await app.bus.start()
    gcs = await clients.open("gcs")
    for number in range(3):
        assert (await gcs.request("app", "n", {"n": number})).data == {"n": number}
        server.command("DEL", *gcs.keys.inboxes("app").values())
    assert (await gcs.request("app", "n", {"n": 3}, timeout=10)).data == {"n": 3}


@pytest.mark.parametrize("when", ["idle", "busy"])
async def test_a_destroyed_group_loses_and_doubles_nothing(clients: Clients, server: RealServer, when: str) -> None:
    """I1, I2: XGROUP DESTROY under a live consumer: what was settled stays settled, what was not is handled."""
    app, gcs = clients.make("app", workers=1), await clients.open("gcs")
    go = asyncio.Event()
    runs = Counter[str]()

    @app.on("n", concurrency=None)
    async def handle(record: Record) -> dict[str, int]:
        runs[record.id] += 1
        if record.data["n"] >= 5:
            await go.wait()
        return {"n": record.data["n"]}

    await app.start()
    for number in range(5):
        await gcs.request("app", "n", {"n": number}, id=f"m{number}")
    if when == "busy":
        for number in range(5, 10):
            await gcs.send("app", "n", {"n": number}, id=f"m{number}")
        await until(lambda: _status(gcs, "m9", Status.DELIVERED), "they are delivered")
    server.command("XGROUP", "DESTROY", gcs.keys.inbox("app", 2), "inbox")
    go.set()
    assert (await gcs.request("app", "n", {"n": 10}, id="m10", timeout=10)).data == {"n": 10}
    expected = {f"m{number}" for number in (range(11) if when == "busy" else (*range(5), 10))}
    await until(lambda: runs.keys() == expected, f"all are handled: {runs}")
    for message_id in expected:
        await until(lambda one=message_id: _status(gcs, one, Status.COMPLETED), f"{message_id} is completed")
    await until(lambda: app.statistics()["consumer"]["held"] == 0, "all are settled")
    assert {number for one, number in runs.items() if int(one[1:]) < 5} == {1}, "settled work ran again"


async def test_a_server_that_is_loading_is_waited_for(
    own_clients: Clients, own_server: RealServer, tmp_path: Path
) -> None:
    """LOADING: the server answers and does not serve yet; the client goes on when it does."""
    app = Counting(own_clients.make("app"))
    await app.bus.start()
    gcs = await own_clients.open("gcs")
    await gcs.request("app", "n", {"n": 0})
    own_server.kill()
    own_server.config += "\nkey-load-delay 200\nloading-process-events-interval-bytes 1024\n"
    asking = asyncio.create_task(gcs.request("app", "n", {"n": 1}, timeout=15), name="asking")
    own_server.start()
    assert (await asking).data == {"n": 1}
    assert app.runs.total() == 2


async def test_a_frozen_server_is_waited_for(own_clients: Clients, own_server: RealServer) -> None:
    """SIGSTOP of the server for 2 s: nobody is declared dead, nothing runs twice, everything ends well."""
    apps = [Counting(own_clients.make("app", patience=1.0, block=1.0)) for _ in range(2)]
    for app in apps:
        await app.bus.start()
    gcs = await own_clients.open("gcs", patience=1.0)
    await gcs.request("app", "n", {"n": 0}, id="m0")
    own_server.freeze()
    asks = [
        asyncio.create_task(gcs.request("app", "n", {"n": n}, id=f"m{n}", timeout=15), name="ask") for n in range(1, 50)
    ]
    await asyncio.sleep(2.5)
    own_server.thaw()
    assert [reply.data["n"] for reply in await asyncio.gather(*asks)] == list(range(1, 50))
    runs = apps[0].runs + apps[1].runs
    assert runs == {f"m{n}": 1 for n in range(50)}
    assert [app.bus.statistics()["consumer"]["taken_over"] for app in apps] == [0, 0]


async def test_a_subscription_goes_on_after_the_server_was_away(own_clients: Clients, own_server: RealServer) -> None:
    """A subscriber keeps its place over kill -9 of the server; nothing is missed; what it had in hand may come
    again.
    """
    gcs, app = await own_clients.open("gcs"), await own_clients.open("app")
    seen: list[int] = []

    async def collect() -> None:
        async for record in app.subscribe("news", start="oldest"):
            seen.append(record.data)  # noqa: PERF401  # somebody watches the list grow

    task = asyncio.create_task(collect(), name="collect")
    for number in range(50):
        await gcs.publish("news", "n", number)
    await until(lambda: len(seen) == 50, "the first half")
    own_server.restart()
    for number in range(50, 100):
        while True:
            try:
                await gcs.publish("news", "n", number)
                break
            except OutcomeUnknown:
                continue
    await until(lambda: set(seen) == set(range(100)), "all are seen")
    first = list(dict.fromkeys(seen))
    assert first == sorted(first), "in order"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_client_can_be_closed_while_the_server_is_away(own_clients: Clients, own_server: RealServer) -> None:
    """Closing needs no server: it ends soon, without an error, and leaves no task behind."""
    one, two = await own_clients.open("one"), own_clients.make("two")
    Counting(two)
    await two.start()
    subscription = await one.subscribe("news").open()
    own_server.kill()
    async with asyncio.timeout(9):
        await one.close()
        await two.close()
    assert subscription.closed
    leftovers = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("petalbus")]
    assert not leftovers
    own_server.start()


async def test_a_client_does_not_start_half(clients: Clients, server: RealServer) -> None:
    """Where consuming is refused, start() says so and leaves nothing running."""
    server.command("ACL", "SETUSER", "half", "on", ">pw", "~*", "&*", "+@all", "-xreadgroup", "-xgroup")
    app = clients.make("app", url=server.url.replace("unix://", "unix://half:pw@"), connect_timeout=0.5)
    Counting(app)
    with pytest.raises((BusError, ServerError)):
        await app.start()
    leftovers = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("petalbus")]
    assert not leftovers
    server.command("ACL", "DELUSER", "half")
