"""Real servers for tests: on a unix socket or on TCP with TLS and an ACL user; killed, frozen and restarted at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server.config import ServerConfig
from petalbus.daemon.server.find import ServerBinary, find_servers
from petalbus.daemon.server.probe import unix_url
from petalbus.daemon.server.process import holders

READY_SECONDS = 10.0


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory with a path short enough for a unix socket; removed at the end."""
    parent = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="pb-", dir=parent if len(parent) < 40 else "/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


SERVERS = [binary for binary in find_servers() if binary.supported]
"""Every supported server program on this machine, the embedded server's choice first."""


def server_id(binary: ServerBinary) -> str:
    """Name of a server in a test's id."""
    return f"{binary.kind}-{'.'.join(map(str, binary.version))}"


def kill_leftovers(data: Path) -> None:
    """Kill every process that a test left running on a data directory: daemon and embedded server."""
    paths = DataPaths.of(data)
    for identity in [*holders(paths.bus_lock), *holders(paths.server_lock)]:
        identity.signal(signal.SIGKILL)
        poll_until(lambda one=identity: not one.alive(), "a killed process ends")


def poll_until(condition: Any, what: str, *, seconds: float = READY_SECONDS) -> None:
    """Wait (blocking, bounded) until ``condition()`` is true; an AssertionError that says ``what`` was awaited."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)


class RealServer:
    """A server process of the test. Its configuration is the embedded server's, plus ``extra`` lines."""

    def __init__(self, directory: Path, binary: ServerBinary, *, extra: str = "", memory_mb: int = 256) -> None:
        self.binary = binary
        self.paths = DataPaths.of(directory)
        self.paths.create()
        self.config = ServerConfig(self.paths, memory_mb).text() + extra
        self.url = unix_url(str(self.paths.socket))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def socket_path(self) -> str:
        """Path of its unix socket."""
        return str(self.paths.socket)

    def start(self) -> None:
        """Start it and wait until it serves."""
        assert self._process is None, "the server runs already"
        self.paths.server_config.write_text(self.config)
        with self.paths.server_log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binary.path), str(self.paths.server_config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        poll_until(self._answers, f"{self.binary.label} serves; log: {self.paths.server_log}")

    def _answers(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"the server ended with {code}: {self.paths.server_log.read_text()[-2000:]}"
        with socket.socket(socket.AF_UNIX) as end, contextlib.suppress(OSError):
            end.settimeout(1.0)
            end.connect(self.socket_path)
            end.sendall(b"*1\r\n$4\r\nPING\r\n")
            return end.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # -LOADING is not yet
        return False

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self._reap()

    def terminate(self) -> None:
        """An orderly end; returns when it is gone."""
        self.signal(signal.SIGTERM)
        self._reap()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill -9 and start again on the same data."""
        self.kill()
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send it any signal."""
        os.kill(self.pid, number)

    def close(self) -> None:
        """Kill it if it runs."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def command(self, *words: str | bytes | float) -> Any:
        """One command over a connection of its own, synchronously; bytes are returned as they came."""
        with redis.Redis(unix_socket_path=self.socket_path, **_sync_options()) as client:
            return client.execute_command(*words)

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """A redis-py asyncio client without retries. Close it with ``aclose()``."""
        return plain_client(self.url, **options)

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(READY_SECONDS)
        self._process = None


@dataclass(frozen=True)
class TlsServer:
    """A TCP server with TLS on one port and plain TCP on another, which lets in one ACL user only.

    The user may do everything on keys but nothing that is dangerous, except what a bus needs (docs/server.md).
    """

    server: RealServer
    host: str
    port: int
    tls_port: int
    username: str
    password: str
    ca: Path
    certificate: Path
    key: Path

    @property
    def tcp_url(self) -> str:
        """Plain TCP, with user and password."""
        return f"redis://{self.username}:{self.password}@{self.host}:{self.port}"

    @property
    def tls_url(self) -> str:
        """TLS, with user and password and the authority's certificate as redis-py's URL option."""
        return f"rediss://{self.username}:{self.password}@{self.host}:{self.tls_port}?ssl_ca_certs={self.ca}"


@contextlib.contextmanager
def running_server(binary: ServerBinary, *, extra: str = "", memory_mb: int = 256) -> Iterator[RealServer]:
    """A started server in a directory of its own; killed and removed at the end."""
    with short_directory() as directory:
        server = RealServer(directory, binary, extra=extra, memory_mb=memory_mb)
        try:
            server.start()
            yield server
        finally:
            server.close()


@contextlib.contextmanager
def running_tls_server(binary: ServerBinary, certificates: Path) -> Iterator[TlsServer]:
    """A TLS server of ``binary``, with the certificates that `support.certificates` made in the directory."""
    port, tls_port = free_port(), free_port()
    ca, certificate, key = certificates / "ca.crt", certificates / "server.crt", certificates / "server.key"
    extra = (
        f"\nport {port}\nbind 127.0.0.1\ntls-port {tls_port}\n"
        f"tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {ca}\ntls-auth-clients optional\n"
        "user default off\n"
        "user petalbus on >secret ~* &* +@all -@dangerous +info +client|unblock\n"
    )
    with running_server(binary, extra=extra) as server:
        yield TlsServer(
            server=server,
            host="127.0.0.1",
            port=port,
            tls_port=tls_port,
            username="petalbus",
            password="secret",
            ca=ca,
            certificate=certificates / "client.crt",
            key=certificates / "client.key",
        )


def has_tls(binary: ServerBinary) -> bool:
    """Whether the program was built with TLS (the bundled one is not)."""
    with short_directory() as directory:
        answer = subprocess.run(
            [str(binary.path), "-"],
            input=f"port 0\ntls-port {free_port()}\ndir {directory}\n".encode(),
            capture_output=True,
            timeout=10,
            check=False,
        )
    # It ends in any case: one with TLS because it misses its certificate, one without because of the option.
    return b"No tls-cert-file configured" in answer.stdout + answer.stderr


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


def plain_client(url: str, **options: Any) -> redis.asyncio.Redis:
    """A redis-py asyncio client without retries and with every time limit set."""
    given: dict[str, Any] = {
        "retry": AsyncRetry(NoBackoff(), 0),
        "socket_timeout": 10.0,
        "socket_connect_timeout": 5.0,
        "protocol": 2,
        "driver_info": None,
        **options,
    }
    return redis.asyncio.Redis.from_url(url, **given)


def _sync_options() -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0), "socket_timeout": 10.0, "protocol": 2, "driver_info": None}
