"""Plain redis-py: asyncio, the hiredis parser, uvloop, retries off (they would repeat commands); bare commands."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.child import Child, Role, run
from petalbus.daemon.bench.crowd import crowd
from petalbus.daemon.bench.pace import paced_async
from petalbus.daemon.bench.stats import latency_us

BLOCK_MS: Final = 20_000
BATCH: Final = 64


def connect(child: Child) -> Any:
    """A client; typed loosely, because redis-py's own types say less than they promise."""
    return Redis(unix_socket_path=child.job.address, retry=Retry(NoBackoff(), 0), socket_timeout=30.0, protocol=2)


async def make_group(redis: Any, stream: str) -> None:
    """The consumer group, from the stream's beginning."""
    await redis.xgroup_create(stream, "group", "0", mkstream=True)


async def batches(redis: Any, stream: str) -> AsyncIterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    """What the group reads, each batch acknowledged with one XACK before the next read. Never ends."""
    while True:
        rows = await redis.xreadgroup("group", "one", {stream: ">"}, count=BATCH, block=BLOCK_MS)
        yield rows[0][1]
        await redis.xack(stream, "group", *[entry for entry, _ in rows[0][1]])


async def requester(child: Child) -> None:
    """Requests one after the other: XADD, then XREAD BLOCK for the reply."""
    job = child.job
    padding = sample.note(job.size).encode()
    redis = connect(child)
    last: bytes = b"0-0"
    times = []
    await redis.ping()
    await child.ready_go_async()
    for sequence in range(job.warmup + job.count):
        start = time.perf_counter_ns()
        await redis.xadd("requests", {"data": sample.command_bytes(sequence, start, padding)})
        rows = await redis.xread({"replies": last}, block=BLOCK_MS)
        last = rows[0][1][0][0]
        times.append(time.perf_counter_ns() - start)
    child.result(**latency_us(times[job.warmup :]))


async def responder(child: Child) -> None:
    """XREADGROUP BLOCK, XADD of the reply, XACK."""
    redis = connect(child)
    await make_group(redis, "requests")
    child.ready()
    while True:
        rows = await redis.xreadgroup("group", "one", {"requests": ">"}, count=BATCH, block=BLOCK_MS)
        for entry, _fields in rows[0][1]:
            await redis.xadd("replies", {"data": b'{"status":"success","sequence":1}'})
            await redis.xack("requests", "group", entry)


async def source(child: Child) -> None:
    """Appends at a steady rate, each stamped with its time."""
    job = child.job
    padding = sample.note(job.size).encode()
    redis = connect(child)
    stream = "urgent" if job.variant == "urgent" else "records"
    await redis.ping()
    await child.ready_go_async()
    async for sequence in paced_async(job.warmup + job.count, job.rate):
        await redis.xadd(stream, {"data": sample.command_bytes(sequence, sample.now(), padding)})
    child.result()


async def sink(child: Child) -> None:
    """The time from the stamp until the entry is here."""
    job = child.job
    redis = connect(child)
    await make_group(redis, "records")
    times: list[int] = []
    await child.ready_go_async()
    async for entries in batches(redis, "records"):
        times += [sample.now() - sample.sent_at(fields[b"data"]) for _, fields in entries]
        if len(times) >= job.warmup + job.count:
            break
    child.result(**latency_us(times[job.warmup :]))


async def producer(child: Child) -> None:
    """Tuned: ``in_flight`` appends leave as one pipeline."""
    job = child.job
    padding = sample.note(job.size).encode()
    redis = connect(child)
    await redis.ping()
    await child.ready_go_async()
    start = sample.now()
    for first in range(0, job.count, job.in_flight):
        pipeline = redis.pipeline(transaction=False)
        for sequence in range(first, min(first + job.in_flight, job.count)):
            pipeline.xadd("records", {"data": sample.command_bytes(sequence, sample.now(), padding)})
        await pipeline.execute()
    child.result(start=start)


async def consumer(child: Child) -> None:
    """Reads and acknowledges ``count`` entries in batches."""
    job = child.job
    redis = connect(child)
    await make_group(redis, "records")
    seen = first = 0
    await child.ready_go_async()
    async for entries in batches(redis, "records"):
        first = first or sample.now()
        seen += len(entries)
        if seen >= job.count:
            await redis.xack("records", "group", *[entry for entry, _ in entries])
            break
    child.result(first=first, end=sample.now())


async def worker(child: Child) -> None:
    """Batches of ten from two streams, as one reads without more thought; how long the urgent ones wait."""
    job = child.job
    redis = connect(child)
    for stream in ("urgent", "records"):
        await make_group(redis, stream)
    times: list[int] = []
    await child.ready_go_async()
    while len(times) < job.count:
        streams = {"urgent": ">", "records": ">"}
        for stream, entries in await redis.xreadgroup("group", "one", streams, count=10, block=BLOCK_MS):
            for entry, fields in entries:
                if stream == b"urgent":
                    times.append(sample.now() - sample.sent_at(fields[b"data"]))
                else:
                    sample.spin(job.work_us)
                await redis.xack(stream, "group", entry)
    child.result(**latency_us(times))


async def publisher(child: Child) -> None:
    """One XADD at a time, then from ``in_flight`` tasks over the client's own connection pool."""
    job = child.job
    padding = sample.note(job.size).encode()
    redis = connect(child)
    rates = []

    async def publish(sequence: int) -> None:
        await redis.xadd("topic", {"data": sample.command_bytes(sequence, sample.now(), padding)})

    await redis.ping()
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
