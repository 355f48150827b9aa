"""Single messages: their status at every station, deadlines, and cancelling. On a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError, RequestCancelled, RequestTimeout
from petalbus.daemon.bus.handlers import Context
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind, Status


class Slow:
    """An app whose handler waits until told to go on; ``started`` holds the ids of the records that began."""

    def __init__(self, clients: Clients, **options: Any) -> None:
        self.bus = clients.make("app", **options)
        self.go = asyncio.Event()
        self.started: list[str] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []

        @self.bus.on("slow", concurrency=1)
        async def slow(record: Record) -> dict[str, bool]:
            self.started.append(record.id)
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled.append(record.id)
                raise
            self.finished.append(record.id)
            return {"ok": True}

        @self.bus.on("stubborn")
        async def stubborn(record: Record) -> dict[str, bool]:
            self.started.append(record.id)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return {"stopped": True}
            return {}


async def status_is(bus: Bus, message_id: str, status: Status) -> None:
    """Wait for a status."""

    async def there() -> bool:
        return await bus.status(message_id) is status

    await until(there, f"{message_id} is {status}")


async def test_every_status_on_the_way(clients: Clients) -> None:
    """S-093, S-120, S-136: unknown, pending, delivered, processing, completed, each where it is true."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    assert await gcs.status("m1") is Status.UNKNOWN
    await gcs.send("app", "slow", {}, id="m1")
    await gcs.send("app", "slow", {}, id="m2")
    assert await gcs.status("m1") is Status.PENDING
    await slow.bus.start()
    await status_is(gcs, "m1", Status.PROCESSING)
    await status_is(gcs, "m2", Status.DELIVERED)
    slow.go.set()
    await status_is(gcs, "m1", Status.COMPLETED)
    await status_is(gcs, "m2", Status.COMPLETED)


async def test_a_command_is_not_run_after_its_deadline(clients: Clients) -> None:
    """S-104, S-135: an expired command never runs; its status is timeout, its sender gets one error reply that
    says so.
    """
    slow, gcs = Slow(clients), await clients.open("gcs")
    await gcs.send("app", "slow", {}, id="late", deadline=0.05)
    await gcs.send("app", "slow", {}, id="in-time", deadline=60)
    await status_is(gcs, "late", Status.TIMEOUT)  # nobody has looked at it yet, and it will not run any more
    slow.go.set()
    await slow.bus.start()
    await status_is(gcs, "in-time", Status.COMPLETED)
    assert slow.started == ["in-time"]
    assert await gcs.status("late") is Status.TIMEOUT
    (reply,) = await replies_to(gcs, "late")
    assert (reply.kind, reply.data["error_code"]) == (ReplyKind.ERROR, "DEADLINE_EXPIRED")
    assert await pending(gcs, "app") == 0


async def test_a_request_that_timed_out_does_not_run_any_more(clients: Clients) -> None:
    """S-104: the request's timeout is its deadline: behind a slow record it expires instead of running late."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    await slow.bus.start()
    await gcs.send("app", "slow", {}, id="first")
    await until(lambda: slow.started, "the first runs")
    with pytest.raises((RequestTimeout, ReplyError)):
        await gcs.request("app", "slow", {}, id="second", timeout=0.1)
    slow.go.set()
    await status_is(gcs, "second", Status.TIMEOUT)
    assert slow.started == ["first"]


async def test_a_deadline_of_an_earlier_boot_has_passed(clients: Clients) -> None:
    """I9: a command from before a power cycle does not run after it, whatever its numbers say."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    far = str(1 << 62)
    fields = ("id", "old", "type", "slow", "source", "gcs", "recipient", "app", "deadline", far, "boot_id", "0" * 12)
    await gcs.call("XADD", gcs.keys.inbox("app", 2), "*", *fields)
    await slow.bus.start()
    await status_is(gcs, "old", Status.TIMEOUT)
    assert not slow.started


async def test_cancelling_what_nobody_has_read(clients: Clients) -> None:
    """An undelivered message is taken out at once: never run, status cancelled, one reply of kind cancelled."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    await gcs.send("app", "slow", {}, id="m1")
    assert await gcs.cancel("m1")
    assert await gcs.status("m1") is Status.CANCELLED
    assert await gcs.cancel("m1"), "asking twice is no error"
    slow.go.set()
    await slow.bus.start()
    await gcs.send("app", "slow", {}, id="m2")
    await status_is(gcs, "m2", Status.COMPLETED)
    assert slow.started == ["m2"]
    assert [record.kind for record in await replies_to(gcs, "m1")] == [ReplyKind.CANCELLED]
    assert (await gcs.send("app", "slow", {}, id="m1")).duplicate, "a cancelled id stays used"


async def test_cancelling_what_waits_at_the_consumer(clients: Clients) -> None:
    """A delivered record that has not started is settled as cancelled and never runs."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    await slow.bus.start()
    await gcs.send("app", "slow", {}, id="m1")
    asking = asyncio.create_task(gcs.request("app", "slow", {}, id="m2", timeout=30), name="asking")
    await status_is(gcs, "m2", Status.DELIVERED)
    assert await gcs.cancel("m2")
    with pytest.raises(RequestCancelled) as cancelled:
        await asking
    assert cancelled.value.record.reply_to == "m2"
    assert await gcs.status("m2") is Status.CANCELLED
    slow.go.set()
    await status_is(gcs, "m1", Status.COMPLETED)
    assert slow.started == ["m1"]
    assert len(await replies_to(gcs, "m2")) == 1


