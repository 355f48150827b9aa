"""The life of a few messages in the bus's scripts alone, without blocking reads: runs on everything that
speaks Redis.
"""

from __future__ import annotations

from typing import Any

from petalbus.daemon.bus.connection import Connection
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.scripts import load

OUT = ("type", "reply")


class Scripts:
    """Runs scripts over one connection. ``flags=False``: without their first line, for a server that knows no flags."""

    def __init__(self, connection: Connection, bus: str, *, flags: bool = True) -> None:
        self.connection = connection
        self.keys = Keys(bus)
        self.inbox = self.keys.inbox("app", 2)
        self._flags = flags

    async def run(self, name: str, keys: list[str], *args: Any) -> Any:
        """Run one script."""
        text = load(name).text
        if not self._flags and text.startswith(b"#!"):
            text = text.partition(b"\n")[2]
        return await self.connection.call("EVAL", text, len(keys), *keys, *args)

    async def append(self, *ids: str) -> list[bytes]:
        """Append records whose only field is their id."""
        keys = [self.inbox, self.keys.ids, self.keys.ids_before]
        args: list[Any] = []
        for one in ids:
            args += [one, "|2|app|gcs", 2, "id", one]
        answer: list[bytes] = await self.run("append", keys, 1000, 1000, len(ids), *args)
        return answer

    async def read(self, consumer: str, count: int) -> list[bytes]:
        """Read new entries; their ids."""
        call = ("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", self.inbox, ">")
        answer = await self.connection.call(*call)
        return [entry for entry, _ in answer[0][1]]

    async def begin(self, consumer: str, entry: bytes, message_id: str, attempt: int = 1) -> int:
        """Mark as processing."""
        keys = [self.inbox, self.keys.ids, self.keys.fenced]
        state = b"p" + entry + b"|2|app|gcs"
        return int(await self.run("begin", keys, GROUP, consumer, entry, message_id, state, attempt))

    async def commit(self, consumer: str, *settled: tuple[bytes, str]) -> Any:
        """Settle entries as completed, each with one reply."""
        keys = [self.inbox, self.keys.ids, self.keys.fenced, self.keys.replies("gcs")]
        args: list[Any] = []
        for entry, message_id in settled:
            args += [entry, message_id, b"c" + entry + b"|2|app|gcs", 1, 4, 100, len(OUT), *OUT]
        return await self.run("commit", keys, GROUP, consumer, len(settled), *args)

    async def takeover(self, dead: str, successor: str, most: int) -> list[Any]:
        """Fence ``dead`` and take its entries."""
        keys = [self.inbox, self.keys.fenced, self.keys.ids, self.keys.ids_before]
        rows: list[Any] = await self.run("takeover", keys, GROUP, dead, successor, most)
        return rows

    async def known(self, message_id: str) -> bytes:
        """What the window says."""
        return bytes(await self.connection.call("HGET", self.keys.ids, message_id) or b"")


async def scripts_scenario(scripts: Scripts) -> None:
    """Append, read, begin, commit, die, take over, fence, retire, cancel, requeue; asserts what each leaves behind."""
    call, keys = scripts.connection.call, scripts.keys
    first, second, third = await scripts.append("a", "b", "c")
    assert await scripts.append("b", "d", "b") == [
        b"q" + second + b"|2|app|gcs",
        (await _last(scripts)),
        await scripts.known("b"),
    ]
    await call("XGROUP", "CREATE", scripts.inbox, GROUP, "0")
    assert await scripts.read("c1", 3) == [first, second, third]

    # a commit settles once, whoever repeats it, and leaves one reply
    assert await scripts.begin("c1", first, "a") == 1
    assert await scripts.commit("c1", (first, "a")) == [1]
    assert await scripts.commit("c1", (first, "a")) == [0]
    assert await call("XLEN", keys.replies("gcs")) == 1
    assert (await scripts.known("a")).startswith(b"c" + first + b"|2|app|gcs|")

    # c1 dies while it works on b; c2 takes b and c, with what is known of them, and c1 is fenced
    assert await scripts.begin("c1", second, "b") == 1
    assert await scripts.takeover("c1", "c2", 0) == []
    rows = await scripts.takeover("c1", "c2", 10)
    assert [(row[0], row[1], row[3][:1]) for row in rows] == [(second, 1, b"p"), (third, 1, b"q")]
    assert [row[2] for row in rows] == [[b"id", b"b"], [b"id", b"c"]]
    assert await scripts.takeover("c1", "c2", 10) == []
    assert await scripts.commit("c1", (second, "b")) == b"FENCED"
    assert await scripts.begin("c1", third, "c") <= 0
    assert await call("XLEN", keys.replies("gcs")) == 1

    # an attempt is counted when it begins, not when an entry changes hands
    assert await scripts.begin("c2", second, "b", 2) == 1
    assert [row[:2] for row in await scripts.takeover("c2", "c3", 10)] == [[second, 2], [third, 1]]
    assert await scripts.commit("c3", (second, "b"), (third, "c")) == [1, 1]
    await _leaving(scripts)


async def _last(scripts: Scripts) -> bytes:
    rows = await scripts.connection.call("XREVRANGE", scripts.inbox, "+", "-", "COUNT", 1)
    return bytes(rows[0][0])


async def _leaving(scripts: Scripts) -> None:
    call, keys = scripts.connection.call, scripts.keys
    (fourth,) = await scripts.read("c4", 1)
    await call("HSET", keys.beats, "app|c4", 7)
    assert await scripts.run("retire", [keys.beats, scripts.inbox], GROUP, "c4", "app|c4") == 1
    assert await call("HGET", keys.beats, "app|c4") == b"-1", "a successor may take it at once"
    assert [row[0] for row in await scripts.takeover("c4", "c5", 10)] == [fourth]
    assert await scripts.commit("c5", (fourth, "d")) == [1]
    await call("HSET", keys.beats, "app|c5", 7)
    assert await scripts.run("retire", [keys.beats, scripts.inbox], GROUP, "c5", "app|c5") == 0
    assert await call("HGET", keys.beats, "app|c5") is None

    (fifth,) = await scripts.append("e")
    cancel_keys = [scripts.inbox, keys.ids, keys.replies("gcs"), keys.control("app")]
    cancel_args = (GROUP, fifth, "e", b"x" + fifth + b"|2|app|gcs", 100, 100, *OUT)
    assert await scripts.run("cancel", cancel_keys, *cancel_args) == b"cancelled"
    assert await scripts.run("cancel", cancel_keys, *cancel_args) == b"gone"
    assert (await scripts.known("e")).startswith(b"x")

    letter = await call("XADD", keys.dead("app"), "*", "id", "f")
    requeue_keys = [keys.dead("app"), scripts.inbox, keys.ids, f"{keys.prefix}once:1"]
    again = await scripts.run("requeue", requeue_keys, letter, "f", "|2|app|gcs", 60_000, "id", "f")
    assert await scripts.known("f") == b"q" + again + b"|2|app|gcs"
    assert await scripts.run("requeue", requeue_keys, letter, "f", "|2|app|gcs", 60_000, "id", "f") == again
    requeue_keys[-1] = f"{keys.prefix}once:2"
    assert await scripts.run("requeue", requeue_keys, letter, "f", "|2|app|gcs", 60_000, "id", "f") == b""
    assert await scripts.read("c6", 10) == [again]
