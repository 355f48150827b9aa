"""Websockets of petals: what works, what is bounded, and how they end."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .conftest import Serve, deaf_client, until
from .petals import Alpha, Beta


async def test_texts_bytes_and_subprotocols(serve: Serve) -> None:
    site = await serve(Alpha())
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None, subprotocols=["v2", "v1"]) as there:  # type: ignore[list-item]  # NewType
        assert there.subprotocol == "v2"
        await there.send("word")
        await there.send(b"\x00\xff")
        assert [await there.recv(), await there.recv()] == ["word", b"\x00\xff"]
        await there.send("leave")
        with pytest.raises(ConnectionClosed):
            await there.recv()
        assert (there.close_code, there.close_reason) == (4001, "as you wish")


async def test_a_handler_that_raises_closes_with_1011_and_is_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    site = await serve(Alpha())
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None) as there:
        await there.send("boom")
        with pytest.raises(ConnectionClosed):
            await there.recv()
        assert there.close_code == 1011
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{site.ws}/petals/alpha/closed", proxy=None)
    assert refused.value.response.status_code == 500
    assert "petal alpha: websocket /petals/alpha/ws failed" in caplog.text
    assert site.app.statistics()["petals"]["alpha"]["failed"] == 2


async def test_there_are_so_many_websockets_and_no_more(serve: Serve) -> None:
    site = await serve(Alpha(), Beta(), petal_websockets=1)
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{site.ws}/petals/alpha/ws", proxy=None)
        assert refused.value.response.status_code == 503
        assert b"too_many_websockets" in refused.value.response.body
        async with connect(f"{site.ws}/petals/beta/ws", proxy=None):
            assert site.app.statistics()["websockets_open"] == 2
    await until(lambda: site.app.statistics()["websockets_open"] == 0)
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None):
        pass
    assert site.app.statistics()["petals"]["alpha"]["websockets_refused"] == 1


async def test_a_message_has_its_largest_size(serve: Serve) -> None:
    site = await serve(Alpha(), websocket_message=1000)
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None) as there:
        await there.send("x" * 1000)
        assert len(await there.recv()) == 1000
        await there.send("x" * 1001)
        with pytest.raises(ConnectionClosed):
            await there.recv()
        assert there.close_code == 1009


async def test_a_client_that_does_not_read_holds_up_its_sender_and_is_then_cut_off(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal, write_timeout=0.2)
    with deaf_client(site, "/petals/alpha/flood", websocket=True):
        await until(lambda: petal.sent == -1)
    await until(lambda: site.app.statistics()["websockets_open"] == 0)


async def test_a_client_that_is_gone_without_a_word_is_noticed_by_pings(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal, websocket_ping=0.05)
    with deaf_client(site, "/petals/alpha/ws", websocket=True):
        await until(lambda: len(petal.sockets) == 1)
        await until(lambda: petal.sockets == [])


async def test_the_server_s_stop_closes_with_1001_and_lets_requests_finish(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal)
    async with connect(f"{site.ws}/petals/alpha/ws", proxy=None) as there:
        await there.send("a")
        await there.recv()
        request = asyncio.create_task(site.get("/petals/alpha/waits"))
        await until(lambda: petal.waiting == 1)
        stopping = asyncio.create_task(site.server.stop(timeout=5))
        with pytest.raises(ConnectionClosed):
            await there.recv()
        assert there.close_code == 1001
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", site.port)
        assert not stopping.done()
        petal.gate.set()
        assert (await request).json() == "done"
        await stopping
    assert petal.disconnects == [1001]
