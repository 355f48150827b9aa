"""The same scenario on every real server, over every transport, on both event loops, and on fakeredis, which
differs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from bus.scenario import scenario
from bus.scripts_scenario import Scripts, scripts_scenario
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.connection import Connection, ServerError, open_connection
from petalbus.daemon.bus.errors import BusError, ServerRefused
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.url import parse

from support.proxy import Proxy
from support.servers import RealServer, TlsServer, free_port

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


@pytest.mark.parametrize("loop", LOOPS)
def test_on_every_server_and_event_loop(
    redis_server: RealServer, bus_name: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The oldest supported server and the newest, under asyncio and uvloop."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(scenario(redis_server.url, bus_name), 30))


async def test_in_pieces_of_three_bytes(server: RealServer, bus_name: str) -> None:
    """Answers may come in pieces of any size: through a proxy that cuts everything into three bytes."""
    async with Proxy(server.url, fragment=3) as proxy:
        await asyncio.wait_for(scenario(proxy.url, bus_name), 30)


@pytest.mark.parametrize("loop", LOOPS)
def test_over_tcp_with_an_acl_user(
    tls_server: TlsServer, bus_name: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """S-151, S-154: TCP with AUTH; the user has only the permissions that the documentation names."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(scenario(tls_server.tcp_url, bus_name), 30))


def tls_url(server: TlsServer, *, user: str = "petalbus:secret", more: str = "") -> str:
    """The TLS address with our own names for its options."""
    return f"rediss://{user}@{server.host}:{server.tls_port}?ca={server.ca}{more}"


@pytest.mark.parametrize("loop", LOOPS)
def test_over_tls(tls_server: TlsServer, bus_name: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """S-152: TLS with the authority's and a client's certificate."""
    url = tls_url(tls_server, more=f"&cert={tls_server.certificate}&key={tls_server.key}")
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(scenario(url, bus_name), 30))


@pytest.mark.parametrize("wrong", ["password", "user", "authority", "plain-to-tls", "tls-to-plain", "nobody-there"])
async def test_a_wrong_address_says_what_is_wrong(tls_server: TlsServer, wrong: str) -> None:
    """S-089, S-151: within the time allowed, with the reason, without the password, leaving nothing open."""
    host = tls_server.host
    url, reason = {
        "password": (f"redis://petalbus:wrong-one@{host}:{tls_server.port}", "WRONGPASS"),
        "user": (f"redis://nobody:secret@{host}:{tls_server.port}", "WRONGPASS"),
        "authority": (f"rediss://petalbus:secret@{host}:{tls_server.tls_port}", "certificate verify failed"),
        "plain-to-tls": (
            f"redis://petalbus:secret@{host}:{tls_server.tls_port}",
            "no connection|no server|refused|closed|lost",
        ),
        "tls-to-plain": (
            f"rediss://petalbus:secret@{host}:{tls_server.port}?ca={tls_server.ca}",
            "no connection|no server",
        ),
        "nobody-there": (f"redis://petalbus:secret@{host}:1", "no server|refused"),
    }[wrong]
    bus = Bus(url, app="gcs", options=BusOptions(connect_timeout=0.5))
    with pytest.raises(BusError, match=reason) as refused:
        await bus.start()
    assert "secret" not in str(refused.value)
    assert "wrong-one" not in str(refused.value)
    leftovers = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("petalbus")]
    assert not leftovers


async def test_a_replica_is_refused(tls_server: TlsServer, server: RealServer, own_server: RealServer) -> None:
    """A replica takes no writes: the client says that it needs the primary."""
    own_server.command("REPLICAOF", "127.0.0.1", "1")
    bus = Bus(own_server.url, app="gcs")
    with pytest.raises(BusError, match="replica"):
        await bus.start()


@pytest.fixture
def fake_server() -> Iterator[str]:
    """fakeredis as a TCP server, in a thread."""
    fakeredis = pytest.importorskip("fakeredis")
    port = free_port()
    server = fakeredis.TcpFakeServer(("127.0.0.1", port), server_type="redis", server_version=(7, 0))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="fakeredis", daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


async def connected(url: str) -> Connection:
    """A bare connection of the bus's own kind."""
    return await open_connection(parse(url), timeout=5, patience=10)


async def test_the_scripts_on_every_real_server(redis_server: RealServer, bus_name: str) -> None:
    """What the scripts leave behind, step by step."""
    connection = await connected(redis_server.url)
    await scripts_scenario(Scripts(connection, bus_name))
    connection.close()


async def test_the_scripts_on_fakeredis(fake_server: str) -> None:
    """The same steps, once the flags are cut from the scripts; what else differs is said in the tests below."""
    connection = await connected(fake_server)
    await scripts_scenario(Scripts(connection, "fake", flags=False))
    connection.close()


async def test_how_fakeredis_differs(fake_server: str) -> None:
    """Why it is no proof of the bus: no INFO, so the client refuses it; no script flags, so nothing passes when full.

    (A blocking read ignores its block there as well, and it knows no CLIENT KILL and no memory ceiling.)
    When one of these begins to work, this test fails, and the whole scenario may be tried there.
    """
    bus = Bus(fake_server, app="gcs", options=BusOptions(connect_timeout=1.0))
    with pytest.raises(ServerRefused, match=r"(?i)unknown command 'info'"):
        await bus.start()
    connection = await connected(fake_server)
    with pytest.raises(ServerError, match=r"(?i)error"):
        await connection.call("EVAL", b"#!lua flags=allow-oom\nreturn 1", 0)
    connection.close()
