"""Where a bus keeps its files, and the one place that knows their names.

<data>/                 $PETALBUS_DATA, else $XDG_STATE_HOME/petalbus; or the directory given as --data
    bus.json            the running bus, for the command line tools (see petalbus.daemon.server.discover)
    bus.lock            held (flock) by the daemon that owns this directory; contains its process id
    bus.sock            the embedded server's unix socket (elsewhere when this path is too long for a socket)
    server/             the embedded server's own: configuration, log, lock, append-only file; mode 0700
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_SOCKET_PATH_BYTES: Final = 100
"""Longest unix socket path we use: the kernel's field has 108 bytes, and servers cut a longer path without a word."""


class DataDirectoryError(OSError):
    """A data directory (or the directory of its socket) cannot be used; the message says which, why and what to do."""

    code = "data_directory"


def default_data_dir() -> Path:
    """The data directory when none is given.

    ``$PETALBUS_DATA``, else ``$XDG_STATE_HOME/petalbus``, else ``~/.local/state/petalbus``. Raises
    ``DataDirectoryError`` when there is no home directory to be found either.
    """
    if named := os.environ.get("PETALBUS_DATA"):
        return Path(named).expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the XDG specification: a relative path is to be ignored
        return state / "petalbus"
    try:
        return Path.home() / ".local" / "state" / "petalbus"
    except RuntimeError as error:
        raise DataDirectoryError(
            "no data directory: neither XDG_STATE_HOME nor a home directory is set; name one with --data DIR"
        ) from error


@dataclass(frozen=True, slots=True)
class DataPaths:
    """The files below one data directory. Making the object touches nothing on disk."""

    root: Path

    @classmethod
    def of(cls, data: Path | str | None = None) -> DataPaths:
        """The paths below ``data`` (``None``: the default directory), made absolute, symlinks resolved."""
        root = default_data_dir() if data is None else Path(data).expanduser()
        return cls(Path(os.path.realpath(root)))

    @property
    def bus_file(self) -> Path:
        """Description of the running bus."""
        return self.root / "bus.json"

    @property
    def bus_lock(self) -> Path:
        """Lock of the daemon that owns the directory."""
        return self.root / "bus.lock"

    @property
    def server_dir(self) -> Path:
        """The embedded server's working directory."""
        return self.root / "server"

    @property
    def server_config(self) -> Path:
        """The configuration we write for the embedded server before each start."""
        return self.server_dir / "server.conf"

    @property
    def server_log(self) -> Path:
        """The embedded server's log."""
        return self.server_dir / "server.log"

    @property
    def server_state(self) -> Path:
        """Which process runs the embedded server, and with what."""
        return self.server_dir / "server.json"

    @property
    def server_lock(self) -> Path:
        """Lock that the embedded server's process itself holds, as long as it lives."""
        return self.server_dir / "server.lock"

    @property
    def socket(self) -> Path:
        """The embedded server's unix socket: in the data directory, or in a short private one if that is too long."""
        near = self.root / "bus.sock"
        return near if _fits(near) else self._short_socket_dir() / "bus.sock"

    def create(self) -> None:
        """Make the directories, private to this user. An existing data directory keeps its mode: it may be shared.

        Raises ``DataDirectoryError`` when something is in the way or not writable.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.server_dir.mkdir(mode=0o700, exist_ok=True)
            self.server_dir.chmod(0o700)
        except OSError as error:
            raise DataDirectoryError(
                f"data directory {self.root}: {error.strerror or error}; choose another with --data DIR"
            ) from error
        if self.socket.parent != self.root:
            _make_private(self.socket.parent)

    def _short_socket_dir(self) -> Path:
        digest = hashlib.blake2b(os.fsencode(self.root), digest_size=8).hexdigest()
        name = f"petalbus-{os.getuid()}-{digest}"
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
        if runtime.is_absolute() and runtime.is_dir() and _fits(runtime / name / "bus.sock"):
            return runtime / name
        return Path("/tmp") / name  # noqa: S108  # made with mode 0700 and refused unless it is ours: _make_private


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace ``path`` by ``text`` in one step that also survives a power cut: readers see the old or the new file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES


def _make_private(directory: Path) -> None:
    """Make ``directory`` ours alone, and refuse one that somebody else prepared (its parent may be world-writable)."""
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError as error:
        raise DataDirectoryError(f"socket directory {directory}: {error.strerror or error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise DataDirectoryError(
            f"socket directory {directory} is not a directory that only this user can enter; remove it, or choose a "
            f"shorter data directory with --data DIR (a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes)"
        )
