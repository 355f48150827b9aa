"""PetalBus itself, through its public client: validation, deduplication, inbox, handler, atomic commit.

A job's ``variant`` says what is sent: ``topic`` publishes telemetry (fan-out, no deduplication); ``low``, ``high`` and
``urgent`` send to the inbox with that priority; without any, with the normal one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.child import Child, Role, run
from petalbus.daemon.bench.crowd import crowd
from petalbus.daemon.bench.pace import paced_async
from petalbus.daemon.bench.stats import latency_us
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.connect import connect
from petalbus.daemon.server.probe import unix_url
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

TOPIC: Final = "bench"


def open_bus(child: Child, app: str) -> Bus:
    """A client of the bench's server, with default options."""
    return connect(unix_url(child.job.address), app=app)


class Sender:
    """One record after the other to the consumer's inbox, or to the topic."""

    def __init__(self, bus: Bus, child: Child) -> None:
        self._bus = bus
        self._padding = sample.note(child.job.size)
        variant = child.job.variant
        self._priority = {"low": Priority.LOW, "high": Priority.HIGH}.get(variant, Priority.NORMAL)
        self.send = {"topic": self._to_topic, "urgent": self._urgent}.get(variant, self._to_inbox)

    async def _to_inbox(self, sequence: int) -> None:
        data = sample.command(sequence, sample.now(), self._padding)
        await self._bus.send("consumer", "command", data, priority=self._priority)

    async def _urgent(self, sequence: int) -> None:
        data = sample.emergency(sequence, sample.now())
        await self._bus.send("consumer", "emergency_command", data, priority=Priority.CRITICAL)

    async def _to_topic(self, sequence: int) -> None:
        await self._bus.publish(TOPIC, "telemetry", sample.telemetry(sequence, sample.now(), self._padding))


async def requester(child: Child) -> None:
    """Requests one after the other, each a validated ``command`` to another application's inbox."""
    job = child.job
    padding = sample.note(job.size)
    times = []
    async with open_bus(child, "requester") as bus:
        await child.ready_go_async()
        for sequence in range(job.warmup + job.count):
            start = time.perf_counter_ns()
            reply = await bus.request("responder", "command", sample.command(sequence, start, padding), timeout=10.0)
            times.append(time.perf_counter_ns() - start)
            assert reply.data["sequence"] == sequence, "a reply to another request"
    child.result(**latency_us(times[job.warmup :]))


async def responder(child: Child) -> None:
    """Answers every request from its handler."""
    async with open_bus(child, "responder") as bus:

        @bus.on("command")
        async def answer(record: Record) -> dict[str, Any]:
            return {"status": "success", "sequence": record.data["sequence"]}

        await bus.listen()
        child.ready()
        await asyncio.Event().wait()


async def background(child: Child) -> None:
    """Publishes telemetry at a steady rate until it is killed."""
    async with open_bus(child, "background") as bus:
        sender = Sender(bus, child)
        child.ready()
        async for sequence in paced_async(1 << 60, child.job.rate):
            await sender.send(sequence)


async def source(child: Child) -> None:
    """Sends at a steady rate, each record stamped with its time."""
    job = child.job
    async with open_bus(child, "source") as bus:
        sender = Sender(bus, child)
        await child.ready_go_async()
        async for sequence in paced_async(job.warmup + job.count, job.rate):
            await sender.send(sequence)
    child.result()


async def sink(child: Child) -> None:
    """The time from the stamp until the handler (or the subscription's loop) has the record."""
    job = child.job
    times: list[int] = []
    async with open_bus(child, "consumer") as bus:
        if job.variant == "topic":
            async with bus.subscribe(TOPIC) as records:
                await child.ready_go_async()
                async for record in records:
                    times.append(sample.now() - record.data["sent"])
                    if len(times) == job.warmup + job.count:
                        break
        else:
            complete = asyncio.Event()

            @bus.on("command")
            async def take(record: Record) -> None:
                times.append(sample.now() - record.data["sent"])
                if len(times) == job.warmup + job.count:
                    complete.set()

            await bus.listen()
            await child.ready_go_async()
            await complete.wait()
    child.result(**latency_us(times[job.warmup :]))


