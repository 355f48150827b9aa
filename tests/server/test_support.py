"""The tools that other tests trust: the proxy and the child processes do what they say."""

from __future__ import annotations

import asyncio
import signal

import pytest
import redis.exceptions

from support.procs import Children
from support.proxy import Proxy
from support.servers import RealServer, TlsServer, plain_client


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_the_proxy_loses_one_reply_and_the_command_took_effect(
    tcp: bool, server: RealServer, bus_name: str
) -> None:
    """The server ran it once; the client sees a cut connection; later commands are answered again."""
    async with Proxy(server.url, tcp=tcp) as proxy:
        client = plain_client(proxy.url)
        await client.xadd(bus_name, {"n": 1})
        lost = proxy.lose_reply_to(b"xadd")
        assert await client.xlen(bus_name) == 1  # another command is not meant
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.xadd(bus_name, {"n": 2})
        await asyncio.wait_for(lost.wait(), 5)
        assert server.command("XLEN", bus_name) == 2
        await client.xadd(bus_name, {"n": 3})
        assert server.command("XLEN", bus_name) == 3
        await client.aclose()


async def test_the_proxy_cuts_refuses_stalls_and_fragments(server: RealServer, bus_name: str) -> None:
    """Every way to trouble a client that the tests use."""
    async with Proxy(server.url, fragment=3) as proxy:
        client = plain_client(proxy.url, single_connection_client=True)
        value = b"x" * 1000
        await client.set(bus_name, value)
        assert await client.get(bus_name) == value
        assert proxy.cut() == 1
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.get(bus_name)
        proxy.refusing = True
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.get(bus_name)
        proxy.refusing = False
        proxy.stall()
        asking = asyncio.create_task(client.get(bus_name), name="asking")
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        proxy.resume()
        assert await asyncio.wait_for(asking, 5) == value
        await client.aclose()


async def test_the_proxy_reaches_a_tcp_server(tls_server: TlsServer) -> None:
    """Its target may be a TCP address; the password is the client's business."""
    async with Proxy(tls_server.tcp_url, tcp=True) as proxy:
        client = plain_client(proxy.url, username=tls_server.username, password=tls_server.password)
        assert await client.ping()
        await client.aclose()


async def test_a_frozen_server_keeps_its_connections(own_server: RealServer) -> None:
    """freeze() and thaw(): silence, then the answer."""
    client = own_server.client()
    await client.ping()
    own_server.freeze()
    asking = asyncio.create_task(client.ping(), name="asking")
    done, _ = await asyncio.wait([asking], timeout=0.05)
    assert not done
    own_server.thaw()
    assert await asyncio.wait_for(asking, 5)
    await client.aclose()


async def test_children_are_heard_and_their_end_is_seen(children: Children) -> None:
    """Lines in order; a missing line is an error with all output; the exit code or signal."""
    child = await children.code("import sys; print('a 1'); print('b'); print('a 2'); print('c', file=sys.stderr)")
    assert await child.line("^a") == "a 1"
    assert await child.line("^a") == "a 2"
    with pytest.raises(AssertionError, match=r"ended before 'd':\n-- output\na 1"):
        await child.line("d")
    assert await child.wait() == 0
    assert child.errors == ["c"]
    sleeper = await children.code("import time; print('up', flush=True); time.sleep(60)")
    await sleeper.line("up")
    sleeper.kill()
    assert await sleeper.wait() == -signal.SIGKILL


async def test_children_that_are_left_end_with_the_test() -> None:
    """Also their own children of the same session."""
    started = Children()
    child = await started.code(
        "import subprocess, sys\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(inner.pid, flush=True)\n"
        "inner.wait()"
    )
    from petalbus.daemon.server.process import ProcessIdentity

    inner = ProcessIdentity.of(int(await child.line(r"\d+")))
    assert inner is not None
    await started.close()
    assert await inner.gone(5)
