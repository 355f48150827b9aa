"""A petal in a process of its own answers at the same address, over its unix socket."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from petalbus.daemon.http.relay import Relay
from petalbus.daemon.http.server import unix_listener

from .conftest import Child, Serve, deaf_client, until
from .petals import Alpha, Beta
from support.procs import child_environment
from support.servers import short_directory

StartChild = Callable[..., Awaitable[Child]]


async def test_requests_pass_as_they_are(serve: Serve, child: StartChild) -> None:
    site = await serve()
    own = await child(Alpha())
    site.mounts.mount("alpha", own.relay)
    assert (await site.get("/petals/alpha/plain?count=3")).json() == {"hello": 3, "thread": True}
    made = await site.post("/petals/alpha/items", json={"name": "a"})
    assert (made.status_code, made.headers["x-made"]) == (201, "a")
    assert (await site.client.delete("/petals/alpha/items/1")).status_code == 404
    assert (await site.get("/petals/alpha/values")).json()["deep"] == [{"inf": [None, None]}]
    failed = await site.get("/petals/alpha/fails", headers={"x-request-id": "same-one"})
    assert (failed.status_code, failed.json()["request_id"]) == (500, "same-one")
    assert failed.headers.get_list("x-request-id") == ["same-one"]
    assert (await site.client.head("/petals/alpha/plain")).status_code == 405
    upload = await site.post("/petals/alpha/upload", files={"file": ("log.ulg", b"x" * 300_000)})
    assert upload.json() == {"name": "log.ulg", "size": 300_000}


async def test_the_petal_sees_the_client_and_the_address_it_called(serve: Serve, child: StartChild) -> None:
    site = await serve()
    own = await child(Alpha())
    site.mounts.mount("alpha", own.relay)
    headers = [("x-custom", "1"), ("x-custom", "2"), ("x-forwarded-for", "6.6.6.6")]
    seen = (await site.get("/petals/alpha/client?a=%20b", headers=headers)).json()
    assert seen["client"] == "127.0.0.1"
    assert seen["url"] == f"{site.url}/petals/alpha/client?a=%20b"
    assert seen["here"] == f"{site.url}/petals/alpha/client"
    assert seen["forwarded"] == "127.0.0.1"
    assert seen["custom"] == ["1", "2"]
    assert seen["id"]


async def test_bodies_travel_in_pieces_and_each_side_waits_for_the_other(serve: Serve, child: StartChild) -> None:
    petal = Alpha()
    site = await serve()
    own = await child(petal)
    site.mounts.mount("alpha", own.relay)
    given = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(600):
            given += 1 << 16
            yield b"x" * (1 << 16)

    up = asyncio.create_task(site.post("/petals/alpha/stream", content=pieces(), headers={"x-wait": "1"}))
    await until(lambda: petal.received > 100_000)
    before = -1
    while before != given:  # it goes on until all buffers between here and there are full
        before = given
        await asyncio.sleep(0.05)
    assert given < 16 << 20
    petal.gate.set()
    assert (await up).json() == 600 << 16
    petal.gate.clear()
    async with site.client.stream("GET", "/petals/alpha/ticks") as answer:
        lines = answer.aiter_lines()
        for number in range(3):
            assert await anext(lines) == f"tick {number}"
            petal.gate.set()


async def test_a_client_that_does_not_read_holds_up_the_petal(serve: Serve, child: StartChild) -> None:
    petal = Alpha()
    site = await serve(write_timeout=0.5)
    own = await child(petal, write_timeout=10)
    site.mounts.mount("alpha", own.relay)
    with deaf_client(site, "/petals/alpha/endless"):
        await until(lambda: site.app.statistics()["requests_open"] == 1)
        await until(lambda: site.app.statistics()["requests_open"] == 0)
        assert 0 < petal.sent < 32 << 20
    await until(lambda: own.app._open == 0)


async def test_a_client_that_goes_away_is_gone_for_the_petal_too(serve: Serve, child: StartChild) -> None:
    petal = Alpha()
    site = await serve()
    own = await child(petal)
    site.mounts.mount("alpha", own.relay)
    with deaf_client(site, "/petals/alpha/ticks"):
        await until(lambda: own.app._open == 1)
    await until(lambda: own.app._open == 0)


async def test_websockets_pass_both_ways(serve: Serve, child: StartChild) -> None:
    petal = Alpha()
    site = await serve()
    own = await child(petal)
    site.mounts.mount("alpha", own.relay)
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None, subprotocols=["v2"]) as there:  # type: ignore[list-item]  # NewType
        assert there.subprotocol == "v2"
        await there.send("word")
        await there.send(b"\x00\xff")
        assert [await there.recv(), await there.recv()] == ["word", b"\x00\xff"]
        await there.send("leave")
        with pytest.raises(ConnectionClosed):
            await there.recv()
        assert (there.close_code, there.close_reason) == (4001, "as you wish")
    there = await connect(f"{site.ws}/petals/alpha/ws", proxy=None)
    await until(lambda: len(petal.sockets) == 1)
    await there.close(4002, "bye")
    await until(lambda: petal.sockets == [])
    assert petal.disconnects == [4002]
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{site.ws}/petals/alpha/closed", proxy=None)
    assert refused.value.response.status_code == 500
    with pytest.raises(InvalidStatus) as unknown:
        await connect(f"{site.ws}/petals/alpha/nothing", proxy=None)
    assert unknown.value.response.status_code == 403


async def test_a_petal_s_process_may_end_and_come_back(serve: Serve, child: StartChild) -> None:
    """Until it is back, its address answers 503; its websockets are closed with 1012; nobody else notices."""
    petal = Alpha()
    site = await serve(Beta())
    own = await child(petal)
    site.mounts.mount("alpha", own.relay)
    async with (
        connect(f"{site.ws}/petals/alpha/ws", proxy=None) as mine,
        connect(f"{site.ws}/petals/beta/ws", proxy=None) as other,
    ):
        request = asyncio.create_task(site.get("/petals/alpha/waits"))
        await until(lambda: petal.waiting == 1 and len(petal.sockets) == 1)
        await own.down()
        with pytest.raises(ConnectionClosed):
            await mine.recv()
        assert mine.close_code == 1012
        answer = await request
        assert answer.status_code in (500, 502)
        away = await site.get("/petals/alpha/plain")
        assert (away.status_code, away.json()["state"], away.headers["retry-after"]) == (503, "restarting", "1")
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{site.ws}/petals/alpha/ws", proxy=None)
        assert refused.value.response.status_code == 503
        await own.up()
        assert (await site.get("/petals/alpha/plain")).status_code == 200
        await other.send("a")
        assert await other.recv() == "a"
    assert site.app.statistics()["petals"]["alpha"]["unreachable"] == 2


async def start_own(path: Path) -> asyncio.subprocess.Process:
    """Start a petal's own process; returns when it serves."""
    program = Path(__file__).with_name("own_process.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(path), stdout=asyncio.subprocess.PIPE, env=child_environment()
    )
    assert process.stdout is not None
    assert int(await process.stdout.readline()) == process.pid
    return process


