"""Brings the embedded server's append-only file to the disk about once a second, from outside of the server.

Left to itself (``appendfsync everysec``) a server whose fsync is slow holds its writes back for up to two seconds and
acknowledges all the same: kill -9 of it then loses acknowledged records, on exactly the slow disks that boards have. So
the server only writes, before every answer, and the fsync is done here: the kernel keeps one set of pages for a file,
whoever asks for them to be written.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

_log = logging.getLogger("petalbus.server")

EVERY: Final = 1.0
"""Seconds between two looks; a file that has not grown is left alone."""


class Flusher:
    """Flushes the append-only files below ``directory`` for as long as ``run`` runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "appendonlydir"
        self._sizes: dict[Path, int] = {}
        self.flushes = 0
        self.failures = 0

    async def run(self) -> None:
        """Look once a second; a slow disk makes it later, never the event loop."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await asyncio.to_thread(self.flush)
            except OSError as error:
                self.failures += 1
                _log.error("the append-only file does not reach the disk: %s", error)

    def flush(self) -> None:
        """Flush every file that has grown since the last look. Raises OSError."""
        sizes = {file: file.stat().st_size for file in self._directory.glob("*.aof")}
        for file, size in sizes.items():
            if self._sizes.get(file) != size:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
                self.flushes += 1
        self._sizes = sizes
