"""The check of a configured server, `--redis URL`, against real servers; old versions by their INFO text alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from petalbus.daemon.server import ServerUnreachable, ServerUnsuitable, check_server
from petalbus.daemon.server.check import judge
from petalbus.daemon.server.find import ServerBinary

from support.proxy import Proxy
from support.servers import RealServer, TlsServer, free_port, running_server


@contextmanager
def changed(server: RealServer, name: str, value: str) -> Iterator[None]:
    before = server.command("CONFIG", "GET", name)[1]
    server.command("CONFIG", "SET", name, value)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", name, before)


async def test_every_real_server_is_accepted_with_its_version(redis_server: RealServer) -> None:
    """The embedded server's own configuration draws no warning."""
    report = await check_server(redis_server.url)
    assert (report.kind, report.version) == (redis_server.binary.kind, redis_server.binary.version)
    assert report.append_only
    assert report.maxmemory_policy == "noeviction"
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("maxmemory-policy", "allkeys-lru", "set maxmemory-policy noeviction"),
        ("maxmemory", "0", "set maxmemory"),
        ("appendonly", "no", "set appendonly yes"),
    ],
)
async def test_what_weakens_the_contract_is_warned_of(
    name: str, value: str, warning: str, own_server: RealServer
) -> None:
    """With the setting that mends it."""
    with changed(own_server, name, value):
        report = await check_server(own_server.url)
    assert len(report.warnings) == 1
    assert report.warnings[0].endswith(warning)


async def test_a_user_name_password_and_tls_are_used(tls_server: TlsServer) -> None:
    """TCP with an ACL user; TLS with an authority from the URL, or given as options, with a client certificate."""
    assert (await check_server(tls_server.tcp_url)).kind
    assert (await check_server(tls_server.tls_url)).kind
    bare = f"rediss://{tls_server.host}:{tls_server.tls_port}"
    options = {
        "username": tls_server.username,
        "password": tls_server.password,
        "ssl_ca_certs": str(tls_server.ca),
        "ssl_certfile": str(tls_server.certificate),
        "ssl_keyfile": str(tls_server.key),
    }
    assert (await check_server(bare, options=options)).kind


async def test_refusals_name_the_cause_and_never_the_password(tls_server: TlsServer) -> None:
    """No password, a wrong one, an unknown authority, nobody there, no address."""
    host = f"127.0.0.1:{tls_server.port}"
    for url, cause in (
        (f"redis://{host}", "user name or password is refused"),
        (f"redis://petalbus:hunter2@{host}", "user name or password is refused"),
        (f"rediss://petalbus:hunter2@127.0.0.1:{tls_server.tls_port}", "certificate verify failed"),
        (f"redis://petalbus:hunter2@127.0.0.1:{free_port()}", "cannot be reached"),
        ("unix:///nowhere/bus.sock", "cannot be reached"),
        ("http://petalbus:hunter2@127.0.0.1:1", "is no server address"),
    ):
        with pytest.raises(ServerUnreachable, match=cause) as caught:
            await check_server(url)
        assert "hunter2" not in str(caught.value)


async def test_a_user_without_the_right_to_ask_is_told_which(own_server: RealServer) -> None:
    """ACL: +info is what the check needs."""
    own_server.command("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "-info")
    with pytest.raises(ServerUnreachable, match=r"grant it \+info"):
        await check_server(own_server.url, options={"username": "poor", "password": "pw"})


async def test_a_server_that_does_not_answer_is_given_up_in_time(server: RealServer) -> None:
    """The bound is ours, not the client library's."""
    async with Proxy(server.url) as proxy:
        proxy.stall()
        with pytest.raises(ServerUnreachable, match=r"did not answer within 0\.2 s"):
            await check_server(proxy.url, timeout=0.2)


async def test_a_real_replica_is_refused(own_server: RealServer) -> None:
    """It answers reads, and would refuse every record."""
    own_server.command("REPLICAOF", "127.0.0.1", str(free_port()))
    with pytest.raises(ServerUnsuitable, match="is a replica"):
        await check_server(own_server.url)


async def test_a_real_cluster_node_is_refused(server_binary: ServerBinary) -> None:
    """Its slots may live elsewhere."""
    extra = f"\ncluster-enabled yes\nport {free_port()}\ncluster-port {free_port()}\nbind 127.0.0.1\n"
    with (
        running_server(server_binary, extra=extra) as node,
        pytest.raises(ServerUnsuitable, match="is a cluster node"),
    ):
        await check_server(node.url)


@pytest.mark.parametrize(
    ("info", "found"),
    [
        ({"redis_version": "6.2.14"}, "redis 6.2.14"),
        ({"redis_version": 6.2}, "redis 6.2"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "7.1.1"}, "valkey 7.1.1"),
        ({"redis_version": "unstable"}, "a server of unknown version"),
        ({}, "a server of unknown version"),
    ],
)
def test_a_server_below_the_floor_is_refused(info: dict[str, object], found: str) -> None:
    """With what was found, what is needed and what to do."""
    with pytest.raises(ServerUnsuitable, match=rf"is {found}; the bus needs Redis 7\.0 or Valkey 7\.2 .*--redis"):
        judge(info, server="redis://old")


@pytest.mark.parametrize(
    ("info", "label"),
    [
        ({"redis_version": "7.0.0"}, "redis 7.0.0"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.0"}, "valkey 7.2.0"),
        ({"redis_version": "10.0"}, "redis 10.0"),
    ],
)
def test_the_floor_itself_is_accepted(info: dict[str, object], label: str) -> None:
    """Versions are compared as numbers."""
    assert judge(info, server="x").label == label


def test_a_server_that_still_loads_is_refused_for_now() -> None:
    """Its data are not all there yet."""
    with pytest.raises(ServerUnsuitable, match="still loads its data; try again"):
        judge({"redis_version": "7.0.15", "loading": 1}, server="x")
