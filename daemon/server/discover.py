"""How the command line tools find the running bus: `bus.json` in the data directory."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from petalbus._version import __version__
from petalbus.daemon.paths import DataPaths, write_atomically
from petalbus.daemon.server.errors import NoRunningBus
from petalbus.daemon.server.lock import is_locked
from petalbus.daemon.server.process import ProcessIdentity
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns


@dataclass(frozen=True, slots=True)
class RunningBus:
    """What bus.json says.

    ``url``: of the server (may hold a password: the file is readable by this user alone). ``bus``: the bus's name.
    ``daemon_started``: clock ticks since boot. ``server_pid``: ``None`` unless the server is embedded. ``token``:
    random, new for every run of the daemon. ``since``: CLOCK_BOOTTIME nanoseconds at which the bus became ready.
    ``durability``: what receipts state; ``None`` in the file of a version that did not know it. ``http``: address of
    its HTTP server while that answers.
    """

    url: str
    bus: str
    daemon_pid: int
    daemon_started: int
    boot_id: str
    server_pid: int | None
    token: str
    version: str
    since: int
    durability: str | None = None
    http: str | None = None

    def with_server(self, pid: int) -> RunningBus:
        """The same bus after its server was restarted as process ``pid``."""
        return replace(self, server_pid=pid)


def announce(
    paths: DataPaths,
    *,
    url: str,
    bus: str = "petalbus",
    server_pid: int | None = None,
    durability: str | None = None,
) -> RunningBus:
    """Write bus.json for this process, which must hold the directory's lock, and return what it says."""
    me = ProcessIdentity.of(os.getpid())
    running = RunningBus(
        url=url,
        bus=bus,
        daemon_pid=os.getpid(),
        daemon_started=me.started if me else 0,
        boot_id=BOOT_ID,
        server_pid=server_pid,
        token=secrets.token_hex(16),
        version=__version__,
        since=boot_clock_ns(),
        durability=durability,
    )
    update(paths, running)
    return running


def update(paths: DataPaths, running: RunningBus) -> None:
    """Write bus.json again, in one step."""
    write_atomically(paths.bus_file, json.dumps(asdict(running), indent=1) + "\n")


def withdraw(paths: DataPaths) -> None:
    """Remove bus.json: the bus is about to stop."""
    paths.bus_file.unlink(missing_ok=True)


def discover(data: Path | str | None = None) -> RunningBus:
    """The bus that runs on the data directory (``None``: the default one).

    Raises ``NoRunningBus``, which says why and what to do. Reads two small files; no network.
    """
    paths = DataPaths.of(data)
    try:
        text = paths.bus_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        starting = is_locked(paths.bus_lock)
        raise NoRunningBus(paths.root, "the bus is just starting or stopping" if starting else "none is here") from None
    except OSError as error:
        raise NoRunningBus(paths.root, f"{paths.bus_file} cannot be read ({error.strerror})") from error
    try:
        running = RunningBus(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise NoRunningBus(paths.root, f"{paths.bus_file} is damaged or of another version") from error
    # The lock is looked at too: a daemon in a container has a process id that means nothing out here.
    if not _daemon(running).alive() and not is_locked(paths.bus_lock):
        raise NoRunningBus(paths.root, f"its daemon, process {running.daemon_pid}, has ended without stopping in order")
    return running


def _daemon(running: RunningBus) -> ProcessIdentity:
    return ProcessIdentity(running.daemon_pid, running.daemon_started, running.boot_id)