async def test_kill_9_of_a_petal_s_process(serve: Serve) -> None:
    """Its websockets get 1012, what was asked 502, the address 503; its successor answers at once."""
    site = await serve(Beta())
    with short_directory() as directory:
        path = directory / "own.sock"
        site.mounts.mount("own", Relay("own", path))
        first = await start_own(path)
        try:
            assert (await site.get("/petals/own/pid")).json() == first.pid
            async with connect(f"{site.ws}/petals/own/ws", proxy=None) as there:
                await there.send("a")
                assert await there.recv() == "a"
                request = asyncio.create_task(site.get("/petals/own/never"))
                await until(lambda: site.app.statistics()["requests_open"] == 1)
                await asyncio.sleep(0.1)  # until it is over there: nothing here says so
                first.kill()
                with pytest.raises(ConnectionClosed):
                    await there.recv()
                assert there.close_code == 1012
            answer = await request
            assert (answer.status_code, answer.json()["error"]) == (502, "petal_ended")
        finally:
            if first.returncode is None:
                first.kill()
            await first.wait()
        assert (await site.get("/petals/own/pid")).status_code == 503
        second = await start_own(path)
        try:
            assert (await site.get("/petals/own/pid")).json() == second.pid
        finally:
            second.kill()
            await second.wait()


async def test_a_process_that_dies_in_the_middle_of_an_answer_is_told(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it began: 502. In the middle: the answer stays incomplete, so that nobody takes it for the whole."""
    path = tmp_path / "x.sock"
    half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"half" in head:
            writer.write(half)
            await writer.drain()
        writer.transport.abort()

    site = await serve()
    site.mounts.mount("x", Relay("x", path))
    async with await asyncio.start_unix_server(die, path):
        before = await site.get("/petals/x/none")
        assert (before.status_code, before.json()["error"]) == (502, "petal_ended")
        with pytest.raises(httpx.RemoteProtocolError):
            await site.get("/petals/x/half")
    assert "ended in the middle of GET /petals/x/half" in caplog.text


async def test_its_description_is_part_of_the_whole(serve: Serve, child: StartChild) -> None:
    site = await serve(Beta())
    own = await child(Alpha())
    site.mounts.mount("alpha", own.relay)
    whole = (await site.get("/openapi.json")).json()
    assert {"/petals/alpha/plain", "/petals/beta/items"} <= set(whole["paths"])
    await own.down()
    site.mounts.changes += 1
    assert "/petals/alpha/plain" not in (await site.get("/openapi.json")).json()["paths"]


async def test_limits_of_a_body_hold_over_there(serve: Serve, child: StartChild) -> None:
    site = await serve(body_limit=1000)
    own = await child(Alpha(), body_limit=1000, upload_limit=100_000)
    site.mounts.mount("alpha", own.relay)
    refused = await site.post("/petals/alpha/items", json={"name": "x" * 5000})
    assert (refused.status_code, refused.json()["error"]) == (413, "body_too_large")
    assert (await site.post("/petals/alpha/upload", files={"file": b"x" * 90_000})).status_code == 200
    for size in (110_000, 9_000_000):
        assert (await site.post("/petals/alpha/upload", files={"file": b"x" * size})).status_code == 413
    slow = await serve(body_timeout=0.1)
    slow.mounts.mount("alpha", own.relay)
    reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
    writer.write(b"POST /petals/alpha/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
    answer = await reader.read()
    writer.transport.abort()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answer


def test_the_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a.sock"
    for _ in range(2):  # what another left there is replaced
        with unix_listener(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.unlink()
    path.write_text("mine")
    with pytest.raises(OSError, match="in the way"):
        unix_listener(path)
    with pytest.raises(OSError, match="longer than 107 bytes"):
        unix_listener(tmp_path / ("x" * 120))
