"""The simulated vehicle's memory card: folders and files, in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot

CAPACITY: Final = 64 << 20
_LOG_BYTES: Final = (20_000, 180_001, 1_048_576)
_FIRST_LOG_AT: Final = 1_760_000_000


class DiskFull(Exception):
    """No room is left."""


@dataclass(slots=True)
class Log:
    """One flight's log. ``at``: seconds since 1970."""

    number: int
    path: str
    at: int


class Disk:
    """Paths begin with a slash and have no slash at the end; the root is "/". Names may hold anything else."""

    def __init__(self, autopilot: Autopilot, *, seed: int) -> None:
        self.files: dict[str, bytearray] = {}
        self.folders: set[str] = {"/"}
        self.logs: list[Log] = []
        self._fill(autopilot, random.Random(seed))  # noqa: S311 - contents, not secrets

    def _fill(self, autopilot: Autopilot, rng: random.Random) -> None:
        for number, size in enumerate(_LOG_BYTES, 1):
            if autopilot is PX4:
                path = f"/fs/microsd/log/2026-11-{number:02}/12_00_0{number}.ulg"
                head = b"ULog\x01\x12\x35\x01"
            else:
                path = f"/APM/LOGS/{number:08}.BIN"
                head = b"\xa3\x95\x80\x80"
            self.make_folders(path.rpartition("/")[0])
            self.files[path] = bytearray(head + rng.randbytes(size - len(head)))
            self.logs.append(Log(number, path, _FIRST_LOG_AT + 3600 * number))

    @property
    def used(self) -> int:
        """Bytes in files."""
        return sum(map(len, self.files.values()))

    def make_folders(self, path: str) -> None:
        """Make a folder and all above it."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self.folders.add("/" + "/".join(parts[:depth]))

    def listed(self, folder: str) -> list[tuple[str, int | None]]:
        """Names in a folder, sorted, with the sizes of files (None: a folder). Raises KeyError when there is none."""
        if folder not in self.folders:
            raise KeyError(folder)
        found: dict[str, int | None] = {}
        for path, size in [
            *((path, len(data)) for path, data in self.files.items()),
            *((p, None) for p in self.folders),
        ]:
            parent, _, name = path.rpartition("/")
            if name and (parent or "/") == folder:
                found[name] = size
        return sorted(found.items())

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write into a file, which grows. Raises KeyError when there is none, DiskFull."""
        file = self.files[path]
        end = offset + len(data)
        if self.used + max(0, end - len(file)) > CAPACITY:
            raise DiskFull(path)
        if len(file) < end:
            file.extend(bytes(end - len(file)))
        file[offset:end] = data

    def remove(self, path: str) -> None:
        """Remove a file. Raises KeyError when there is none."""
        del self.files[path]
        self.logs = [log for log in self.logs if log.path != path]
