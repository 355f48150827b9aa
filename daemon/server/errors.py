"""What can go wrong with the server under the bus.

    ServerError
        ServerNotFound        no server program to start
        ServerStartError      the server program did not become ready
        ServerCrashLoop       it keeps ending by itself
        ServerUnreachable     a configured server does not answer (address, TLS, password, permission)
        ServerUnsuitable      it answers, but cannot carry a bus (too old, a replica)
        DataDirectoryInUse    another daemon owns the data directory
        NoRunningBus          no daemon runs on the data directory

Each carries a stable ``code`` and says what to do.
"""

from __future__ import annotations

from pathlib import Path


class ServerError(Exception):
    """Something is wrong with the server under the bus."""

    code = "server"


class ServerNotFound(ServerError):
    """There is no program to start as the embedded server."""

    code = "server_not_found"


class ServerStartError(ServerError):
    """The server program was started and did not become ready; the message has the end of its log."""

    code = "server_start"


class ServerCrashLoop(ServerError):
    """The server ended by itself again and again, and is not started any more."""

    code = "server_crash_loop"


class ServerUnreachable(ServerError):
    """A configured server does not answer as it should."""

    code = "server_unreachable"


class ServerUnsuitable(ServerError):
    """The server answers, but cannot carry a bus."""

    code = "server_unsuitable"


class DataDirectoryInUse(ServerError):
    """Another daemon owns the data directory; ``pid`` is its process (``None``: not to be seen from here)."""

    code = "data_directory_in_use"

    def __init__(self, directory: Path, pid: int | None) -> None:
        self.directory = directory
        self.pid = pid
        who = f"by process {pid}" if pid else "by another process"
        super().__init__(
            f"a bus already runs on {directory} (started {who}); use it as it is, stop that process first, "
            f"or choose another directory with --data DIR"
        )


class NoRunningBus(ServerError):
    """No daemon runs on the data directory."""

    code = "no_running_bus"

    def __init__(self, directory: Path, reason: str) -> None:
        self.directory = directory
        super().__init__(
            f"no running bus in {directory}: {reason}; start one with `petalbus up`, or name its directory "
            f"with --data DIR"
        )