async def producer(child: Child) -> None:
    """``in_flight`` tasks, each awaiting the receipt of its record before it sends the next."""
    job = child.job
    async with open_bus(child, "producer") as bus:
        sender = Sender(bus, child)
        await child.ready_go_async()
        start = sample.now()
        await crowd(job.in_flight, job.count, sender.send)
    child.result(start=start)


async def consumer(child: Child) -> None:
    """Handles ``count`` records; the end is when the last one is committed."""
    job = child.job
    seen = first = 0
    async with open_bus(child, "consumer") as bus:
        if job.variant == "topic":
            async with bus.subscribe(TOPIC, start="oldest") as records:
                await child.ready_go_async()
                async for record in records:
                    first = first or sample.now()
                    seen += 1
                    assert record.data["sequence"] >= 0
                    if seen == job.count:
                        break
                end = sample.now()
        else:
            complete = asyncio.Event()

            async def take(_record: Record) -> None:
                nonlocal seen, first
                first = first or sample.now()
                seen += 1
                if seen == job.count:
                    complete.set()

            if job.variant != "late":
                bus.on("command")(take)
                await bus.listen()
            await child.ready_go_async()
            if job.variant == "late":
                bus.on("command")(take)
            await complete.wait()
            while bus.statistics()["consumer"]["held"]:  # noqa: ASYNC110  # there is no event for "all committed"
                await asyncio.sleep(0)
            end = sample.now()
    child.result(first=first, end=end)


async def worker(child: Child) -> None:
    """Handlers that compute for ``work_us`` on what is waiting; how long CRITICAL records wait for their start."""
    job = child.job
    times: list[int] = []
    complete = asyncio.Event()
    async with open_bus(child, "consumer") as bus:

        @bus.on("command")
        async def ordinary(_record: Record) -> None:
            sample.spin(job.work_us)

        @bus.on("emergency_command")
        async def urgent(record: Record) -> None:
            times.append(sample.now() - record.data["sent"])
            if len(times) == job.count:
                complete.set()

        await bus.listen()
        await child.ready_go_async()
        await complete.wait()
        child.result(**latency_us(times))


async def starts(child: Child) -> None:
    """Which part of ``count`` starts LOW records get, while HIGH ones are always waiting."""
    job = child.job
    levels: list[Priority] = []
    complete = asyncio.Event()
    async with open_bus(child, "consumer") as bus:

        @bus.on("command")
        async def ordinary(record: Record) -> None:
            levels.append(Priority(record.priority))
            sample.spin(job.work_us)
            if len(levels) == job.warmup + job.count:
                complete.set()

        await child.ready_go_async()
        await complete.wait()
    measured = levels[job.warmup : job.warmup + job.count]
    child.result(low_share=100.0 * measured.count(Priority.LOW) / len(measured))


async def publisher(child: Child) -> None:
    """One record at a time, then from ``in_flight`` tasks."""
    job = child.job
    rates = []
    async with open_bus(child, "publisher") as bus:
        sender = Sender(bus, child)
        await child.ready_go_async()
        for in_flight in (1, job.in_flight):
            await crowd(in_flight, job.warmup, sender.send)
            start = time.perf_counter()
            await crowd(in_flight, job.count, sender.send)
            rates.append(job.count / (time.perf_counter() - start))
    child.result(one_per_s=rates[0], many_per_s=rates[1])


ROLES: Final[dict[str, Role]] = {
    "requester": requester,
    "responder": responder,
    "background": background,
    "source": source,
    "sink": sink,
    "producer": producer,
    "consumer": consumer,
    "worker": worker,
    "starts": starts,
    "publisher": publisher,
}

if __name__ == "__main__":
    run(ROLES)