async def test_cancelling_what_runs(clients: Clients) -> None:
    """A running handler is cancelled where it waits; the worker goes on with the next record."""
    slow, gcs = Slow(clients, workers=1), await clients.open("gcs")
    await slow.bus.start()
    asking = asyncio.create_task(gcs.request("app", "slow", {}, id="m1", timeout=30), name="asking")
    await until(lambda: slow.started == ["m1"], "it runs")
    assert await gcs.cancel("m1")
    with pytest.raises(RequestCancelled):
        await asking
    assert slow.cancelled == ["m1"]
    slow.go.set()
    assert (await gcs.request("app", "slow", {}, id="m2")).data == {"ok": True}
    assert await pending(gcs, "app") == 0


async def test_a_handler_may_answer_its_cancellation(clients: Clients) -> None:
    """A handler that catches the cancellation and returns has a result; time limits work in that worker afterwards."""
    slow, gcs = Slow(clients, workers=1), await clients.open("gcs")

    @slow.bus.on("limited")
    async def limited(_record: Record) -> dict[str, str]:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return {"said": "timeout"}
        return {}

    await slow.bus.start()
    asking = asyncio.create_task(gcs.request("app", "stubborn", {}, id="m1", timeout=30), name="asking")
    await until(lambda: slow.started == ["m1"], "it runs")
    assert await gcs.cancel("m1")
    assert (await asking).data == {"stopped": True}
    assert (await gcs.request("app", "limited", {})).data == {"said": "timeout"}


async def test_cancelling_what_waits_for_its_next_attempt(clients: Clients) -> None:
    """A record between two attempts is not tried again."""
    app, gcs = clients.make("app", retry_first=0.2), await clients.open("gcs")
    attempts: list[int] = []

    @app.on("flaky")
    async def flaky(_record: Record, told: Context) -> None:
        attempts.append(told.attempt)
        raise OSError("again")

    await app.start()
    await gcs.send("app", "flaky", {}, id="m1")
    await until(lambda: attempts, "the first attempt")
    assert await gcs.cancel("m1")
    await status_is(gcs, "m1", Status.CANCELLED)
    assert attempts == [1]
    assert [record.kind for record in await replies_to(gcs, "m1")] == [ReplyKind.CANCELLED]


async def test_what_is_settled_or_unknown_cannot_be_cancelled(clients: Clients) -> None:
    """False, and nothing changes."""
    slow, gcs = Slow(clients), await clients.open("gcs")
    slow.go.set()
    await slow.bus.start()
    await gcs.request("app", "slow", {}, id="m1")
    assert not await gcs.cancel("m1")
    assert await gcs.status("m1") is Status.COMPLETED
    assert not await gcs.cancel("never-heard-of")
    assert len(await replies_to(gcs, "m1")) == 1


async def test_a_cancellation_right_behind_its_message_is_never_lost(clients: Clients) -> None:
    """Sent and cancelled at once, a hundred times: what cancel() said yes to ends as cancelled, unless it had
    finished.
    """
    slow, gcs = Slow(clients), await clients.open("gcs")
    await slow.bus.start()
    for number in range(100):
        await gcs.send("app", "slow", {}, id=f"m{number}")
        assert await gcs.cancel(f"m{number}")
    for number in range(100):
        await status_is(gcs, f"m{number}", Status.CANCELLED)
    assert not slow.finished


async def test_a_cancellation_survives_the_consumer_it_was_meant_for(clients: Clients) -> None:
    """The holder ends before it hears of it; whoever comes next knows that the message was cancelled."""
    first, gcs = Slow(clients, stop_grace=0.05), await clients.open("gcs")
    await first.bus.start()
    await gcs.send("app", "slow", {}, id="m1")
    await gcs.send("app", "slow", {}, id="m2")
    await status_is(gcs, "m1", Status.PROCESSING)
    await status_is(gcs, "m2", Status.DELIVERED)
    await first.bus.close()
    assert await gcs.cancel("m2")
    second = Slow(clients)
    second.go.set()
    await second.bus.start()
    await status_is(gcs, "m1", Status.COMPLETED)
    await status_is(gcs, "m2", Status.CANCELLED)
    assert second.started == ["m1"]
