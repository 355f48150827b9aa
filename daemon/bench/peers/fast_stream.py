"""FastStream over Redis streams: its broker, its subscribers with a consumer group, its acknowledgement; uvloop.

Everything is as it comes, its log lines for each message included (they go to a file here).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from faststream.redis import RedisBroker, StreamSub

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.child import Child, Role, run
from petalbus.daemon.bench.crowd import crowd
from petalbus.daemon.bench.pace import paced_async
from petalbus.daemon.bench.stats import latency_us
from petalbus.daemon.server.probe import unix_url


def broker_of(child: Child) -> Any:
    """A broker on the bench's server."""
    return RedisBroker(unix_url(child.job.address))


def group(stream: str) -> Any:
    """A consumer group's subscription, from the stream's beginning."""
    return StreamSub(stream, group="group", consumer="one", last_id="0")


async def requester(child: Child) -> None:
    """Publishes to one stream and waits for the answer in another: FastStream itself answers over pub/sub only."""
    job = child.job
    padding = sample.note(job.size)
    broker = broker_of(child)
    waiting: dict[int, asyncio.Future[None]] = {}

    @broker.subscriber(stream=group("replies"))  # type: ignore[untyped-decorator]  # an optional package without types here
    async def answered(body: dict[str, Any]) -> None:
        waiting.pop(body["sequence"]).set_result(None)

    await broker.start()
    times = []
    loop = asyncio.get_running_loop()
    await child.ready_go_async()
    for sequence in range(job.warmup + job.count):
        start = time.perf_counter_ns()
        future = waiting[sequence] = loop.create_future()
        await broker.publish(sample.command(sequence, start, padding), stream="requests")
        await future
        times.append(time.perf_counter_ns() - start)
    child.result(**latency_us(times[job.warmup :]))


async def responder(child: Child) -> None:
    """Answers every request by way of a publisher decorator."""
    broker = broker_of(child)

    @broker.subscriber(stream=group("requests"))  # type: ignore[untyped-decorator]  # its own types
    @broker.publisher(stream="replies")  # type: ignore[untyped-decorator]  # its own types
    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"status": "success", "sequence": body["sequence"]}

    await broker.start()
    child.ready()
    await asyncio.Event().wait()


async def source(child: Child) -> None:
    """Publishes at a steady rate, each message stamped with its time."""
    job = child.job
    padding = sample.note(job.size)
    broker = broker_of(child)
    stream = "urgent" if job.variant == "urgent" else "records"
    await broker.connect()
    await child.ready_go_async()
    async for sequence in paced_async(job.warmup + job.count, job.rate):
        await broker.publish(sample.command(sequence, sample.now(), padding), stream=stream)
    child.result()


async def sink(child: Child) -> None:
    """The time from the stamp until the handler has the message."""
    job = child.job
    broker = broker_of(child)
    times: list[int] = []
    complete = asyncio.Event()

    @broker.subscriber(stream=group("records"))  # type: ignore[untyped-decorator]  # its own types
    async def take(body: dict[str, Any]) -> None:
        times.append(sample.now() - body["sent"])
        if len(times) == job.warmup + job.count:
            complete.set()

    await broker.start()
    await child.ready_go_async()
    await complete.wait()
    child.result(**latency_us(times[job.warmup :]))


async def producer(child: Child) -> None:
    """``in_flight`` tasks, each awaiting its publish."""
    job = child.job
    padding = sample.note(job.size)
    broker = broker_of(child)
    await broker.connect()

    async def publish(sequence: int) -> None:
        await broker.publish(sample.command(sequence, sample.now(), padding), stream="records")

    await child.ready_go_async()
    start = sample.now()
    await crowd(job.in_flight, job.count, publish)
    child.result(start=start)


async def consumer(child: Child) -> None:
    """Handles ``count`` messages."""
    job = child.job
    broker = broker_of(child)
    seen = first = 0
    complete = asyncio.Event()

    @broker.subscriber(stream=group("records"))  # type: ignore[untyped-decorator]  # its own types
    async def take(_body: dict[str, Any]) -> None:
        nonlocal seen, first
        first = first or sample.now()
        seen += 1
        if seen == job.count:
            complete.set()

    if job.variant != "late":
        await broker.start()
    await child.ready_go_async()
    if job.variant == "late":
        await broker.start()
    await complete.wait()
    child.result(first=first, end=sample.now())


async def worker(child: Child) -> None:
    """Two subscribers, one a stream; how long the urgent messages wait. It has no priorities."""
    job = child.job
    broker = broker_of(child)
    times: list[int] = []
    complete = asyncio.Event()

    @broker.subscriber(stream=group("records"))  # type: ignore[untyped-decorator]  # its own types
    async def ordinary(_body: dict[str, Any]) -> None:
        sample.spin(job.work_us)

    @broker.subscriber(stream=group("urgent"))  # type: ignore[untyped-decorator]  # its own types
    async def urgent(body: dict[str, Any]) -> None:
        times.append(sample.now() - body["sent"])
        if len(times) == job.count:
            complete.set()

    await broker.start()
    await child.ready_go_async()
    await complete.wait()
    child.result(**latency_us(times))


async def publisher(child: Child) -> None:
    """One publish at a time, then from ``in_flight`` tasks."""
    job = child.job
    padding = sample.note(job.size)
    broker = broker_of(child)
    await broker.connect()
    rates = []

    async def publish(sequence: int) -> None:
        await broker.publish(sample.telemetry(sequence, sample.now(), padding), stream="topic")

    await child.ready_go_async()
    for in_flight in (1, job.in_flight):
        await crowd(in_flight, job.warmup, publish)
        start = time.perf_counter()
        await crowd(in_flight, job.count, publish)
        rates.append(job.count / (time.perf_counter() - start))
    child.result(one_per_s=rates[0], many_per_s=rates[1])


ROLES: Final[dict[str, Role]] = {
    "requester": requester,
    "responder": responder,
    "source": source,
    "sink": sink,
    "producer": producer,
    "consumer": consumer,
    "worker": worker,
    "publisher": publisher,
}

if __name__ == "__main__":
    run(ROLES)
