"""Fixtures that everybody uses. Everything here is the real thing: servers, sockets, processes."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings

from petalbus.daemon.server.find import ServerBinary

from support.certificates import make_certificates
from support.procs import Children
from support.servers import (
    SERVERS,
    RealServer,
    TlsServer,
    has_tls,
    kill_leftovers,
    plain_client,
    running_server,
    running_tls_server,
    server_id,
    short_directory,
)

_numbers = itertools.count(1)

# A busy machine is slow now and then: that is no fault of the example at hand, and nothing to shrink for minutes.
settings.register_profile("petalbus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("petalbus")


def pytest_configure(config: pytest.Config) -> None:
    """Tell what our own marks mean that scripts/test looks at."""
    config.addinivalue_line("markers", "alone: measures time or load, so nothing else may run beside it")


def pytest_report_header() -> list[str]:
    """Say which servers the tests run on."""
    return [f"servers: {', '.join(f'{one.label} ({one.origin})' for one in SERVERS) or 'none'}"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a test's output fit for UTF-8: where several processes run the tests, a report goes between them."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def server_binary() -> ServerBinary:
    """The server program that the embedded server would run here."""
    assert SERVERS, "no Redis or Valkey server found: scripts/test installs one"
    return SERVERS[0]


@pytest.fixture(scope="session")
def _session_servers() -> Iterator[Callable[[ServerBinary], RealServer]]:
    with ExitStack() as stack:
        running: dict[Path, RealServer] = {}

        def get(binary: ServerBinary) -> RealServer:
            if binary.path not in running:
                running[binary.path] = stack.enter_context(running_server(binary))
            return running[binary.path]

        yield get


@pytest.fixture
def server(_session_servers: Callable[[ServerBinary], RealServer], server_binary: ServerBinary) -> RealServer:
    """The session's server, on a unix socket, shared: use `bus_name`, and `own_server` to kill or freeze one."""
    return _session_servers(server_binary)


@pytest.fixture(params=SERVERS, ids=server_id)
def redis_server(request: pytest.FixtureRequest, _session_servers: Callable[[ServerBinary], RealServer]) -> RealServer:
    """Every real server found, one after the other; shared like `server`."""
    return _session_servers(request.param)


@pytest.fixture
def own_server(server_binary: ServerBinary) -> Iterator[RealServer]:
    """A fresh server of the test's own, to kill, freeze and restart."""
    with running_server(server_binary) as server:
        yield server


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """A server on TCP with TLS and an ACL user."""
    capable = [binary for binary in SERVERS if binary.origin != "bundled" and has_tls(binary)]
    if not capable:
        pytest.skip("no redis-server or valkey-server with TLS on PATH")
    if shutil.which("openssl") is None:
        pytest.skip("the certificates are made with the openssl program, which is not here")
    certificates = tmp_path_factory.mktemp("certificates")
    make_certificates(certificates)
    with running_tls_server(capable[0], certificates) as server:
        yield server


@pytest.fixture
def bus_name() -> str:
    """A bus of the test's own on a shared server."""
    return f"t{os.getpid()}x{next(_numbers)}"


@pytest.fixture
async def redis_client(server: RealServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A redis-py asyncio client of `server`: no retries, bytes as they came."""
    client = plain_client(server.url)
    yield client
    await client.aclose()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty data directory with a short path. What still runs on it at the end is killed."""
    with short_directory() as directory:
        try:
            yield directory / "data"
        finally:
            kill_leftovers(directory / "data")


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    """Starts child processes; none survives the test."""
    started = Children()
    yield started
    await started.close()
