"""The floor: blocking sockets, the `hiredis` parser and packer, nothing else. As little as Python can do.

One connection a process. What a program would send one after the other leaves in one write: acknowledgement, reply and
the next read; the append and the read that waits for its answer.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any, Final

import hiredis

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.child import Child, Role, run
from petalbus.daemon.bench.pace import paced
from petalbus.daemon.bench.stats import latency_us

BLOCK_MS: Final = 20_000
BATCH: Final = 64


class Wire:
    """A blocking connection: write commands, read replies."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader()
        self.send = self._socket.sendall

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def reply(self) -> Any:
        """The next reply; raises the server's error."""
        reply = self._reader.gets()
        while reply is False:
            chunk = self._socket.recv(65_536)
            if not chunk:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(chunk)
            reply = self._reader.gets()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def replies(self) -> int:
        """Take at least one reply and all that have arrived with it; how many they were."""
        self.reply()
        count = 1
        while self._reader.gets() is not False:
            count += 1
        return count

    def call(self, *words: bytes | str | int) -> Any:
        """One command and its reply."""
        self.send(pack(*words))
        return self.reply()


def pack(*words: bytes | str | int) -> bytes:
    """One command as bytes."""
    packed: bytes = hiredis.pack_command(words)
    return packed


def group_read(stream: str) -> bytes:
    """The blocking read of a group's new entries."""
    return pack("XREADGROUP", "GROUP", "group", "one", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", stream, ">")


def batches(wire: Wire, stream: str) -> Iterator[list[tuple[bytes, list[bytes]]]]:
    """What a group reads, batch by batch; each is acknowledged in one write with the next read. Never ends."""
    read = group_read(stream)
    wire.send(read)
    while True:
        entries = wire.reply()[0][1]
        yield entries
        wire.send(pack("XACK", stream, "group", *[entry for entry, _ in entries]) + read)
        wire.reply()


def requester(child: Child) -> None:
    """Requests one after the other; the time from before the append until the reply is there."""
    job = child.job
    wire = Wire(job.address)
    padding = sample.note(job.size).encode()
    last = b"0-0"
    times = []
    child.ready_go()
    for sequence in range(job.warmup + job.count):
        start = time.perf_counter_ns()
        data = sample.command_bytes(sequence, start, padding)
        wait = pack("XREAD", "BLOCK", BLOCK_MS, "STREAMS", "replies", last)
        wire.send(pack("XADD", "requests", "*", "data", data) + wait)
        wire.reply()
        last = wire.reply()[0][1][0][0]
        times.append(time.perf_counter_ns() - start)
    child.result(**latency_us(times[job.warmup :]))


def responder(child: Child) -> None:
    """Answers every request."""
    wire = Wire(child.job.address)
    wire.call("XGROUP", "CREATE", "requests", "group", "0", "MKSTREAM")
    read = group_read("requests")
    wire.send(read)
    child.ready()
    while True:
        entries = wire.reply()[0][1]
        out = []
        for entry, _fields in entries:
            out.append(pack("XACK", "requests", "group", entry))
            out.append(pack("XADD", "replies", "*", "data", b'{"status":"success","sequence":1}'))
        wire.send(b"".join(out) + read)
        for _ in out:
            wire.reply()


def source(child: Child) -> None:
    """Appends at a steady rate, each stamped with its time."""
    job = child.job
    wire = Wire(job.address)
    padding = sample.note(job.size).encode()
    stream = "urgent" if job.variant == "urgent" else "records"
    child.ready_go()
    for sequence in paced(job.warmup + job.count, job.rate):
        wire.call("XADD", stream, "*", "data", sample.command_bytes(sequence, sample.now(), padding))
    child.result()


def sink(child: Child) -> None:
    """Reads and acknowledges; the time from the stamp until the entry is here."""
    job = child.job
    wire = Wire(job.address)
    wire.call("XGROUP", "CREATE", "records", "group", "0", "MKSTREAM")
    times: list[int] = []
    child.ready_go()
    for entries in batches(wire, "records"):
        times += [sample.now() - sample.sent_at(fields[1]) for _, fields in entries]
        if len(times) >= job.warmup + job.count:
            break
    child.result(**latency_us(times[job.warmup :]))


def producer(child: Child) -> None:
    """Appends with a sliding window of ``in_flight`` that wait for their replies."""
    job = child.job
    wire = Wire(job.address)
    child.ready_go()
    start = sample.now()
    _append(wire, "records", job.count, job.in_flight, sample.note(job.size).encode())
    child.result(start=start)


def consumer(child: Child) -> None:
    """Reads and acknowledges ``count`` entries."""
    job = child.job
    wire = Wire(job.address)
    wire.call("XGROUP", "CREATE", "records", "group", "0", "MKSTREAM")
    seen = first = 0
    child.ready_go()
    for entries in batches(wire, "records"):
        first = first or sample.now()
        seen += len(entries)
        if seen >= job.count:
            wire.call("XACK", "records", "group", *[entry for entry, _ in entries])
            break
    child.result(first=first, end=sample.now())


def worker(child: Child) -> None:
    """One entry at a time from two streams, the urgent one first; how long its entries wait for their start."""
    job = child.job
    wire = Wire(job.address)
    streams = ("urgent", "records")
    for stream in streams:
        wire.call("XGROUP", "CREATE", stream, "group", "0", "MKSTREAM")
    read = pack("XREADGROUP", "GROUP", "group", "one", "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", *streams, ">", ">")
    times: list[int] = []
    child.ready_go()
    while len(times) < job.count:
        wire.send(read)
        for stream, entries in wire.reply():
            entry, fields = entries[0]
            if stream == b"urgent":
                times.append(sample.now() - sample.sent_at(fields[1]))
            else:
                sample.spin(job.work_us)
            wire.call("XACK", stream, "group", entry)
    child.result(**latency_us(times))


def publisher(child: Child) -> None:
    """Appends to one stream: one at a time, then with ``in_flight`` at once."""
    job = child.job
    wire = Wire(job.address)
    padding = sample.note(job.size).encode()
    child.ready_go()
    rates = []
    for in_flight in (1, job.in_flight):
        _append(wire, "topic", job.warmup, in_flight, padding)
        start = time.perf_counter()
        _append(wire, "topic", job.count, in_flight, padding)
        rates.append(job.count / (time.perf_counter() - start))
    child.result(one_per_s=rates[0], many_per_s=rates[1])


def _append(wire: Wire, stream: str, count: int, in_flight: int, padding: bytes) -> None:
    head = (b"XADD", stream.encode(), b"*", b"data")
    sent = answered = 0
    while answered < count:
        room = min(in_flight - (sent - answered), count - sent)
        if room:
            numbers = range(sent, sent + room)
            wire.send(b"".join([pack(*head, sample.command_bytes(n, sample.now(), padding)) for n in numbers]))
            sent += room
        answered += wire.replies()


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
