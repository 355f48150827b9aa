"""Answers lost on the wire: asked for again where that is safe, reported where it is not, doubled never."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.clients import Clients, Counting, pending, replies_to, until
from petalbus.daemon.bus.errors import OutcomeUnknown
from petalbus.daemon.bus.handlers import Context, Progress
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind

from support.proxy import Proxy
from support.servers import RealServer


async def test_a_lost_answer_to_a_send_is_asked_for_again(clients: Clients, proxy: Proxy, server: RealServer) -> None:
    """I2: the server stored it and the answer got lost: one record, one receipt, not marked as new twice."""
    gcs = await clients.open("gcs", url=proxy.url)
    for number in range(5):
        lost = proxy.lose_reply_to(f"m{number}".encode())
        receipt = await gcs.send("app", "n", {"n": number}, id=f"m{number}")
        assert lost.is_set()
        assert len(server.command("XRANGE", gcs.keys.inbox("app", 2), receipt.stream_id, receipt.stream_id)) == 1
    assert server.command("XLEN", gcs.keys.inbox("app", 2)) == 5
    assert gcs.statistics()["repeated"] >= 5


async def test_a_lost_answer_to_a_publish_is_an_error_not_a_second_record(
    clients: Clients, proxy: Proxy, server: RealServer
) -> None:
    """A topic has no deduplication, so a publish is never repeated: the caller hears that nobody can know."""
    gcs = await clients.open("gcs", url=proxy.url)
    lost = proxy.lose_reply_to(b"topic:news")
    with pytest.raises(OutcomeUnknown):
        await gcs.publish("news", "n", {})
    assert lost.is_set()
    assert server.command("XLEN", gcs.keys.topic("news")) == 1
    await gcs.publish("news", "n", {})
    assert server.command("XLEN", gcs.keys.topic("news")) == 2


async def test_a_lost_answer_to_a_commit_doubles_no_reply(clients: Clients, proxy: Proxy) -> None:
    """I2: the commit took effect and its answer got lost: asked again, it changes nothing; the handler ran once."""
    app = Counting(clients.make("app", url=proxy.url))
    await app.bus.start()
    gcs = await clients.open("gcs")
    for number in range(5):
        lost = proxy.lose_reply_to(b"n_response")
        reply = await gcs.request("app", "n", {"n": number}, id=f"m{number}")
        assert reply.data == {"n": number}
        await asyncio.wait_for(lost.wait(), 5)
        await until(lambda: app.bus.statistics()["consumer"]["held"] == 0, "it is settled")
        assert len(await replies_to(gcs, f"m{number}")) == 1
    assert app.runs == {f"m{number}": 1 for number in range(5)}
    assert await pending(gcs, "app") == 0
    assert app.bus.statistics()["consumer"]["fenced"] == 0


async def test_a_lost_answer_to_a_read_brings_its_records_again(clients: Clients, proxy: Proxy) -> None:
    """I1: entries delivered into a cut connection are found in the own pending list, and handled once."""
    app = Counting(clients.make("app", url=proxy.url))
    await app.bus.start()
    gcs = await clients.open("gcs")
    for number in range(0, 10, 2):
        lost = proxy.lose_reply_to(b"XREADGROUP")
        await gcs.request("app", "n", {"n": number}, id=f"m{number}")  # behind it the next read is sent
        await gcs.send("app", "n", {"n": number + 1}, id=f"m{number + 1}")
        await asyncio.wait_for(lost.wait(), 10)
        await until(lambda number=number: app.runs[f"m{number + 1}"] == 1, "it is handled")
    await until(lambda: app.bus.statistics()["consumer"]["held"] == 0, "all are settled")
    assert app.runs == {f"m{number}": 1 for number in range(10)}


async def test_a_lost_reply_reaches_its_requester(clients: Clients, proxy: Proxy) -> None:
    """I2: the requester's connection is cut just as the reply arrives: it finds the reply, and there is one."""
    app = Counting(clients.make("app"))
    await app.bus.start()
    gcs = await clients.open("gcs", url=proxy.url)
    for number in range(5):
        lost = proxy.lose_reply_to(b"XREAD ")
        reply = await gcs.request("app", "n", {"n": number}, id=f"m{number}", timeout=10)
        assert reply.data == {"n": number}
        await asyncio.wait_for(lost.wait(), 5)
        assert len(await replies_to(gcs, f"m{number}")) == 1
    assert app.runs == {f"m{number}": 1 for number in range(5)}


@pytest.mark.parametrize("redelivery", ["rerun", "report"])
async def test_a_lost_progress_note_does_not_harm_the_work(clients: Clients, proxy: Proxy, redelivery: Any) -> None:
    """A note may be lost, never the work: a command that reports its progress is finished although the wire broke."""
    app, gcs = clients.make("app", url=proxy.url), await clients.open("gcs")
    runs = Counter[str]()

    @app.on("steps", redelivery=redelivery)
    async def steps(record: Record) -> AsyncIterator[Any]:
        runs[record.id] += 1
        for step in range(3):
            yield Progress({"note": step})
        yield {"done": True}

    @app.on("context", redelivery=redelivery)
    async def context(record: Record, told: Context) -> dict[str, bool]:
        runs[record.id] += 1
        for step in range(3):
            await told.progress({"note": step})
        return {"done": True}

    await app.start()
    for kind in ("steps", "context"):
        lost = proxy.lose_reply_to(b'{"note":1}')
        reply = await gcs.request("app", kind, {}, id=kind, timeout=10)
        assert reply.data == {"done": True}
        assert lost.is_set()
        kinds = [record.kind for record in await replies_to(gcs, kind)]
        assert kinds.count(ReplyKind.RESULT) == 1
        assert 2 <= kinds.count(ReplyKind.PROGRESS) <= 3
    assert runs == {"steps": 1, "context": 1}


async def test_connections_that_break_one_by_one_at_random_moments(clients: Clients, proxy: Proxy) -> None:
    """I2: thirty cuts of all connections of everybody during traffic: each request gets its one reply."""
    app = Counting(clients.make("app", url=proxy.url))
    await app.bus.start()
    gcs = await clients.open("gcs", url=proxy.url)
    asks = []
    for number in range(300):
        asks.append(
            asyncio.create_task(gcs.request("app", "n", {"n": number}, id=f"m{number}", timeout=20), name="ask")
        )
        if number % 10 == 9:
            proxy.cut()
            await asyncio.sleep(0.01)
    replies = await asyncio.gather(*asks)
    assert [reply.data["n"] for reply in replies] == list(range(300))
    looking = await clients.open("gcs", presence=False)
    rows = await looking.call("XRANGE", looking.keys.replies("gcs"), "-", "+")
    counts = Counter(str(Record.from_fields(fields).reply_to) for _, fields in rows)
    assert set(counts.values()) == {1}
    await until(lambda: app.bus.statistics()["consumer"]["held"] == 0, "all are settled")
    assert await pending(looking, "app") == 0
