"""NATS with nats-py and uvloop, over loopback TCP: JetStream on file storage with explicit acknowledgement.

Request and reply is NATS core's own (nothing is stored): JetStream has no request of its own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StorageType

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.child import Child, Role, run
from petalbus.daemon.bench.crowd import crowd
from petalbus.daemon.bench.pace import paced_async
from petalbus.daemon.bench.stats import latency_us

STREAM: Final = "bench"
SUBJECT: Final = "bench.records"


async def connect(child: Child) -> Any:
    """A connection to the bench's NATS server."""
    return await nats.connect(child.job.address)


async def fresh_stream(connection: Any) -> Any:
    """JetStream with an empty stream: the server is shared by all turns."""
    jet = connection.jetstream()
    names = [info.config.name for info in await jet.streams_info()]
    if STREAM in names:
        await jet.delete_stream(STREAM)
    await jet.add_stream(name=STREAM, subjects=[SUBJECT], storage=StorageType.FILE)
    return jet


async def push_subscription(jet: Any) -> Any:
    """A durable push consumer with explicit acknowledgement."""
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1024)
    return await jet.subscribe(SUBJECT, durable="one", manual_ack=True, config=config)


async def requester(child: Child) -> None:
    """Requests one after the other."""
    job = child.job
    padding = sample.note(job.size).encode()
    connection = await connect(child)
    times = []
    await child.ready_go_async()
    for sequence in range(job.warmup + job.count):
        start = time.perf_counter_ns()
        await connection.request("requests", sample.command_bytes(sequence, start, padding), timeout=10.0)
        times.append(time.perf_counter_ns() - start)
    child.result(**latency_us(times[job.warmup :]))


async def responder(child: Child) -> None:
    """Answers every request."""
    connection = await connect(child)

    async def answer(message: Any) -> None:
        await message.respond(b'{"status":"success","sequence":1}')

    await connection.subscribe("requests", cb=answer)
    await connection.flush()
    child.ready()
    await asyncio.Event().wait()


async def source(child: Child) -> None:
    """Publishes at a steady rate, each message stamped with its time."""
    job = child.job
    padding = sample.note(job.size).encode()
    jet = (await connect(child)).jetstream()
    await child.ready_go_async()
    async for sequence in paced_async(job.warmup + job.count, job.rate):
        await jet.publish(SUBJECT, sample.command_bytes(sequence, sample.now(), padding))
    child.result()


async def sink(child: Child) -> None:
    """The time from the stamp until the message is here."""
    job = child.job
    subscription = await push_subscription(await fresh_stream(await connect(child)))
    times = []
    await child.ready_go_async()
    for _ in range(job.warmup + job.count):
        message = await subscription.next_msg(timeout=20.0)
        times.append(sample.now() - sample.sent_at(message.data))
        await message.ack()
    child.result(**latency_us(times[job.warmup :]))


async def producer(child: Child) -> None:
    """``in_flight`` tasks, each awaiting the server's acknowledgement."""
    job = child.job
    padding = sample.note(job.size).encode()
    connection = await connect(child)
    jet = await fresh_stream(connection) if job.variant == "late" else connection.jetstream()

    async def publish(sequence: int) -> None:
        await jet.publish(SUBJECT, sample.command_bytes(sequence, sample.now(), padding))

    await child.ready_go_async()
    start = sample.now()
    await crowd(job.in_flight, job.count, publish)
    child.result(start=start)


async def consumer(child: Child) -> None:
    """Takes and acknowledges ``count`` messages."""
    job = child.job
    connection = await connect(child)
    jet = connection.jetstream() if job.variant == "late" else await fresh_stream(connection)
    complete = asyncio.Event()
    seen = first = 0

    async def take(message: Any) -> None:
        nonlocal seen, first
        first = first or sample.now()
        seen += 1
        await message.ack()
        if seen == job.count:
            complete.set()

    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1024)
    if job.variant == "late":
        await child.ready_go_async()
    await jet.subscribe(SUBJECT, durable="one", manual_ack=True, config=config, cb=take)
    if job.variant != "late":
        await child.ready_go_async()
    await complete.wait()
    await connection.flush()
    child.result(first=first, end=sample.now())


async def publisher(child: Child) -> None:
    """One publish at a time, then from ``in_flight`` tasks; each is acknowledged by the server."""
    job = child.job
    padding = sample.note(job.size).encode()
    jet = await fresh_stream(await connect(child))
    rates = []

    async def publish(sequence: int) -> None:
        await jet.publish(SUBJECT, sample.command_bytes(sequence, sample.now(), padding))

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
    "publisher": publisher,
}

if __name__ == "__main__":
    run(ROLES)
