"""I10: a client that stops consuming in order, goes on sending, and may consume again. On a real server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from bus.clients import Clients, pending, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusUnavailable, RequestCancelled
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status


class Member:
    """A process of the app: counts what it runs, and waits for ``go`` in each."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.runs = Counter[str]()
        self.go = asyncio.Event()
        bus.on("n", concurrency=None)(self.handle)

    async def handle(self, record: Record) -> dict[str, bool]:
        self.runs[record.id] += 1
        await self.go.wait()
        return {"ok": True}


async def member(clients: Clients, **options: float) -> Member:
    made = Member(clients.make("app", workers=1, heartbeat=0.1, dead_after=30, **options))
    await made.bus.start()
    return made


async def test_running_work_is_finished_and_the_rest_is_left_to_the_others(clients: Clients) -> None:
    """What runs is answered; what was only read is run by a sibling; what comes later too."""
    first = await member(clients)
    gcs = await clients.open("gcs")
    ids = [f"m{n}" for n in range(8)]
    requests = [asyncio.create_task(gcs.request("app", "n", {}, id=one, key=f"k{one}"), name=one) for one in ids]
    await until(lambda: first.bus.statistics()["consumer"]["held"] == 8 and first.runs, "it has read all and begun")
    begun = set(first.runs)
    second = await member(clients)
    second.go.set()
    stopping = asyncio.create_task(first.bus.stop_listening(), name="stopping")
    await asyncio.sleep(0.05)
    assert not stopping.done(), "it waits for its running handlers"
    first.go.set()
    await stopping
    replies = await asyncio.gather(*requests)
    assert all(reply.data == {"ok": True} for reply in replies)
    await gcs.request("app", "n", {}, id="later")
    assert set(first.runs) == begun
    assert first.runs + second.runs == Counter([*(f"m{n}" for n in range(8)), "later"])
    assert await pending(gcs, "app") == 0
    assert first.bus.statistics()["consumer"] is None


async def test_it_goes_on_as_a_client_that_sends(clients: Clients) -> None:
    """Sends, requests and subscriptions work; the app is there all the time; doing it twice does no harm."""
    app = await member(clients)
    other = clients.make("other")

    @other.on("ask")
    async def answer(record: Record) -> dict[str, str]:
        return {"to": record.source}

    await other.start()
    await app.bus.listen()
    async with app.bus.subscribe("news") as news:
        await asyncio.gather(app.bus.stop_listening(), app.bus.stop_listening())
        await app.bus.stop_listening()
        assert (await app.bus.request("other", "ask", {})).data == {"to": "app"}
        await other.publish("news", "note", 1)
        assert (await anext(aiter(news))).data == 1
    states = {one.app: one.status for one in await other.applications()}
    assert states == {"app": "online", "other": "online"}
    await app.bus.close()
    states = {one.app: one.status for one in await other.applications()}
    assert states == {"app": "offline", "other": "online"}


@pytest.mark.parametrize("again", ["listen", "on"])
async def test_it_may_start_again(clients: Clients, again: str) -> None:
    """Also while the stop is not over: what came in between is run then, once."""
    app = await member(clients)
    app.go.set()
    gcs = await clients.open("gcs")
    assert (await gcs.request("app", "n", {}, id="m1")).data == {"ok": True}
    await app.bus.stop_listening()
    await gcs.send("app", "n", {}, id="m2")
    if again == "listen":
        await app.bus.listen()
    else:
        app.bus.on("other")(app.handle)
    await until(lambda: app.runs["m2"], "it runs what waited")
    app.go.clear()
    running = asyncio.create_task(gcs.request("app", "n", {}, id="m3"), name="m3")
    await until(lambda: app.runs["m3"], "it runs")
    stopping = asyncio.create_task(app.bus.stop_listening(), name="stopping")
    await asyncio.sleep(0)
    listening = asyncio.create_task(app.bus.listen(), name="listening")
    app.go.set()
    await asyncio.gather(stopping, listening, running)
    assert (await gcs.request("app", "n", {}, id="m4")).data == {"ok": True}
    assert app.runs == Counter(["m1", "m2", "m3", "m4"])


async def test_what_is_cancelled_between_two_consumers_is_not_run(clients: Clients) -> None:
    """The cancellation is asked of whoever had the record; the next one to have it knows."""
    app = await member(clients, stop_grace=0.1)
    gcs = await clients.open("gcs")
    requests = {n: asyncio.create_task(gcs.request("app", "n", {}, id=n, key=n), name=n) for n in ("m1", "m2", "m3")}
    await until(lambda: app.bus.statistics()["consumer"]["held"] == 3 and app.runs, "it has read all and begun")
    (unstarted, *_) = {"m1", "m2", "m3"} - set(app.runs)
    await app.bus.stop_listening()
    assert await gcs.cancel(unstarted)
    app.go.set()
    await until(lambda: unstarted.encode() in app.bus._cancelled, "it has heard of it")
    await app.bus.listen()
    with pytest.raises(RequestCancelled):
        await requests.pop(unstarted)
    await asyncio.gather(*requests.values())
    assert app.runs[unstarted] == 0


async def test_a_stop_before_the_beginning_is_told_to_who_waits_for_it(clients: Clients) -> None:
    """Not as a cancellation of the waiter."""
    app = await clients.open("app")
    listening = asyncio.create_task(app.listen(), name="listening")
    await asyncio.sleep(0)
    await app.stop_listening()
    with pytest.raises(BusUnavailable, match="told to stop listening"):
        await listening
    assert (await app.send("app", "n", {})).stream_id


async def test_a_handler_that_outlasts_the_grace_runs_again(clients: Clients) -> None:
    """As at a close: at once when the client listens again; the stop takes no longer than the grace."""
    app = await member(clients, stop_grace=0.2)
    gcs = await clients.open("gcs")
    await gcs.send("app", "n", {}, id="m1")
    await until(lambda: app.runs, "it runs")
    begun = time.monotonic()
    await app.bus.stop_listening()
    assert 0.15 < time.monotonic() - begun < 2.0
    assert await pending(gcs, "app") == 1
    app.go.set()
    await app.bus.listen()
    await until(lambda: _completed(gcs), "it was run again", seconds=3)
    assert app.runs == Counter(m1=2)


async def _completed(gcs: Bus) -> bool:
    return await gcs.status("m1") is Status.COMPLETED


async def test_cancelling_the_call_does_not_stop_the_stop(clients: Clients) -> None:
    """A program that is in a hurry still closes in order."""
    app = await member(clients)
    gcs = await clients.open("gcs")
    running = asyncio.create_task(gcs.request("app", "n", {}), name="running")
    await until(lambda: app.runs, "it runs")
    stopping = asyncio.create_task(app.bus.stop_listening(), name="stopping")
    await asyncio.sleep(0.01)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    app.go.set()
    assert (await running).data == {"ok": True}
    await app.bus.close()
    assert await pending(gcs, "app") == 0
