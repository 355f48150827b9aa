"""The kit's two buses: the one in memory carries the whole scenario of the bus, and says where it is no server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bus.scenario import scenario
from bus.scripts_scenario import Scripts, scripts_scenario
from petalbus.daemon.bus.connection import Connection, ServerError, open_connection
from petalbus.daemon.bus.url import parse
from petalbus.petals.testing.memory import encode
from petalbus.testing import MemoryBus, RealBus, TestBus

from support.procs import Children

pytest_plugins = ["petalbus.petals.testing.plugin"]


async def connected(bus: TestBus) -> Connection:
    return await open_connection(parse(bus.url), timeout=5, patience=10)


async def test_the_whole_scenario_runs_in_memory_as_on_every_real_server(memory_bus: MemoryBus) -> None:
    """Send, handle, answer, fail, bury, mend, cancel, expire, publish: the same file as tests/bus/test_conformance."""
    async with memory_bus:
        await asyncio.wait_for(scenario(memory_bus.url, memory_bus.name), 30)


async def test_the_scripts_run_in_memory_with_their_flags(memory_bus: MemoryBus) -> None:
    async with memory_bus:
        connection = await connected(memory_bus)
        await scripts_scenario(Scripts(connection, memory_bus.name))
        connection.close()


async def test_a_blocked_read_ends_with_an_entry_its_time_or_unblock(each_bus: TestBus) -> None:
    """What fakeredis alone does not do; here both buses do it alike."""
    async with each_bus:
        reader, other = await connected(each_bus), await connected(each_bus)
        number = await reader.call("CLIENT", "ID")

        def read(block: int) -> asyncio.Future[object]:
            return reader.call("XREAD", "COUNT", 10, "BLOCK", block, "STREAMS", "s", "0")

        began = asyncio.get_running_loop().time()
        assert await read(50) is None
        assert asyncio.get_running_loop().time() - began >= 0.045

        waiting = read(20_000)
        while not await other.call("CLIENT", "UNBLOCK", number):
            await asyncio.sleep(0.001)
        assert await waiting is None

        waiting, behind = read(20_000), reader.call("ECHO", "behind")
        await other.call("XADD", "s", "1-1", "a", "b")
        assert await waiting == [[b"s", [[b"1-1", [b"a", b"b"]]]]]
        assert await behind == b"behind"
        for connection in (reader, other):
            connection.close()


async def test_a_read_of_a_group_that_is_not_there_says_so(each_bus: TestBus) -> None:
    async with each_bus:
        connection = await connected(each_bus)
        with pytest.raises(ServerError, match=r"^NOGROUP"):
            await connection.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", 10, "STREAMS", "s", ">")
        with pytest.raises(ServerError, match=r"^NOSCRIPT"):
            await connection.call("EVALSHA", "0" * 40, 0)
        connection.close()


async def test_what_would_block_the_loop_is_refused_in_memory(memory_bus: MemoryBus) -> None:
    async with memory_bus:
        connection = await connected(memory_bus)
        with pytest.raises(ServerError, match="BLPOP would block"):
            await connection.call("BLPOP", "list", 0)
        connection.close()


@pytest.mark.parametrize(("kind", "durability"), [(MemoryBus, "memory"), (RealBus, "everysec")])
async def test_receipts_say_what_the_bus_keeps(kind: type[TestBus], durability: str) -> None:
    async with kind() as bus, bus.client("gcs") as gcs:
        receipt = await gcs.send("nobody", "note", {})
        assert receipt.durability == durability


async def test_a_bus_lives_as_long_as_somebody_uses_it(each_bus: TestBus) -> None:
    """Nested blocks share one server; after the last one its directory is gone, and a new block begins with nothing."""
    async with each_bus:
        directory = each_bus.directory
        async with each_bus, each_bus.client("a") as client:
            await client.send("b", "note", {})
        async with each_bus.client("b") as other:
            assert await other.call("XLEN", other.keys.inbox("b", 2)) == 1
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = each_bus.url
    async with each_bus, each_bus.client("b") as other:
        assert await other.call("XLEN", other.keys.inbox("b", 2)) == 0


async def test_a_topic_is_followed_in_memory(memory_bus: MemoryBus) -> None:
    async with memory_bus, memory_bus.client("a") as a, memory_bus.client("b") as b, b.subscribe("news") as news:
        await a.publish("news", "note", {"n": 1})
        async with asyncio.timeout(5):
            assert (await anext(aiter(news))).data == {"n": 1}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_another_client_library_finds_keys_and_channels(each_bus: TestBus, protocol: int) -> None:
    """What a petal's own use of Redis needs: values, hashes, lists, publish and subscribe, in both protocols."""
    async with each_bus:
        options: Any = {"protocol": protocol, "decode_responses": True, "retry": Retry(NoBackoff(), 0)}
        client = redis.asyncio.Redis(unix_socket_path=str(each_bus.socket), **options)
        async with client, client.pubsub() as channels:
            await client.set("key", "value", ex=60)
            await client.hset("hash", mapping={"a": "1", "b": "2"})
            await client.rpush("list", "x", "y")
            assert await client.get("key") == "value"
            assert await client.hgetall("hash") == {"a": "1", "b": "2"}
            assert await client.lrange("list", 0, -1) == ["x", "y"]
            assert sorted([key async for key in client.scan_iter("*")]) == ["hash", "key", "list"]
            await channels.subscribe("one")
            await channels.psubscribe("t*")
            while await channels.get_message(timeout=0.2) is not None:
                continue
            assert await client.publish("one", "1") == 1
            assert await client.publish("two", "2") == 1
            heard = [await channels.get_message(timeout=2) for _ in range(2)]
            assert [(one["type"], one["data"]) for one in heard if one] == [("message", "1"), ("pmessage", "2")]


KILLED = """
import asyncio, os, signal
from petalbus.testing import RealBus

async def main():
    async with RealBus() as bus, bus.client("a") as client:
        info = (await client.call("INFO", "server")).decode()
        print(info.partition("process_id:")[2].split()[0], bus.directory, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_test_that_is_killed_leaves_no_server_and_no_directory(children: Children) -> None:
    child = await children.code(KILLED)
    pid, directory = (await child.line("/")).split()
    await child.wait()
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() or Path(directory).exists():
            await asyncio.sleep(0.01)


def test_without_fakeredis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lupa", None)

    async def use() -> None:
        async with MemoryBus():
            raise AssertionError("it must not start")

    with pytest.raises(ImportError, match=r"petalbus\[testing\]"):
        asyncio.run(use())


@pytest.mark.parametrize(
    ("value", "two", "three"),
    [
        (None, b"*-1\r\n", b"_\r\n"),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n", b"$4\r\na\r\nb\r\n"),
        (7, b":7\r\n", b":7\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        ({b"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        ([b"a", None], b"*2\r\n$1\r\na\r\n$-1\r\n", b"*2\r\n$1\r\na\r\n_\r\n"),
    ],
)
def test_answers_are_written_in_both_protocols(value: object, two: bytes, three: bytes) -> None:
    assert (encode(value), encode(value, 3)) == (two, three)


def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the server cannot start."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lupa", None)

    async def use() -> None:
        async with MemoryBus():
            raise AssertionError("it must not start")

    with pytest.raises(ImportError):
        asyncio.run(use())
    assert list(tmp_path.iterdir()) == []
